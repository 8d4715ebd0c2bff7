//! The process that is watched: it runs inputs one by one and leaves what it saw where a crash can't take it.

use std::any::Any;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit,
};

use crate::mutate::Random;
use crate::targets::{Reader, Target};

/// The file with a [`Progress`].
pub const PROGRESS: &str = "progress";
/// The file with a line a panic, `panic NUMBER MESSAGE`, and an input that took longer than those before or
/// too long, `slow NUMBER MILLISECONDS`.
pub const SEEN: &str = "seen";

/// The computing time that an input may take, in milliseconds: what else the machine does has no part in it.
pub const SLOW: u64 = 2000;
/// The bytes that the process may have beyond those it has before the first input. A model of a size that fits
/// is made, which is to take no longer than [`SLOW`].
const MEMORY: u64 = 128 << 20;

/// How far the process came.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The number of the input that is run, or the end.
    pub number: u64,
    /// Inputs that the reader accepted.
    pub accepted: u64,
    /// The most memory that the process held, in bytes.
    pub peak: u64,
}

impl Progress {
    pub fn to_bytes(self) -> Vec<u8> {
        [self.number, self.accepted, self.peak].map(u64::to_le_bytes).concat()
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut numbers = bytes.as_chunks().0.iter().copied().map(u64::from_le_bytes);
        Some(Self { number: numbers.next()?, accepted: numbers.next()?, peak: numbers.next()? })
    }
}

static PANICKED_AT: Mutex<String> = Mutex::new(String::new());

/// The inputs of a target.
pub struct Inputs<'a> {
    target: &'a Target,
    seed: u64,
    corpus: Vec<Vec<u8>>,
}

impl<'a> Inputs<'a> {
    /// The inputs that a seed makes of the target's corpus.
    pub fn new(target: &'a Target, seed: u64) -> Result<Self> {
        Ok(Self { target, seed, corpus: (target.corpus)().context(target.name)? })
    }

    /// An input by its number: first the corpus as it stands, then files that were changed.
    pub fn get(&self, number: u64) -> Vec<u8> {
        if let Some(whole) = usize::try_from(number).ok().and_then(|at| self.corpus.get(at)) {
            return whole.clone();
        }
        let mut random = Random::new(self.seed, number);
        let file = random.choose(&self.corpus).clone();
        (self.target.mutate)(&mut random, &file, &self.corpus)
    }
}

/// What became of an input.
enum Outcome {
    Accepted,
    Refused(String),
    Panicked(String),
}

fn run(reader: &mut Reader, input: &[u8]) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| reader(input))) {
        Ok(Ok(())) => Outcome::Accepted,
        Ok(Err(error)) => Outcome::Refused(format!("{error:#}")),
        Err(panic) => {
            let place = PANICKED_AT.lock().map(|place| place.clone()).unwrap_or_default();
            Outcome::Panicked(format!("{place}: {}", message(&*panic)).replace('\n', " "))
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Has panics noted instead of printed.
fn note_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if let (Ok(mut place), Some(at)) = (PANICKED_AT.lock(), panic.location()) {
            *place = format!("{}:{}", at.file(), at.line());
        }
    }));
}

/// Runs inputs of a target, and leaves in `folder` how far it came and what it saw.
pub fn all(target: &Target, seed: u64, numbers: Range<u64>, folder: &Path) -> Result<()> {
    note_panics();
    let inputs = Inputs::new(target, seed)?;
    let place = tempfile::tempdir_in(folder)?;
    let mut reader = (target.reader)(place.path()).context(target.name)?;
    limit()?;
    let progress = File::create(folder.join(PROGRESS))?;
    let note = |progress: &File, number, accepted| -> Result<()> {
        let now = Progress { number, accepted, peak: of_status("VmHWM:")? };
        Ok(progress.write_all_at(&now.to_bytes(), 0)?)
    };
    let mut seen = File::create(folder.join(SEEN))?;
    let (mut accepted, mut slowest) = (0, 0);
    for number in numbers.clone() {
        note(&progress, number, accepted)?;
        let input = inputs.get(number);
        let start = computed()?;
        let outcome = run(&mut reader, &input);
        let took = computed()? - start;
        if took > slowest.min(SLOW) {
            slowest = slowest.max(took);
            writeln!(seen, "slow {number} {took}")?;
        }
        match outcome {
            Outcome::Accepted => accepted += 1,
            Outcome::Refused(error) if number < inputs.corpus.len() as u64 => {
                bail!("{}: file {number} of the corpus is refused: {error}", target.name)
            }
            Outcome::Refused(_) => {}
            Outcome::Panicked(message) => writeln!(seen, "panic {number} {message}")?,
        }
    }
    note(&progress, numbers.end, accepted)
}

/// Limits what the process can have from now on, and has it end with the one that watches.
fn limit() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let set = |resource, bytes| {
        let maximum = getrlimit(resource).maximum;
        setrlimit(resource, Rlimit { current: Some(bytes), maximum })
    };
    set(Resource::Core, 0)?;
    Ok(set(Resource::As, of_status("VmSize:")? + MEMORY)?)
}

/// The computing time of all threads so far, in milliseconds.
pub fn computed() -> Result<u64> {
    let figures = std::fs::read_to_string("/proc/self/stat")?;
    // The second is the program's name, in parentheses; the 14th and 15th are times.
    let (_, behind) = figures.rsplit_once(')').context("no name")?;
    let times = behind.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks = times.sum::<Result<u64, _>>()?;
    Ok(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// One of the figures that the system keeps of this process, in bytes.
fn of_status(name: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such figure")?;
    let kilobytes = line.trim().strip_suffix("kB").context("no kilobytes")?;
    Ok(kilobytes.trim().parse::<u64>()? * 1024)
}

/// Runs one input here, and prints what became of it.
pub fn one(target: &Target, seed: u64, number: u64) -> Result<()> {
    note_panics();
    let input = Inputs::new(target, seed)?.get(number);
    let place = tempfile::tempdir()?;
    let mut reader = (target.reader)(place.path()).context(target.name)?;
    let start = Instant::now();
    let outcome = match run(&mut reader, &input) {
        Outcome::Accepted => "accepted".to_owned(),
        Outcome::Refused(error) => format!("refused: {error}"),
        Outcome::Panicked(message) => format!("PANICKED: {message}"),
    };
    println!("{} {number}: {outcome} ({:.3} s)", target.name, start.elapsed().as_secs_f64());
    Ok(())
}
