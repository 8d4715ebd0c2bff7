//! What a run that was ended goes on from: the state of tuning after some step, as it grows, and the stages
//! that are finished. Both are in the run's folder `state`, which a finished run doesn't have.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::summary::{SUMMARY, Summary};
use super::together;
use crate::evaluation::figures;
use crate::evaluation::task::Figures;
use crate::model::Model;
use crate::peers::{self, Peers};
use crate::tuning::{State, Tuning};
use crate::{Error, Result, files, progress, refuse};

/// The folder of what a run goes on from.
pub(super) const STATE: &str = "state";

/// How many states are kept: the last may be of the step that failed.
const KEPT: usize = 2;

/// The states of a tuning under way.
pub(super) struct Checkpoints {
    folder: PathBuf,
    every: usize,
    pause: Duration,
    last: Instant,
}

impl Checkpoints {
    pub(super) fn new(folder: PathBuf, tuning: &Tuning) -> Self {
        Self {
            folder,
            every: tuning.checkpoint_every,
            pause: Duration::try_from_secs_f64(tuning.checkpoint_minutes * 60.0)
                .unwrap_or(Duration::MAX),
            last: Instant::now(),
        }
    }

    /// The newest state there is, and how many steps were made before it.
    ///
    /// # Errors
    /// If the folder can't be read.
    pub(super) fn newest(&self) -> Result<Option<(usize, PathBuf)>> {
        Ok(states(&self.folder)?.pop())
    }

    /// Whether a state is due after so many steps.
    pub(super) fn due(&self, steps: usize) -> bool {
        let by_steps = self.every > 0 && steps.is_multiple_of(self.every);
        by_steps || (!self.pause.is_zero() && self.last.elapsed() >= self.pause)
    }

    /// Writes the state, and removes the oldest ones.
    ///
    /// # Errors
    /// If it can't be written.
    pub(super) fn write(&mut self, state: &State, model: &dyn Model, moments: bool) -> Result<()> {
        if !files::writes() {
            return Ok(());
        }
        std::fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder))?;
        state.write(
            &self.folder.join(format!("step-{}.safetensors", state.step())),
            model,
            moments,
        )?;
        let mut states = states(&self.folder)?;
        states.truncate(states.len().saturating_sub(KEPT));
        for (_, path) in states {
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        self.last = Instant::now();
        Ok(())
    }
}

/// All states in a folder by their step.
fn states(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io(folder))?,
    };
    let mut states = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let step = name.strip_prefix("step-").and_then(|s| s.strip_suffix(".safetensors"));
        if let Some(step) = step.and_then(|step| step.parse().ok()) {
            states.push((step, path));
        }
    }
    states.sort();
    Ok(states)
}

/// The file of a run's finished stages, in its folder `state`.
const STAGES: &str = "stages.json";

/// Whether a folder is that of a run that was finished, controls included.
pub fn is_finished(folder: &Path) -> bool {
    folder.join(SUMMARY).exists() && !folder.join(STATE).join(STAGES).exists()
}

/// The summary of a run that was finished; none of another. What a process that was killed at its very end left of
/// the state is removed.
///
/// # Errors
/// If the summary can't be read.
pub fn finished(folder: &Path) -> Result<Option<Summary>> {
    if !is_finished(folder) {
        return Ok(None);
    }
    // The process that is at its end removes it too.
    let _ = files::writes().then(|| std::fs::remove_dir_all(folder.join(STATE)));
    files::read_json(&folder.join(SUMMARY)).map(Some)
}

/// The step after which the newest state of a run's own tuning was kept, where there is one.
pub fn last_kept_step(folder: &Path) -> Option<usize> {
    states(&folder.join(STATE)).ok()?.pop().map(|(step, _)| step)
}

/// The stages of a run that are finished, with what they found.
pub(super) struct Stages<'a> {
    path: PathBuf,
    /// The processes that do each stage together.
    peers: &'a dyn Peers,
    kept: RefCell<Kept>,
    start: Instant,
    /// What earlier tries took, as far as their stages were finished.
    earlier: f64,
}

#[derive(Default, Serialize, Deserialize)]
struct Kept {
    /// The run's config.toml when it began.
    config: String,
    seconds: f64,
    finished: Map<String, Value>,
}

/// Figures as they are kept; those that aren't finite are text.
#[derive(Serialize, Deserialize)]
struct Found(#[serde(with = "figures")] Figures);

impl<'a> Stages<'a> {
    /// Those of a run's folder `state`; none of a new run.
    ///
    /// # Errors
    /// If the file is malformed, of a run with another configuration, or another one than the other processes'.
    pub(super) fn of(folder: &Path, config: &str, peers: &'a dyn Peers) -> Result<Self> {
        let path = folder.join(STAGES);
        let new = || Kept { config: config.to_owned(), ..Kept::default() };
        let kept = if path.exists() { files::read_json(&path)? } else { new() };
        if kept.config != config {
            refuse!(
                "{}: the run began with other settings than its config.toml has now; put them back, or \
                 start another run",
                path.display()
            );
        }
        let state = serde_json::to_string(&kept.finished).unwrap_or_default();
        let newest = states(folder)?.pop().map(|(step, _)| step);
        let state = [("another state of the run's folder", format!("{newest:?} {state}"))];
        together::check_equal(peers, &state)?;
        let (earlier, start) = (kept.seconds, Instant::now());
        Ok(Self { path, peers, earlier, kept: RefCell::new(kept), start })
    }

    /// From the run's start to now, as far as nothing was done twice.
    pub(super) fn seconds(&self) -> f64 {
        self.earlier + self.start.elapsed().as_secs_f64()
    }

    /// What a stage found: the first time by `work`, and later as it was kept.
    ///
    /// # Errors
    /// As `work`, and if what it found can't be kept.
    pub(super) fn once<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let misfit = |error| Error::input(format!("{}: {name}: {error}", self.path.display()));
        if let Some(found) = self.kept.borrow().finished.get(name) {
            return serde_json::from_value(found.clone()).map_err(misfit);
        }
        progress::check_stop()?;
        let found = work()?;
        let value = serde_json::to_value(&found).map_err(misfit)?;
        self.kept.borrow_mut().finished.insert(name.to_owned(), value);
        self.keep()?;
        // What it left is there for all from now on.
        peers::wait(self.peers)?;
        Ok(found)
    }

    /// Writes down what there is, and the seconds up to now.
    ///
    /// # Errors
    /// If it can't be written.
    pub(super) fn keep(&self) -> Result<()> {
        if !files::writes() {
            return Ok(());
        }
        self.kept.borrow_mut().seconds = self.seconds();
        let folder = files::parent(&self.path);
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        files::write_json(&self.path, &*self.kept.borrow())
    }

    /// Removes the folder `state`: the run is finished.
    ///
    /// # Errors
    /// If it can't be removed.
    pub(super) fn finish(self) -> Result<()> {
        if !files::writes() {
            return Ok(());
        }
        // It says that the run isn't finished; the states would be missed by one that goes on.
        std::fs::remove_file(&self.path).map_err(Error::io(&self.path))?;
        let folder = files::parent(&self.path);
        std::fs::remove_dir_all(folder).map_err(Error::io(folder))
    }

    /// The figures of an evaluation, as [`Stages::once`].
    ///
    /// # Errors
    /// As [`Stages::once`]'s.
    pub(super) fn evaluation(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<Figures>,
    ) -> Result<Figures> {
        self.once(name, || Ok(Found(work()?))).map(|Found(figures)| figures)
    }
}
