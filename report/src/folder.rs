//! What the page needs of a run, read from its folder. Everything but config.toml may be missing: a run that
//! is under way has no summary yet, one of a former version nothing that was observed in examples.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use circuit_framework::results::circuit_file::CircuitFile;
use circuit_framework::run::{SUMMARY, Summary};
use circuit_framework::{Error, Provenance, Result, files, refuse};
use serde::Serialize;
use serde_json::Value;

use crate::circuits::Circuits;
use crate::log::{self, Columns};

const CONFIG: &str = "config.toml";
const INPUTS: &str = "inputs.json";

/// A run as the page's script gets it.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The folder's name.
    pub name: String,
    pub folder: String,
    /// The command that repeats it.
    pub command: String,
    pub description: String,
    /// Every setting, as config.toml has it.
    pub config: Value,
    /// SHA-256 of the files that it read, by path; empty with the built-in model and generated data.
    pub inputs: BTreeMap<String, String>,
    /// That of the model's weights, of the first file where there are several.
    pub weights: Option<String>,
    /// None of a run that isn't finished.
    pub summary: Option<Summary>,
    /// Why it failed, where a sweep says so.
    pub error: Option<String>,
    pub provenance: Option<Provenance>,
    pub log: Columns,
    /// `step` and `figures`.
    pub evaluations: Vec<Value>,
    /// What was tuned beside the circuit with the run's seed.
    pub others: Vec<Other>,
    pub circuits: Circuits,
    /// The circuit files, for drawings without a script.
    #[serde(skip)]
    pub circuit_before: Option<CircuitFile>,
    #[serde(skip)]
    pub circuit_after: Option<CircuitFile>,
    /// Faithfulness against the circuit's size.
    pub faithfulness: BeforeAfter,
    /// What single examples and nodes do.
    pub observed: BeforeAfter,
}

/// The tuning of a control, or of the circuit with another seed.
#[derive(Clone, Debug, Serialize)]
pub struct Other {
    pub kind: String,
    pub seed: u64,
    pub log: Columns,
    pub evaluations: Vec<Value>,
}

/// A file before tuning and after it, where there is one.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BeforeAfter {
    pub before: Option<Value>,
    pub after: Option<Value>,
}

impl BeforeAfter {
    fn read(folder: &Path, name: &str) -> Result<Self> {
        let of = |when: &str| optional(&folder.join(format!("{name}-{when}.json")));
        Ok(Self { before: of("before")?, after: of("after")? })
    }
}

/// A JSON file, where it is there.
fn optional<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    path.exists().then(|| files::read_json(path)).transpose()
}

/// The runs of these folders. One without config.toml stands for the run folders in it, as a sweep leaves
/// them, with the reasons of those that failed.
///
/// # Errors
/// If a folder is no run's and has none in it, or a file can't be read.
pub fn read_all(folders: &[PathBuf]) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for folder in folders {
        if folder.join(CONFIG).is_file() {
            runs.push(Run::read(folder)?);
            continue;
        }
        let of_sweep = folders_in(folder)?;
        if of_sweep.is_empty() {
            refuse!(
                "{}: is no run folder and has none in it; give one that `run` or `tune` made",
                folder.display()
            );
        }
        let failed: Vec<Failed> = optional(&folder.join("failed.json"))?.unwrap_or_default();
        for path in of_sweep {
            let mut run = Run::read(&path)?;
            run.error = failed.iter().find(|of| of.name == run.name).map(|of| of.reason.clone());
            runs.push(run);
        }
    }
    Ok(runs)
}

/// An entry of a sweep's `failed.json`.
#[derive(serde::Deserialize)]
struct Failed {
    name: String,
    reason: String,
}

/// The run folders in a folder, by name.
fn folders_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = subfolders(folder)?;
    found.retain(|path| path.join(CONFIG).is_file());
    found.sort();
    Ok(found)
}

impl Run {
    /// Its seed, as text.
    pub fn seed(&self) -> String {
        self.config["seed"].to_string()
    }

    fn read(folder: &Path) -> Result<Self> {
        let config = config(&folder.join(CONFIG))?;
        let circuit = |when: &str| -> Result<Option<CircuitFile>> {
            optional(&folder.join(format!("circuit-{when}.json")))
        };
        let (before, after) = (circuit("before")?, circuit("after")?);
        let provenance = before.as_ref().or(after.as_ref());
        let inputs: BTreeMap<String, String> = optional(&folder.join(INPUTS))?.unwrap_or_default();
        Ok(Self {
            name: name(folder),
            command: format!("circuit-tuning run {}", folder.join(CONFIG).display()),
            folder: folder.display().to_string(),
            description: config["description"].as_str().unwrap_or_default().to_owned(),
            weights: weights(&inputs, config["model"]["path"].as_str().unwrap_or_default()),
            config,
            inputs,
            summary: optional(&folder.join(SUMMARY))?,
            error: None,
            provenance: provenance.and_then(|file| file.provenance.clone()),
            log: Columns::read(&folder.join("log.jsonl"))?,
            evaluations: log::lines(&folder.join("evaluations.jsonl"))?,
            others: others(&folder.join("controls"))?,
            circuits: Circuits::read(folder, before.as_ref(), after.as_ref())?,
            circuit_before: before,
            circuit_after: after,
            faithfulness: BeforeAfter::read(folder, "faithfulness")?,
            observed: BeforeAfter::read(folder, "observed")?,
        })
    }
}

/// The hash of a model's weights among those of a run's inputs: the model is one file or a folder of them.
fn weights(inputs: &BTreeMap<String, String>, model: &str) -> Option<String> {
    let of = |(path, hash): (&String, &String)| {
        let path = Path::new(path);
        let has_weights = path == Path::new(model)
            || path.starts_with(model) && path.extension().is_some_and(|end| end == "safetensors");
        has_weights.then(|| hash.clone())
    };
    inputs.iter().find_map(of)
}

/// What a folder is called, also `.`.
fn name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    whole.file_name().map_or_else(|| whole.display().to_string(), |n| n.to_string_lossy().into())
}

/// config.toml as JSON.
fn config(path: &Path) -> Result<Value> {
    let table: toml::Table = (files::read_text(path)?.parse())
        .map_err(|error: toml::de::Error| misfit(path, error.message()))?;
    serde_json::to_value(table).map_err(|error| misfit(path, &error.to_string()))
}

fn misfit(path: &Path, message: &str) -> Error {
    Error::input(format!("{}: {}", path.display(), message.replace('\n', " ")))
}

/// The logs in `controls/seed-S/KIND/`, seed by seed.
fn others(controls: &Path) -> Result<Vec<Other>> {
    let mut found = Vec::new();
    if !controls.is_dir() {
        return Ok(found);
    }
    for of_seed in subfolders(controls)? {
        let seed = name(&of_seed);
        let Some(seed) = seed.strip_prefix("seed-").and_then(|seed| seed.parse().ok()) else {
            continue;
        };
        for path in subfolders(&of_seed)? {
            found.push(Other {
                kind: name(&path),
                seed,
                log: Columns::read(&path.join("log.jsonl"))?,
                evaluations: log::lines(&path.join("evaluations.jsonl"))?,
            });
        }
    }
    found.sort_by(|a, b| (a.seed, &a.kind).cmp(&(b.seed, &b.kind)));
    Ok(found)
}

fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    Ok(found)
}
