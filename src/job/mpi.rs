//! Processes that MPI connects. What is exchanged goes through the memory of the host, a message to each other
//! process; a library that sends from one GPU to another can take its place behind the same trait.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use circuit_framework::peers::Peers;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::point_to_point::{Destination, Source, send_receive_into};
use mpi::topology::{Communicator, SimpleCommunicator};

use crate::print;

/// Bytes of one message: MPI counts in 32 bits.
const MESSAGE: usize = 1 << 30;

/// How long a process waits before it ends the job for an error that the first one may be about to tell too.
const PATIENCE: Duration = Duration::from_secs(2);

/// MPI, from its beginning to its end.
static UNIVERSE: Mutex<Option<Universe>> = Mutex::new(None);

/// The processes of `MPI_COMM_WORLD`.
pub(super) struct Mpi {
    rank: usize,
    size: usize,
    sent: AtomicU64,
}

impl Mpi {
    /// Begins MPI.
    ///
    /// # Errors
    /// If it has begun already, or can't be called from more than one thread, one at a time.
    pub(super) fn connect() -> Result<Self> {
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized)
        else {
            bail!("MPI is in use already");
        };
        if threading < Threading::Serialized {
            bail!(
                "this MPI is not for programs with threads; take one that allows MPI_THREAD_SERIALIZED"
            );
        }
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        *UNIVERSE.lock().unwrap_or_else(PoisonError::into_inner) = Some(universe);
        Ok(Self { rank, size, sent: AtomicU64::new(0) })
    }
}

impl Peers for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    /// Each process gives to the next and takes from the one before, then to the next but one, and so on: at no
    /// time do two give to the same.
    fn swap(&self, given: &[&[u8]]) -> circuit_framework::Result<Vec<Vec<u8>>> {
        // One thread at a time, whichever it is.
        let _turn = UNIVERSE.lock().unwrap_or_else(PoisonError::into_inner);
        let world = SimpleCommunicator::world();
        let mut received = vec![Vec::new(); self.size];
        received[self.rank] = given[self.rank].to_vec();
        for distance in 1..self.size {
            let to = (self.rank + distance) % self.size;
            let from = (self.rank + self.size - distance) % self.size;
            let (next, before) =
                (world.process_at_rank(to as i32), world.process_at_rank(from as i32));
            let mut length = 0u64;
            send_receive_into(&(given[to].len() as u64), &next, &mut length, &before);
            let mut bytes = vec![0u8; length as usize];
            let (own, mut others) = (given[to].chunks(MESSAGE), bytes.chunks_mut(MESSAGE));
            for own in own {
                match others.next() {
                    Some(others) => {
                        send_receive_into(own, &next, others, &before);
                    }
                    None => next.send(own),
                }
            }
            for others in others {
                before.receive_into(others);
            }
            self.sent.fetch_add(given[to].len() as u64, Ordering::Relaxed);
            received[from] = bytes;
        }
        Ok(received)
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// Ends MPI, waiting for the others; or, with a message, all processes of the job.
pub(super) fn end(rank: usize, code: u8, message: Option<&str>) {
    let mut universe = UNIVERSE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(message) = message {
        let told = match rank {
            0 => message.to_owned(),
            rank => {
                // An error that all find is told once: the first ends this process meanwhile.
                std::thread::sleep(PATIENCE);
                format!("rank {rank}: {message}")
            }
        };
        print::complain(&told);
        SimpleCommunicator::world().abort(i32::from(code));
    }
    drop(universe.take());
}
