//! Runs every combination of an experiment's matrix that fits, each into a folder of its own, and ends
//! with the table that compares them. What is done stays done: run again, it goes on where it stopped.

use std::path::Path;

use anyhow::{Context, Result, bail};
use circuit_framework::experiment::Experiment;
use circuit_framework::files;
use circuit_framework::matrix::Combination;
use serde::Serialize;

use super::{compare, with_runner};
use crate::flags;

/// A combination that doesn't fit.
#[derive(Serialize)]
struct Skipped {
    name: String,
    reason: String,
}

pub(crate) fn run(combinations: Vec<Combination>, origin: &str, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let (mut done, mut skipped) = (Vec::new(), Vec::new());
    let total = combinations.len();
    for (index, Combination { name, experiment }) in combinations.into_iter().enumerate() {
        println!("{}/{total} {name}", index + 1);
        let mut experiment = flags::from_table(experiment, origin)?;
        experiment.name.clone_from(&name);
        let cell = folder.join(&name);
        if !is_done(&experiment, &cell)?
            && let Some(reason) = run_one(&experiment, &cell)?
        {
            println!("    skipped: {reason}");
            skipped.push(Skipped { name, reason });
            continue;
        }
        done.push(cell.display().to_string());
    }
    files::write_json(&folder.join("skipped.json"), &skipped)?;
    if done.is_empty() {
        bail!("{origin}: none of the matrix's {total} combinations fits; the reasons are above");
    }
    let rows = compare::rows(&done)?;
    let table = compare::markdown(&rows);
    files::write_atomically(&folder.join("compare.md"), table.as_bytes())?;
    files::write_json(&folder.join("compare.json"), &rows)?;
    print!("\n{table}\nwritten to {}\n", folder.display());
    Ok(())
}

/// Whether an earlier run has done this one. What it left half done is cleared away; what is not of
/// this experiment is left alone.
fn is_done(experiment: &Experiment, cell: &Path) -> Result<bool> {
    if !cell.exists() {
        return Ok(false);
    }
    let config = cell.join("config.toml");
    let same = config.exists() && files::read_text(&config)? == experiment.resolved()?;
    if !same {
        bail!(
            "{}: there is something else, or this run with other settings; name another folder \
             with --out",
            cell.display()
        );
    }
    if cell.join("summary.json").exists() {
        println!("    done before");
        return Ok(true);
    }
    std::fs::remove_dir_all(cell).with_context(|| cell.display().to_string())?;
    Ok(false)
}

/// Runs one combination; the reason if it doesn't fit.
fn run_one(experiment: &Experiment, cell: &Path) -> Result<Option<String>> {
    let mut fits = false;
    let outcome = with_runner(experiment, |runner| {
        runner.prepare()?;
        fits = true;
        runner.run(cell)?;
        Ok(())
    });
    match outcome {
        Ok(()) => Ok(None),
        Err(error) if !fits => Ok(Some(format!("{error:#}"))),
        Err(error) => Err(error).with_context(|| experiment.name.clone()),
    }
}
