//! Runs every combination of an experiment's sweep that fits, each into a folder of its own, and ends
//! with the table that compares them. What is done stays done: run again, it goes on where it stopped.
//! A run that fails is shown as failed, and the others are run. Several processes may share a sweep.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use circuit_framework::run::experiment::Experiment;
use circuit_framework::run::sweep::Combination;
use circuit_framework::run::{Inputs, finished, is_finished};
use circuit_framework::{files, panics, progress};
use serde::{Deserialize, Serialize};

use super::share::{self, Share};
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

/// What the names of files end with that lie beside a run's folder: the lock of the process that runs it, and why
/// it has no figures.
const LOCKED: &str = ".lock";
const OUTCOME: &str = ".outcome.json";

/// The file that is locked while a process runs the sweep; a folder that has it is a sweep's.
const LOCK: &str = "sweep.lock";

/// Makes the sweep's folder where it isn't there, and locks it as long as what is returned lives: for this process
/// alone, or for all that run shares of it.
///
/// # Errors
/// If another process has locked it, or it holds somebody else's files.
fn lock(folder: &Path, share: Share) -> Result<File> {
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
    let locked = match share {
        Share::All => file.try_lock(),
        Share::Part { .. } | Share::Claimed => file.try_lock_shared(),
    };
    match locked {
        Err(TryLockError::WouldBlock) => bail!(
            "{}: another process is running this sweep; wait for it, stop it first, or run shares with --shard",
            folder.display()
        ),
        // Some shared folders know no locks; each run has its own beside.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// How long a process that waits for others' combinations waits before it looks again.
const WAIT: Duration = Duration::from_millis(500);

pub(crate) fn run(
    combinations: Vec<Combination>,
    share: Share,
    origin: &str,
    folder: &Path,
) -> Result<()> {
    let cells = (combinations.into_iter())
        .map(|combination| Cell::new(combination, origin, folder))
        .collect::<Result<Vec<_>>>()?;
    let _lock = lock(folder, share)?;
    let failed = run_share(&cells, share)?;
    write_tables(&cells, origin, folder)?;
    if !failed.is_empty() {
        let file = folder.join(FAILED);
        bail!(
            "{} of {} runs failed: {}; see {}",
            failed.len(),
            cells.len(),
            failed.join(", "),
            file.display()
        );
    }
    Ok(())
}

/// Runs the cells of a share, and returns the names of those that failed. A claimed share ends when every cell
/// has been run, by whatever process: one whose process ends before is taken over.
fn run_share(cells: &[Cell], share: Share) -> Result<Vec<&str>> {
    let mut failed = Vec::new();
    let own = cells.iter().enumerate().filter(|(index, _)| share.has(*index));
    // Cells that ended without figures while this process ran aren't tried again by it.
    let mut left: Vec<(usize, &Cell, Option<Outcome>)> =
        own.map(|(index, cell)| Ok((index, cell, cell.outcome()?))).collect::<Result<_>>()?;
    while !left.is_empty() {
        let mut others = Vec::new();
        for (index, cell, before) in left {
            let _claim = match share {
                // It has the whole sweep's lock, and the file system may know none.
                Share::All => None,
                Share::Part { .. } | Share::Claimed => {
                    let claim = share::claim(&cell.beside(LOCKED))?;
                    if claim.is_none() {
                        others.push((index, cell, before));
                        continue;
                    }
                    claim
                }
            };
            if cell.outcome()? != before {
                continue;
            }
            let name = &cell.experiment.name[..];
            say!("{}/{} {name}", index + 1, cells.len());
            let outcome = cell.run()?;
            if let Some(reason) = outcome.reason() {
                say!("    {}: {reason}", outcome.word());
            }
            if matches!(outcome, Outcome::Failed(_)) {
                failed.push(name);
            }
            cell.note(&outcome)?;
        }
        if let (Share::Part { .. }, Some((_, cell, _))) = (share, others.first()) {
            bail!("{}: another process is running it; each part is for one", cell.folder.display());
        }
        if !others.is_empty() {
            progress::check_stop()?;
            std::thread::sleep(WAIT);
        }
        left = others;
    }
    Ok(failed)
}

/// Writes what is known of all cells, whoever ran them, and shows it.
fn write_tables(cells: &[Cell], origin: &str, folder: &Path) -> Result<()> {
    let (mut rows, mut skipped, mut failed, mut missing) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for cell in cells {
        let name = cell.experiment.name.clone();
        match cell.outcome()? {
            Some(Outcome::Done) => compare::add_run(&mut rows, &cell.folder.display().to_string())?,
            Some(Outcome::Skipped(reason)) => skipped.push(Missing { name, reason }),
            Some(Outcome::Failed(reason)) => {
                compare::add_failed(&mut rows, &cell.experiment, &reason);
                failed.push(Missing { name, reason });
            }
            None => missing += 1,
        }
    }
    files::write_json(&folder.join(SKIPPED), &skipped)?;
    files::write_json(&folder.join(FAILED), &failed)?;
    if skipped.len() == cells.len() {
        bail!(
            "{origin}: none of the sweep's {} combinations fits; the reasons are above",
            cells.len()
        );
    }
    let table = compare::markdown(&rows);
    files::write_atomically(&folder.join(TABLE), table.as_bytes())?;
    files::write_json(&folder.join(ROWS), &rows)?;
    report::write_own(folder);
    say!("\n{table}\nwritten to {}", folder.display());
    if missing > 0 {
        say!("{missing} of {} runs are other processes' and not finished yet", cells.len());
    }
    Ok(())
}

impl Outcome {
    fn reason(&self) -> Option<&str> {
        match self {
            Self::Done => None,
            Self::Skipped(reason) | Self::Failed(reason) => Some(reason),
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Skipped(_) => "skipped",
            Self::Failed(_) => "failed",
        }
    }
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

    /// A file of this cell's beside its folder.
    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.folder.clone().into_os_string();
        name.push(ending);
        name.into()
    }

    /// What became of the cell so far, in whatever process; none where nothing is known yet.
    fn outcome(&self) -> Result<Option<Outcome>> {
        if is_finished(&self.folder) {
            return Ok(Some(Outcome::Done));
        }
        let file = self.beside(OUTCOME);
        Ok(if file.exists() { Some(files::read_json(&file)?) } else { None })
    }

    /// Leaves a word of a run without figures to the other processes, and to the tables.
    fn note(&self, outcome: &Outcome) -> Result<()> {
        let file = self.beside(OUTCOME);
        if *outcome != Outcome::Done {
            return Ok(files::write_json(&file, outcome)?);
        }
        if file.exists() {
            std::fs::remove_file(&file).with_context(|| file.display().to_string())?;
        }
        report::write_own(&self.folder);
        Ok(())
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
        if finished(&self.folder)?.is_some() {
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
