//! Experiments, sweeps among them.

use std::path::Path;

use anyhow::Result;
use circuit_framework::run::experiment::Experiment;
use circuit_framework::run::sweep::combinations;

use super::{Reader, Target, checked, repository};
use crate::mutate;

pub fn targets() -> Vec<Target> {
    vec![Target::new("experiment", mutate::json::mutate_toml, experiments, experiment)]
}

/// The experiments that are shipped, everything there is to set, and a sweep.
fn experiments() -> Result<Vec<Vec<u8>>> {
    let mut paths: Vec<_> = std::fs::read_dir(repository("experiments"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let mut all: Vec<Vec<u8>> =
        paths.iter().map(|path| Ok(std::fs::read(path)?)).collect::<Result<_>>()?;
    all.push(Experiment::default().resolved()?.into_bytes());
    all.push(SWEEP.into());
    Ok(all)
}

const SWEEP: &str = "name = 'sweep'\n[task]\nname = 'agreement'\n[sweep]\nseeds = [1, 2]\n\
                     tasks = [{ name = 'ioi' }, { name = 'agreement' }]\nmodels = [{ path = 'embedded' }]\n\
                     selectors = [{ name = 'nodes' }, { name = 'lora', rank = 2 }]\n";

fn experiment(_: &Path) -> Result<Reader> {
    Ok(Box::new(|input| {
        let table: toml::Table = std::str::from_utf8(input)?.parse()?;
        match checked(combinations(&table, "fuzz.toml"))? {
            Some(all) => all.iter().try_for_each(|one| read(&one.experiment)),
            None => read(&table),
        }
    }))
}

fn read(table: &toml::Table) -> Result<()> {
    let experiment = checked(Experiment::from_table(table.clone(), "fuzz.toml"))?;
    checked(experiment.plugins())?;
    checked(experiment.resolved())?;
    Ok(())
}
