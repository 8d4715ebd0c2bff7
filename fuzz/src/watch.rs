//! The process that watches another run a target's inputs: it counts, ends what hangs, and goes on behind what
//! ended the other.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::execute::{Inputs, PROGRESS, Progress, SEEN, SLOW};
use crate::targets::Target;

/// After which time an input counts as one that hangs, on however busy a machine.
const HANGS: Duration = Duration::from_secs(20);

/// The head of the table whose rows [`target`] prints.
pub const HEADER: &str = "\
    | target | executions | accepted | refused | panics | aborts | slow or hanging | slowest | peak memory |\n\
    | --- | --: | --: | --: | --: | --: | --: | --: | --: |";

/// What was seen of a target.
#[derive(Default)]
struct Seen {
    accepted: u64,
    /// Kind and message of what failed, by the input's number.
    failed: BTreeMap<u64, (&'static str, String)>,
    /// The slowest input's milliseconds.
    slowest: u64,
    /// The most bytes that the process held.
    peak: u64,
}

impl Seen {
    /// Notes the lines that the process left.
    fn note(&mut self, lines: &str) {
        for line in lines.lines() {
            let mut words = line.splitn(3, ' ');
            let (Some(kind), Some(Ok(number)), Some(rest)) =
                (words.next(), words.next().map(str::parse), words.next())
            else {
                continue;
            };
            if kind == "panic" {
                self.failed.insert(number, ("panic", rest.to_owned()));
                continue;
            }
            let milliseconds = rest.parse().unwrap_or(0);
            self.slowest = self.slowest.max(milliseconds);
            if milliseconds > SLOW {
                self.failed.insert(number, ("slow", format!("{milliseconds} ms")));
            }
        }
    }
}

/// Runs inputs of a target, prints a row of the table, and keeps the inputs that failed. Returns whether none
/// did.
pub fn target(target: &Target, seed: u64, numbers: Range<u64>, keep: &Path) -> Result<bool> {
    let mut seen = Seen::default();
    let mut next = numbers.start;
    while next < numbers.end {
        next = stretch(target, seed, next..numbers.end, &mut seen)?;
    }
    let count = |kinds: &[&str]| {
        seen.failed.values().filter(|(kind, _)| kinds.contains(kind)).count() as u64
    };
    let executions = numbers.end - numbers.start;
    println!(
        "| {} | {executions} | {} | {} | {} | {} | {} | {:.2} s | {} MiB |",
        target.name,
        seen.accepted,
        executions - seen.accepted - count(&["panic", "abort", "hang"]),
        count(&["panic"]),
        count(&["abort"]),
        count(&["slow", "hang"]),
        seen.slowest as f64 / 1000.0,
        seen.peak >> 20,
    );
    let inputs = Inputs::new(target, seed)?;
    for (number, (kind, message)) in &seen.failed {
        std::fs::create_dir_all(keep)?;
        let file = keep.join(format!("{}-{seed}-{number}", target.name));
        std::fs::write(&file, inputs.get(*number))?;
        eprintln!("{}: {kind}: {message}", file.display());
    }
    Ok(seen.failed.is_empty())
}

/// Runs inputs until all are through or one ends the process. Returns the number of the next.
fn stretch(target: &Target, seed: u64, numbers: Range<u64>, seen: &mut Seen) -> Result<u64> {
    let memory = Path::new("/dev/shm");
    let folder = match memory.is_dir() {
        true => tempfile::tempdir_in(memory)?,
        false => tempfile::tempdir()?,
    };
    let (status, errors) = {
        let errors = folder.path().join("errors");
        let mut child = start(target, seed, &numbers, folder.path(), &errors)?;
        (wait(&mut child, folder.path())?, std::fs::read_to_string(errors).unwrap_or_default())
    };
    let reached = progress(folder.path())
        .with_context(|| format!("{}: it ran no input: {}", target.name, errors.trim()))?;
    seen.note(&std::fs::read_to_string(folder.path().join(SEEN)).unwrap_or_default());
    seen.accepted += reached.accepted;
    seen.peak = seen.peak.max(reached.peak);
    let number = reached.number;
    let failure = match status {
        Some(status) if status.success() => return Ok(number),
        Some(status) => ("abort", format!("{status}: {}", errors.trim().replace('\n', " "))),
        None => ("hang", format!("more than {} s", HANGS.as_secs())),
    };
    seen.failed.insert(number, failure);
    Ok(number + 1)
}

fn start(
    target: &Target,
    seed: u64,
    numbers: &Range<u64>,
    folder: &Path,
    errors: &Path,
) -> Result<Child> {
    let (first, count) = (numbers.start.to_string(), (numbers.end - numbers.start).to_string());
    Ok(Command::new(std::env::current_exe()?)
        .args([target.name, "--seed", &seed.to_string(), "--first", &first])
        .args(["--executions", &count, "--watched"])
        .arg(folder)
        // Each thread's own part of the heap takes address space.
        .env("MALLOC_ARENA_MAX", "2")
        .env_remove("RUST_BACKTRACE")
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(errors)?)
        .spawn()?)
}

/// Waits for the end; one that stands at an input for too long is killed, and has no status.
fn wait(child: &mut Child, folder: &Path) -> Result<Option<ExitStatus>> {
    let (mut at, mut since) = (None, Instant::now());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let now = progress(folder);
        if now != at {
            (at, since) = (now, Instant::now());
        } else if at.is_some() && since.elapsed() > HANGS {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn progress(folder: &Path) -> Option<Progress> {
    Progress::from_bytes(&std::fs::read(folder.join(PROGRESS)).ok()?)
}
