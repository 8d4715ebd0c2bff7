//! Whether the processes that share a run were started alike: what they are, what they were told and what they
//! read is held against the first one's, so that a difference is an error at the start and no wrong number later.

use std::collections::BTreeMap;

use super::inputs::{Inputs, hash};
use crate::peers::{self, Peers};
use crate::run::experiment::Experiment;
use crate::{Error, Result, refuse};

/// Refuses to go on with processes of different programs, settings or input files. `arguments` are what this
/// one was started with.
///
/// # Errors
/// Naming the first process that differs from the first, and in what; if a file can't be read.
pub fn check_alike(peers: &dyn Peers, experiment: &Experiment, arguments: &[String]) -> Result<()> {
    if peers.size() == 1 {
        return Ok(());
    }
    let program = std::env::current_exe()
        .map_err(|error| Error::input(format!("the program's own file can't be found: {error}")))?;
    let settings = format!("{}\n{}", experiment.resolved()?, arguments.join(" "));
    let inputs = Inputs::of(experiment)?;
    let own: Vec<(&str, String)> =
        vec![("another program", hash(&program)?), ("other settings", settings)];
    check_equal(peers, &own)?;
    let misfit = |error| Error::input(format!("the inputs' hashes can't be exchanged: {error}"));
    let all = peers::give_all(peers, &serde_json::to_vec(&inputs).map_err(misfit)?)?;
    let all = all.iter().map(|bytes| serde_json::from_slice(bytes).map_err(misfit));
    let all: Vec<Inputs> = all.collect::<Result<_>>()?;
    for (rank, other) in all.iter().enumerate() {
        if let Some(file) = all[0].changed(other) {
            refuse!(
                "{file}: is another file on rank {rank} than on rank 0; give all ranks the same"
            );
        }
    }
    Ok(())
}

/// Refuses to go on with a process that has something else than the first; each has what it is called where it
/// differs.
pub(super) fn check_equal(peers: &dyn Peers, own: &[(&str, String)]) -> Result<()> {
    if peers.size() == 1 {
        return Ok(());
    }
    let own: BTreeMap<&str, &String> = own.iter().map(|(name, value)| (*name, value)).collect();
    let bytes = serde_json::to_vec(&own).unwrap_or_default();
    let all = peers::give_all(peers, &bytes)?;
    let read = |bytes: &Vec<u8>| -> BTreeMap<String, String> {
        serde_json::from_slice(bytes).unwrap_or_default()
    };
    let first = read(&all[0]);
    for (rank, other) in all.iter().map(read).enumerate() {
        if let Some((name, _)) = first.iter().find(|(name, value)| other.get(*name) != Some(value))
        {
            refuse!(
                "rank {rank} has {name} than rank 0; start the same on all ranks, in a folder that all see"
            );
        }
    }
    Ok(())
}
