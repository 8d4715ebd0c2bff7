//! How long work says where it is, and how it is asked to stop. The framework prints nothing; whoever runs
//! it decides what to show.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use crate::{Error, Result};

/// Where a piece of work stands.
#[derive(Clone, Debug)]
pub struct Progress {
    /// What is being done: "discover", "tune", "evaluate".
    pub stage: &'static str,
    pub done: usize,
    pub total: usize,
    /// The name and current value of what is worth watching: the loss, the metric.
    pub figure: Option<(&'static str, f64)>,
}

/// Receives progress.
pub type Report<'a> = dyn Fn(Progress) + 'a;

/// Shows nothing.
pub fn silent(_: Progress) {}

/// Set once the program was asked to stop.
static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// The flag that asks what is running to end at the next place that it can go on from, for a signal's handler
/// to set.
pub fn stop_flag() -> Arc<AtomicBool> {
    STOP.clone()
}

/// How many pieces of work must not be ended in the middle.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// Work that a stop has to wait for, until it is dropped.
pub(crate) struct Held;

/// Has a stop wait until what is returned is dropped.
#[must_use = "a stop waits until this is dropped"]
pub(crate) fn hold_stop() -> Held {
    HELD.fetch_add(1, Ordering::Relaxed);
    Held
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An error once the flag is set, and nothing has it wait.
///
/// # Errors
/// [`Error::Stopped`].
pub fn check_stop() -> Result<()> {
    match STOP.load(Ordering::Relaxed) && HELD.load(Ordering::Relaxed) == 0 {
        true => Err(Error::Stopped),
        false => Ok(()),
    }
}
