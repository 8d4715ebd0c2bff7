//! The processes that share a run's work. Work is done in batches, each by one process; what the batches gave
//! is exchanged, and every process adds it up in the batches' order, or in pairs. So the number of processes
//! changes no bit of a result. How bytes get from one process to another is each [`Peers`]' own.

mod sums;
mod tree;

use crate::{Error, Result};
pub(crate) use sums::{Part, Rounds};
pub(crate) use tree::Tree;

/// The processes that share a run's work, as one of them sees them. All make the same calls in the same order.
pub trait Peers: Send + Sync {
    /// The number of this process, counted from 0.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn size(&self) -> usize;

    /// Gives the i-th process `given[i]`, and returns what each process gave this one, in their order.
    ///
    /// # Errors
    /// If a process can't be reached.
    fn swap(&self, given: &[&[u8]]) -> Result<Vec<Vec<u8>>>;

    /// How many bytes this process has given to others so far.
    fn sent(&self) -> u64;
}

/// A single process, which does all the work.
pub struct Alone;

impl Peers for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn swap(&self, given: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        Ok(given.iter().map(|bytes| bytes.to_vec()).collect())
    }

    fn sent(&self) -> u64 {
        0
    }
}

/// Whether this process does the `batch`-th batch. Batches are dealt one by one, and neighbours are of similar
/// length, so that every process has as much to do.
pub fn does(peers: &dyn Peers, batch: usize) -> bool {
    batch % peers.size() == peers.rank()
}

/// The batches that this process does, of all.
pub fn own<T>(peers: &dyn Peers, batches: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    batches.skip(peers.rank()).step_by(peers.size())
}

/// What `f` makes of each batch, in the batches' order: of those that this process does, and of the others
/// as the processes that do them made it.
///
/// # Errors
/// If `f` fails, or a process can't be reached.
pub fn share<T>(
    peers: &dyn Peers,
    batches: impl IntoIterator<Item = T>,
    mut f: impl FnMut(T) -> Result<Vec<f64>>,
) -> Result<Vec<Vec<f64>>> {
    let (mut own, mut count) = (Vec::new(), 0);
    for batch in batches {
        if does(peers, count) {
            own.push(f(batch)?);
        }
        count += 1;
    }
    exchange(peers, count, own)
}

/// Gives every process what all `batches` gave, in their order. `own` is what this process's batches gave, in
/// theirs.
///
/// # Errors
/// If a process can't be reached, or gives something else.
pub fn exchange(peers: &dyn Peers, batches: usize, own: Vec<Vec<f64>>) -> Result<Vec<Vec<f64>>> {
    if peers.size() == 1 {
        return Ok(own);
    }
    let mut bytes = Vec::new();
    for numbers in &own {
        bytes.extend((numbers.len() as u64).to_le_bytes());
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    }
    let received = give_all(peers, &bytes)?;
    let mut rest: Vec<&[u8]> = received.iter().map(|bytes| &bytes[..]).collect();
    let of_batch = |batch: usize| {
        let bytes = &mut rest[batch % peers.size()];
        let length = u64::from_le_bytes(take(bytes)?) as usize;
        (0..length).map(|_| Ok(f64::from_le_bytes(take(bytes)?))).collect()
    };
    (0..batches).map(of_batch).collect()
}

/// Takes the next eight bytes.
fn take(bytes: &mut &[u8]) -> Result<[u8; 8]> {
    let (first, rest) = bytes.split_first_chunk().ok_or_else(|| {
        Error::input(
            "another process gave less than was to be exchanged; start the same program on all",
        )
    })?;
    *bytes = rest;
    Ok(*first)
}

/// Gives all processes the same bytes, and returns what each gave.
///
/// # Errors
/// If a process can't be reached.
pub fn give_all(peers: &dyn Peers, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    peers.swap(&vec![bytes; peers.size()])
}

/// What the first process makes, on all.
///
/// # Errors
/// If `make` fails, or a process can't be reached.
pub fn by_the_first(peers: &dyn Peers, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    let bytes = if peers.rank() == 0 { make()? } else { Vec::new() };
    Ok(give_all(peers, &bytes)?.swap_remove(0))
}

/// Waits until all processes are here.
///
/// # Errors
/// If one can't be reached.
pub fn wait(peers: &dyn Peers) -> Result<()> {
    if peers.size() > 1 {
        give_all(peers, &[])?;
    }
    Ok(())
}
