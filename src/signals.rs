//! SIGINT, SIGTERM and SIGHUP while a run is under way: the first asks it to end where it can go on from, a
//! second ends the program at once. One that the program was started to ignore, as `nohup` has it, is ignored.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use circuit_framework::{Error, progress};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use crate::job;

/// What a shell adds to a signal's number to make an exit code of it.
const BY_SIGNAL: i32 = 128;

/// Runs `work` with the signals caught. An error of one that was stopped is answered with `how_to_go_on`, and
/// the program's exit code tells the signal.
pub(crate) fn stoppable<T>(
    work: impl FnOnce() -> Result<T>,
    how_to_go_on: impl FnOnce() -> String,
) -> Result<T> {
    let received = Arc::new(AtomicUsize::new(0));
    let ignored = ignored();
    if !job::is_first() {
        // The first process ends where the work can be gone on with, and with it the job.
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            flag::register(signal, Arc::default())?;
        }
        return work();
    }
    for signal in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !ignored(*signal)) {
        // In this order: the first signal finds the flag unset.
        flag::register_conditional_shutdown(signal, BY_SIGNAL + signal, progress::stop_flag())?;
        flag::register_usize(signal, received.clone(), signal as usize)?;
        flag::register(signal, progress::stop_flag())?;
    }
    work().map_err(|error| match is_stop(&error) {
        true => {
            let signal = received.load(Ordering::Relaxed) as i32;
            anyhow::Error::new(Stopped { signal, how_to_go_on: how_to_go_on() })
        }
        false => error,
    })
}

/// Which signals the program ignores, where the system tells.
fn ignored() -> impl Fn(i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    move |signal| mask >> (signal - 1) & 1 == 1
}

/// Whether the error is that of a run that was asked to stop.
pub(crate) fn is_stop(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::Stopped))
}

/// A run that a signal stopped.
#[derive(Debug)]
pub(crate) struct Stopped {
    signal: i32,
    how_to_go_on: String,
}

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stopped by signal {}; {}", self.signal, self.how_to_go_on)
    }
}

impl std::error::Error for Stopped {}

impl Stopped {
    pub(crate) fn exit_code(&self) -> u8 {
        (BY_SIGNAL + self.signal) as u8
    }
}
