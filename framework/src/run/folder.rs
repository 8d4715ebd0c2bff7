//! The folder that a run leaves: where it may be, and the JSON Lines files that grow in it.

use std::fs::{File, TryLockError};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::inputs::Inputs;
use crate::{Error, Result, files, refuse};

/// The file that says what a run is.
const CONFIG: &str = "config.toml";

/// A folder of its own for a run. Its config.toml is locked as long as a process runs in it.
pub(super) struct RunFolder {
    path: PathBuf,
    _lock: Option<File>,
}

impl RunFolder {
    /// A new folder that has its config.toml and the hashes of its inputs from the moment it is there: two
    /// runs never share one, and one that was ended at once can be resumed.
    ///
    /// # Errors
    /// If it exists or can't be made.
    pub(super) fn create(path: &Path, config: &str, inputs: &Inputs) -> Result<Self> {
        if !files::writes() {
            return Ok(Self::of_another(path));
        }
        let parent = files::parent(path);
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        files::clear_left_behind(parent);
        files::make_folder(path, |new| {
            inputs.write(new)?;
            files::write_atomically(&new.join(CONFIG), config.as_bytes())
        })?;
        Self::locked(path)
    }

    /// The folder of a run that another process writes.
    pub(super) fn of_another(path: &Path) -> Self {
        Self { path: path.to_path_buf(), _lock: None }
    }

    fn locked(path: &Path) -> Result<Self> {
        let config = path.join(CONFIG);
        let file = File::open(&config).map_err(Error::io(&config))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path: path.to_path_buf(), _lock: Some(file) }),
            Err(TryLockError::WouldBlock) => refuse!(
                "{}: another process is running it; wait for it, or stop it first",
                path.display()
            ),
            // Some shared folders know no locks.
            Err(TryLockError::Error(error)) => {
                log::warn!("{}: can't be locked ({error}); run it once at a time", path.display());
                Ok(Self { path: path.to_path_buf(), _lock: None })
            }
        }
    }

    /// The first of `parent/NAME-1`, `NAME-2`, … that can be made.
    ///
    /// # Errors
    /// If none can.
    pub(super) fn create_next(
        parent: &Path,
        name: &str,
        config: &str,
        inputs: &Inputs,
    ) -> Result<Self> {
        loop {
            let path = next_folder(parent, name);
            match Self::create(&path, config, inputs) {
                // Another run was faster.
                Err(_) if path.exists() => {}
                made => return made,
            }
        }
    }

    /// The folder of a run that was begun.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn open(path: &Path) -> Result<Self> {
        if !path.join(CONFIG).is_file() {
            refuse!("{}: is no run folder; give one that `run` or `tune` made", path.display());
        }
        if !files::writes() {
            return Ok(Self::of_another(path));
        }
        let folder = Self::locked(path)?;
        clear_unfinished(path)?;
        Ok(folder)
    }

    /// A folder in it, made where it isn't there.
    ///
    /// # Errors
    /// If it can't be made.
    pub(super) fn folder(&self, name: &str) -> Result<Self> {
        let path = self.path(name);
        if files::writes() {
            std::fs::create_dir_all(&path).map_err(Error::io(&path))?;
        }
        Ok(Self { path, _lock: None })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The run folder itself.
    pub(super) fn root(&self) -> &Path {
        &self.path
    }

    /// Removes what an earlier try left under a name, so that it can be written again.
    ///
    /// # Errors
    /// If it can't be removed.
    pub(super) fn clear(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        if files::writes() && path.exists() {
            std::fs::remove_dir_all(&path).map_err(Error::io(&path))?;
        }
        Ok(path)
    }
}

/// Removes what a killed process had not yet given its name, in a folder and those in it.
fn clear_unfinished(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        // A link's target is somebody else's.
        let is_folder = entry.file_type().map_err(Error::io(folder))?.is_dir();
        let path = entry.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match (name.starts_with(files::PREFIX), is_folder) {
            (true, true) => std::fs::remove_dir_all(&path).map_err(Error::io(&path))?,
            (true, false) => std::fs::remove_file(&path).map_err(Error::io(&path))?,
            (false, true) => clear_unfinished(&path)?,
            (false, false) => {}
        }
    }
    Ok(())
}

/// A JSON Lines file that can be followed as `NAME.part` while it grows and has its name when it is
/// whole. Without a line it doesn't come to be.
pub(super) struct Lines {
    path: PathBuf,
    part: PathBuf,
    file: Option<BufWriter<File>>,
}

impl Lines {
    pub(super) fn new(path: PathBuf) -> Self {
        let part = path.with_extension("jsonl.part");
        Self { path, part, file: None }
    }

    /// Goes on with what an earlier try wrote, but for lines of step `steps` and later, which will be written
    /// again.
    ///
    /// # Errors
    /// If a file can't be read or written.
    pub(super) fn resume(&mut self, steps: usize) -> Result<()> {
        #[derive(Deserialize)]
        struct OfStep {
            step: usize,
        }
        if !files::writes() {
            return Ok(());
        }
        if self.path.exists() {
            std::fs::rename(&self.path, &self.part).map_err(Error::io(&self.path))?;
        }
        if !self.part.exists() {
            return Ok(());
        }
        let text = files::read_text(&self.part)?;
        let is_before =
            |line: &&str| serde_json::from_str::<OfStep>(line).is_ok_and(|line| line.step < steps);
        let kept: String = text
            .split_inclusive('\n')
            .take_while(|line| line.ends_with('\n') && is_before(line))
            .collect();
        files::write_atomically(&self.part, kept.as_bytes())?;
        if !kept.is_empty() {
            let file = File::options().append(true).open(&self.part);
            self.file = Some(BufWriter::new(file.map_err(Error::io(&self.part))?));
        }
        Ok(())
    }

    pub(super) fn write(&mut self, value: &impl Serialize) -> Result<()> {
        if !files::writes() {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = File::create(&self.part).map_err(Error::io(&self.part))?;
                self.file.insert(BufWriter::new(file))
            }
        };
        let line = serde_json::to_string(value)
            .map_err(|error| Error::input(format!("{}: {error}", self.path.display())))?;
        (writeln!(file, "{line}").and_then(|()| file.flush())).map_err(Error::io(&self.part))
    }

    /// Has what was written on the disk, so that a state never knows of lines that are lost.
    pub(super) fn sync(&self) -> Result<()> {
        match &self.file {
            Some(file) => file.get_ref().sync_data().map_err(Error::io(&self.part)),
            None => Ok(()),
        }
    }

    pub(super) fn finish(self) -> Result<()> {
        match self.file {
            Some(_) => {
                self.sync()?;
                std::fs::rename(&self.part, &self.path).map_err(Error::io(&self.path))
            }
            None => Ok(()),
        }
    }
}

/// The first of `runs/EXPERIMENT-1`, `-2`, … in `parent` that doesn't exist.
fn next_folder(parent: &Path, experiment: &str) -> PathBuf {
    let name = |number: usize| parent.join(format!("{experiment}-{number}"));
    let mut number = 1;
    while name(number).exists() {
        number += 1;
    }
    name(number)
}
