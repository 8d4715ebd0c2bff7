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

use anyhow::{Context, Result};

use crate::mutate::Random;
use crate::targets::{Reader, Target};

/// The file with the number of the input that is run, and of those that the reader took so far.
pub const PROGRESS: &str = "progress";
/// The file with a line a panic, `panic NUMBER MESSAGE`, and a new slowest, `slow NUMBER MILLISECONDS`.
pub const SEEN: &str = "seen";

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
    Taken,
    Refused(String),
    Panicked(String),
}

fn run(reader: &mut Reader, input: &[u8]) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| reader(input))) {
        Ok(Ok(())) => Outcome::Taken,
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
    let progress = File::create(folder.join(PROGRESS))?;
    let mut seen = File::create(folder.join(SEEN))?;
    let (mut taken, mut slowest) = (0u64, 0);
    for number in numbers.clone() {
        note(&progress, number, taken)?;
        let input = inputs.get(number);
        let start = Instant::now();
        let outcome = run(&mut reader, &input);
        let took = start.elapsed().as_millis();
        if took > slowest {
            slowest = took;
            writeln!(seen, "slow {number} {took}")?;
        }
        match outcome {
            Outcome::Taken => taken += 1,
            Outcome::Refused(_) => {}
            Outcome::Panicked(message) => writeln!(seen, "panic {number} {message}")?,
        }
    }
    note(&progress, numbers.end, taken)
}

fn note(progress: &File, number: u64, taken: u64) -> Result<()> {
    let bytes = [number, taken].map(u64::to_le_bytes).concat();
    Ok(progress.write_all_at(&bytes, 0)?)
}

/// Runs one input here, and prints what became of it.
pub fn one(target: &Target, seed: u64, number: u64) -> Result<()> {
    note_panics();
    let input = Inputs::new(target, seed)?.get(number);
    let place = tempfile::tempdir()?;
    let mut reader = (target.reader)(place.path()).context(target.name)?;
    let start = Instant::now();
    let outcome = match run(&mut reader, &input) {
        Outcome::Taken => "taken".to_owned(),
        Outcome::Refused(error) => format!("refused: {error}"),
        Outcome::Panicked(message) => format!("PANICKED: {message}"),
    };
    println!("{} {number}: {outcome} ({:.3} s)", target.name, start.elapsed().as_secs_f64());
    Ok(())
}
