//! Runs every combination of an experiment's sweep that fits, each into a folder of its own, and ends
//! with the table that compares them. What is done stays done: run again, it goes on where it stopped.
//! A run that fails is shown as failed, and the others are run.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use circuit_framework::run::experiment::Experiment;
use circuit_framework::run::sweep::Combination;
use circuit_framework::run::{Inputs, is_finished};
use circuit_framework::{files, panics};
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

/// What a sweep leaves beside its runs.
const SKIPPED: &str = "skipped.json";
const FAILED: &str = "failed.json";
const TABLE: &str = "compare.md";
const ROWS: &str = "compare.json";

/// The file that is locked while a process runs the sweep; a folder that has it is a sweep's.
const LOCK: &str = "sweep.lock";

/// Makes the sweep's folder where it isn't there, and locks it as long as what is returned lives.
///
/// # Errors
/// If another process has locked it, or it holds somebody else's files.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    if !path.exists() {
        let own = [SKIPPED, FAILED, TABLE, ROWS].map(|name| folder.join(name));
        if let Some(file) = own.iter().find(|file| file.symlink_metadata().is_ok()) {
            bail!(
                "{}: is not this sweep's and would be written over; name another folder with --out",
                file.display()
            );
        }
    }
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    files::clear_left_behind(folder);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => bail!(
            "{}: another process is running this sweep; wait for it, or stop it first",
            folder.display()
        ),
        // Some shared folders know no locks; each run has its own beside.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

pub(crate) fn run(combinations: Vec<Combination>, origin: &str, folder: &Path) -> Result<()> {
    let total = combinations.len();
    let cells = (combinations.into_iter())
        .map(|combination| Cell::new(combination, origin, folder))
        .collect::<Result<Vec<_>>>()?;
    let _lock = lock(folder)?;
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
    files::write_json(&folder.join(SKIPPED), &skipped)?;
    files::write_json(&folder.join(FAILED), &failed)?;
    if skipped.len() == total {
        bail!("{origin}: none of the sweep's {total} combinations fits; the reasons are above");
    }
    let table = compare::markdown(&rows);
    files::write_atomically(&folder.join(TABLE), table.as_bytes())?;
    files::write_json(&folder.join(ROWS), &rows)?;
    report::write_own(folder);
    say!("\n{table}\nwritten to {}", folder.display());
    if !failed.is_empty() {
        let names: Vec<&str> = failed.iter().map(|missing| &missing.name[..]).collect();
        let file = folder.join(FAILED);
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
    fn new(combination: Combination, origin: &str, to: &Path) -> Result<Self> {
        let Combination { name, mut experiment } = combination;
        let folder = to.join(&name);
        experiment.insert("name".to_owned(), name.into());
        let experiment = flags::from_table(experiment, origin)?;
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

    /// Puts what an earlier call left under another name, where a file of the model or the data is another one
    /// now: its figures say nothing of that.
    fn put_aside_where_stale(&self) -> Result<()> {
        let Some(began) = Inputs::read(&self.folder)? else { return Ok(()) };
        let now = Inputs::of(&self.experiment)?;
        let Some(changed) = began.changed(&now) else { return Ok(()) };
        if !Path::new(changed).exists() {
            say!("    {changed} is gone; what is done is kept");
            return Ok(());
        }
        let aside = |number: usize| format!("{}.stale-{number}", self.folder.display());
        let Some(aside) = (1..).map(aside).find(|path| !Path::new(path).exists()) else {
            return Ok(());
        };
        std::fs::rename(&self.folder, &aside).with_context(|| aside.clone())?;
        say!("    stale: {changed} is another file now; what was done before is in {aside}");
        Ok(())
    }

    /// Runs the combination, unless an earlier call has. What that left half done is gone on with.
    fn run(&self) -> Result<Outcome> {
        self.put_aside_where_stale()?;
        if is_finished(&self.folder) {
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
        let done = panics::caught("the run", || Ok(run())).map_err(anyhow::Error::from);
        Ok(match done.flatten() {
            Ok(()) => Outcome::Done,
            Err(error) if is_stop(&error) => return Err(error),
            Err(error) if fits => Outcome::Failed(format!("{error:#}")),
            Err(error) => Outcome::Skipped(format!("{error:#}")),
        })
    }
}
