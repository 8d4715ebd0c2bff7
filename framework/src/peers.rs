//! The processes that share a run's work. Work is done in batches, each by one process; what the batches gave
//! is exchanged, and every process adds it up in the batches' order. So the number of processes changes no
//! bit of a result.

use crate::Result;

/// The processes that share a run's work, as one of them sees them.
pub trait Peers: Send + Sync {
    /// Whether this process does the `batch`-th batch; exactly one does.
    fn does(&self, batch: usize) -> bool;

    /// Gives every process what all `batches` gave, in their order. `own` is what this process's batches
    /// gave, in theirs.
    ///
    /// # Errors
    /// If a process can't be reached.
    fn exchange(&self, batches: usize, own: Vec<Vec<f64>>) -> Result<Vec<Vec<f64>>>;
}

/// What `f` makes of each batch, in the batches' order: of those that this process does, and of the others
/// as the processes that do them made it.
///
/// # Errors
/// As `f`, and if a process can't be reached.
pub fn share<T>(
    peers: &dyn Peers,
    batches: impl IntoIterator<Item = T>,
    mut f: impl FnMut(T) -> Result<Vec<f64>>,
) -> Result<Vec<Vec<f64>>> {
    let (mut own, mut count) = (Vec::new(), 0);
    for batch in batches {
        if peers.does(count) {
            own.push(f(batch)?);
        }
        count += 1;
    }
    peers.exchange(count, own)
}

/// A single process, which does all the work.
pub struct Alone;

impl Peers for Alone {
    fn does(&self, _batch: usize) -> bool {
        true
    }

    fn exchange(&self, _batches: usize, own: Vec<Vec<f64>>) -> Result<Vec<Vec<f64>>> {
        Ok(own)
    }
}
