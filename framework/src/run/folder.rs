//! The folder that a run leaves: where it may be, and the JSON Lines files that grow in it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{Error, Result, refuse};

/// A folder of its own for a run.
pub(super) struct RunFolder(PathBuf);

impl RunFolder {
    pub(super) fn create(path: &Path) -> Result<Self> {
        if path.exists() {
            refuse!(
                "{}: exists already; name a new folder, runs are never overwritten",
                path.display()
            );
        }
        std::fs::create_dir_all(path).map_err(Error::io(path))?;
        Ok(Self(path.to_path_buf()))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
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

    pub(super) fn write(&mut self, value: &impl Serialize) -> Result<()> {
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

    pub(super) fn finish(self) -> Result<()> {
        match self.file {
            Some(_) => std::fs::rename(&self.part, &self.path).map_err(Error::io(&self.path)),
            None => Ok(()),
        }
    }
}

/// The first of `runs/EXPERIMENT-1`, `-2`, … in `parent` that doesn't exist.
pub fn next_folder(parent: &Path, experiment: &str) -> PathBuf {
    let name = |number: usize| parent.join(format!("{experiment}-{number}"));
    let mut number = 1;
    while name(number).exists() {
        number += 1;
    }
    name(number)
}
