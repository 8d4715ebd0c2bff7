//! Runs every combination of an experiment's sweep that fits, each into a folder of its own, and ends
//! with the table that compares them. What is done stays done: run again, it goes on where it stopped.
//! A run that fails is shown as failed, and the others are run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use circuit_framework::run::experiment::Experiment;
use circuit_framework::run::sweep::Combination;
use circuit_framework::{files, plugin::guard};
use serde::Serialize;

use super::{compare, report, with_runner};
use crate::flags;
use crate::print::say;
use crate::signals::is_stop;

/// A combination and its folder.
struct Cell {
    experiment: Experiment,
    folder: PathBuf,
}

/// What became of a combination.
enum Outcome {
    Done,
    /// It doesn't fit, and why.
    Skipped(String),
    /// Its run began and ended in an error.
    Failed(String),
}

/// A combination without a result: an entry of `skipped.json` or `failed.json`.
#[derive(Serialize)]
struct Missing {
    name: String,
    reason: String,
}

pub(crate) fn run(combinations: Vec<Combination>, origin: &str, folder: &Path) -> Result<()> {
    let total = combinations.len();
    let cells = (combinations.into_iter())
        .map(|combination| Cell::new(combination, origin, folder))
        .collect::<Result<Vec<_>>>()?;
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let (mut rows, mut skipped, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for (index, cell) in cells.into_iter().enumerate() {
        let name = cell.experiment.name.clone();
        say!("{}/{total} {name}", index + 1);
        match cell.run()? {
            Outcome::Done => {
                report::write_own(&cell.folder);
                compare::add_run(&mut rows, &cell.folder.display().to_string())?;
            }
            Outcome::Skipped(reason) => {
                say!("    skipped: {reason}");
                skipped.push(Missing { name, reason });
            }
            Outcome::Failed(reason) => {
                say!("    failed: {reason}");
                compare::add_failed(&mut rows, &cell.experiment, &reason);
                failed.push(Missing { name, reason });
            }
        }
    }
    files::write_json(&folder.join("skipped.json"), &skipped)?;
    files::write_json(&folder.join("failed.json"), &failed)?;
    if skipped.len() == total {
        bail!("{origin}: none of the sweep's {total} combinations fits; the reasons are above");
    }
    let table = compare::markdown(&rows);
    files::write_atomically(&folder.join("compare.md"), table.as_bytes())?;
    files::write_json(&folder.join("compare.json"), &rows)?;
    report::write_own(folder);
    say!("\n{table}\nwritten to {}", folder.display());
    if !failed.is_empty() {
        let names: Vec<&str> = failed.iter().map(|missing| &missing.name[..]).collect();
        let file = folder.join("failed.json");
        bail!(
            "{} of {total} runs failed: {}; see {}",
            failed.len(),
            names.join(", "),
            file.display()
        );
    }
    Ok(())
}

impl Cell {
    /// # Errors
    /// If a setting is wrong, or something else is in the folder.
    fn new(Combination { name, experiment }: Combination, origin: &str, to: &Path) -> Result<Self> {
        let mut experiment = flags::from_table(experiment, origin)?;
        let folder = to.join(&name);
        experiment.name = name;
        let cell = Self { experiment, folder };
        let config = cell.folder.join("config.toml");
        let is_ours = || -> Result<bool> {
            Ok(config.exists() && files::read_text(&config)? == cell.experiment.resolved()?)
        };
        if cell.folder.exists() && !is_ours()? {
            bail!(
                "{}: there is something else, or this run with other settings; name another folder \
                 with --out",
                cell.folder.display()
            );
        }
        Ok(cell)
    }

    /// Runs the combination, unless an earlier call has. What that left half done is gone on with.
    fn run(&self) -> Result<Outcome> {
        if self.folder.join("summary.json").exists() {
            say!("    done before");
            return Ok(Outcome::Done);
        }
        let mut fits = false;
        let mut run = || {
            with_runner(&self.experiment, |runner| {
                let examples = runner.prepare()?;
                fits = true;
                match self.folder.exists() {
                    true => runner.resume_prepared(examples, &self.folder)?,
                    false => runner.run_prepared(examples, &self.folder)?,
                };
                Ok(())
            })
        };
        let done = guard::caught("the run", || Ok(run())).map_err(anyhow::Error::from);
        Ok(match done.flatten() {
            Ok(()) => Outcome::Done,
            Err(error) if is_stop(&error) => return Err(error),
            Err(error) if fits => Outcome::Failed(format!("{error:#}")),
            Err(error) => Outcome::Skipped(format!("{error:#}")),
        })
    }
}
