//! The processes of one job: those that `mpirun` started beside this one, or this one alone. The first prints
//! and writes; the others only compute.

#[cfg(feature = "mpi")]
mod mpi;

use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::{Result, bail};
use circuit_framework::files;
use circuit_framework::peers::{Alone, Peers};
use circuit_framework::run::experiment::ModelChoice;
use clap::ArgMatches;

use crate::{print, progress};

/// The processes of this job, once there are several.
static PEERS: OnceLock<&'static dyn Peers> = OnceLock::new();

/// The processes that share this one's work.
pub(crate) fn peers() -> &'static dyn Peers {
    *PEERS.get().unwrap_or(&(&Alone as &dyn Peers))
}

/// Whether this is the process that prints and writes.
pub(crate) fn is_first() -> bool {
    peers().rank() == 0
}

/// Finds the other processes, if this one was started with others; whoever isn't the first is silent from now
/// on.
///
/// # Errors
/// If this program knows no other processes, or can't reach them.
pub(crate) fn join() -> Result<()> {
    let Some(size) = size_by_launcher().filter(|&size| size > 1) else {
        return Ok(());
    };
    let peers = connect(size)?;
    let _ = PEERS.set(peers);
    if !is_first() {
        print::be_silent();
        progress::be_quiet();
        files::write_nothing();
    }
    Ok(())
}

#[cfg(feature = "mpi")]
fn connect(_size: usize) -> Result<&'static dyn Peers> {
    Ok(Box::leak(Box::new(mpi::Mpi::connect()?)))
}

#[cfg(not(feature = "mpi"))]
fn connect(size: usize) -> Result<&'static dyn Peers> {
    bail!(
        "this is one of {size} processes that mpirun started, but the program was built without MPI; build \
           it with --features mpi"
    )
}

/// How many processes a launcher started, as it tells them.
fn size_by_launcher() -> Option<usize> {
    let of = |name: &str| std::env::var(name).ok()?.parse().ok();
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"].into_iter().find_map(of)
}

/// The model, on the GPU of this process's own number among those of its machine where it is to be on any.
pub(crate) fn with_own_device(model: &ModelChoice) -> ModelChoice {
    let mut model = model.clone();
    if peers().size() > 1 && model.device.0 == "cuda" {
        let of = |name: &str| std::env::var(name).ok()?.parse().ok();
        let number: Option<usize> =
            ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"].into_iter().find_map(of);
        model.device.0 = format!("cuda:{}", number.unwrap_or(0));
    }
    model
}

/// Commands whose work several processes share.
const SHARED: [&str; 7] = ["run", "tune", "discover", "eval", "faithfulness", "analyze", "bench"];

/// Refuses a command that is one process's work.
///
/// # Errors
/// Naming those that are not.
pub(crate) fn check_shared(matches: &ArgMatches) -> Result<()> {
    match matches.subcommand_name() {
        Some(name) if peers().size() > 1 && !SHARED.contains(&name) => {
            bail!(
                "`{name}` is one process's work; start it without mpirun, which is for {}",
                SHARED.join(", ")
            )
        }
        _ => Ok(()),
    }
}

/// Ends the job: all processes together where all is well, at once where this one failed. `message` says why;
/// what all processes find is said by the first.
pub(crate) fn end(code: u8, message: Option<&str>) -> ExitCode {
    #[cfg(feature = "mpi")]
    if peers().size() > 1 {
        mpi::end(peers().rank(), code, message);
    }
    if let Some(message) = message {
        print::complain(message);
    }
    ExitCode::from(code)
}
