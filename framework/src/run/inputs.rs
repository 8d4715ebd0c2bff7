//! The files that an experiment reads, the model's and the data's, and what they hold as hashes: a run whose
//! inputs have changed is another run.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use toml::Value;

use crate::run::experiment::{Choice, Experiment};
use crate::{Error, Result, files, refuse};

/// The file of a run folder that has them.
const FILE: &str = "inputs.json";

/// The options of a task that name files or folders.
const DATA: [&str; 2] = ["data", "test_data"];

/// The option of a selector that names another run, and what is read of that.
const RUN: &str = "change_of";
const OF_RUN: [&str; 2] = ["circuit-before.json", "circuit-after.json"];

/// Of a model's folder, the endings of the files that are read.
const OF_MODELS: [&str; 5] = ["json", "safetensors", "txt", "model", "jinja"];

/// SHA-256 of each input file, in hexadecimal, by its path as the experiment names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Inputs(BTreeMap<String, String>);

impl Experiment {
    /// The files and folders that the experiment names: model, adapter, delta, circuit, plugins, its tasks' data, and the
    /// circuits of another run.
    /// The built-in model and one in Hugging Face's cache are none.
    pub fn inputs(&self) -> Vec<PathBuf> {
        let mut all = vec![self.model.path.clone()];
        all.extend(self.model.adapter.clone());
        all.extend(self.model.delta.clone());
        all.extend(self.tuning.circuit.clone());
        all.extend(self.plugins.clone());
        let tasks = std::iter::once(&self.task).chain(&self.evaluate);
        tasks.for_each(|Choice { options, .. }| data(options, &mut all));
        let selectors = std::iter::once(&self.selector).chain(&self.controls.kinds);
        for run in selectors.filter_map(|Choice { options, .. }| options.get(RUN)?.as_str()) {
            all.extend(OF_RUN.map(|file| Path::new(run).join(file)));
        }
        all.retain(|path| path.exists());
        all
    }
}

/// The files that a task's options name, and those of the tasks in them.
fn data(options: &toml::Table, found: &mut Vec<PathBuf>) {
    for (key, value) in options {
        match value {
            Value::String(path) if DATA.contains(&&key[..]) => found.push(path.into()),
            Value::Table(options) => data(options, found),
            Value::Array(values) => {
                values.iter().filter_map(Value::as_table).for_each(|options| data(options, found));
            }
            _ => {}
        }
    }
}

impl Inputs {
    /// Those of an experiment, as they are now.
    ///
    /// # Errors
    /// If one can't be read.
    pub fn of(experiment: &Experiment) -> Result<Self> {
        let mut hashes = BTreeMap::new();
        for path in experiment.inputs() {
            let is_model = path == experiment.model.path;
            for file in files_in(&path, is_model)? {
                hashes.insert(file.display().to_string(), hash(&file)?);
            }
        }
        Ok(Self(hashes))
    }

    /// Those that a run folder has; none where an older version made it.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let file = folder.join(FILE);
        file.exists().then(|| files::read_json(&file)).transpose()
    }

    /// Writes them into a run folder.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        files::write_json(&folder.join(FILE), self)
    }

    /// The first file that is another one, or is or was not there, in `now`.
    pub fn changed<'a>(&'a self, now: &'a Self) -> Option<&'a str> {
        let differs = |path: &&String| self.0.get(*path) != now.0.get(*path);
        self.0.keys().chain(now.0.keys()).find(differs).map(|path| &path[..])
    }

    /// Refuses to go on with the run of a folder with other inputs than it began with.
    pub(super) fn check(&self, folder: &Path) -> Result<()> {
        let began = Self::read(folder)?;
        match began.as_ref().and_then(|began| began.changed(self)) {
            Some(file) => refuse!(
                "{file}: is another file than when the run in {} began; put the old one back, or start \
                 another run",
                folder.display()
            ),
            None => Ok(()),
        }
    }
}

/// The files of an input, which is one or a folder of them. A model's folder has others too.
fn files_in(path: &Path, is_model: bool) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        // A pipe is read once, by its reader.
        return Ok(Vec::from_iter(path.is_file().then(|| path.to_path_buf())));
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let entry = entry.map_err(Error::io(path))?;
        // Links to folders may lead in circles.
        let is_folder = entry.file_type().map_err(Error::io(path))?.is_dir();
        let path = entry.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if path.is_file() && (!is_model || OF_MODELS.contains(&ending)) {
            found.push(path);
        } else if is_folder && !is_model {
            found.extend(files_in(&path, false)?);
        }
    }
    Ok(found)
}

/// A file as the system lists it: path, length, time of its last change.
type Listed = (PathBuf, u64, Option<SystemTime>);

/// What was hashed before: a sweep asks for the same model again and again.
static HASHED: Mutex<BTreeMap<Listed, String>> = Mutex::new(BTreeMap::new());

pub(super) fn hash(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let metadata = file.metadata().map_err(Error::io(path))?;
    let listed = (path.to_path_buf(), metadata.len(), metadata.modified().ok());
    let mut hashed = HASHED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(hash) = hashed.get(&listed) {
        return Ok(hash.clone());
    }
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).map_err(Error::io(path))?;
    let hash: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    hashed.insert(listed, hash.clone());
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_is_named_and_one_beside_a_model_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let here = |name: &str| folder.path().join(name);
        std::fs::create_dir(here("model")).unwrap();
        std::fs::create_dir(here("data")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(here(name), text).unwrap();
        write("model/config.json", "{}");
        write("data/level1", "1");
        let text = format!(
            "model.path = {:?}\ntask = {{ name = 'mixture', tasks = [{{ name = 'logic', data = {:?} }}] }}\n\
             selector.name = 'nodes'",
            here("model"),
            here("data")
        );
        let experiment = Experiment::from_table(toml::from_str(&text).unwrap(), "here").unwrap();
        let before = Inputs::of(&experiment).unwrap();
        assert_eq!(before.0.len(), 2);
        write("model/notes.md", "beside");
        assert_eq!(before.changed(&Inputs::of(&experiment).unwrap()), None);
        for (name, text) in [("data/level1", "2"), ("data/level2", "1")] {
            let before = Inputs::of(&experiment).unwrap();
            write(name, text);
            let after = Inputs::of(&experiment).unwrap();
            assert!(before.changed(&after).unwrap().ends_with(name));
        }
    }
}
