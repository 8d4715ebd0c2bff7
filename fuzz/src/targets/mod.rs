//! What is run: a reader, the files its inputs are made of, and how they are changed.

mod broken;
mod gguf;
mod models;
mod plugins;
mod results;
mod settings;
mod tasks;
mod texts;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use circuit_framework::run::experiment::ModelChoice;
use circuit_framework::{Error, Model};

use crate::mutate::Random;

/// Reads an input, to the end or to an error.
pub type Reader = Box<dyn FnMut(&[u8]) -> Result<()>>;

/// Makes the reader ready, in an empty folder of its own.
type Prepare = Box<dyn Fn(&Path) -> Result<Reader>>;

/// Makes an input of a file of the corpus; all of it is there to take parts of.
pub type Mutate = fn(&mut Random, &[u8], &[Vec<u8>]) -> Vec<u8>;

/// A reader of files of one kind.
pub struct Target {
    pub name: &'static str,
    /// Files that the reader takes, or nearly.
    pub corpus: Box<dyn Fn() -> Result<Vec<Vec<u8>>>>,
    pub mutate: Mutate,
    pub reader: Prepare,
}

impl Target {
    fn new(
        name: &'static str,
        mutate: Mutate,
        corpus: impl Fn() -> Result<Vec<Vec<u8>>> + 'static,
        reader: impl Fn(&Path) -> Result<Reader> + 'static,
    ) -> Self {
        Self { name, corpus: Box::new(corpus), mutate, reader: Box::new(reader) }
    }
}

fn all() -> Vec<Target> {
    let mut all = models::targets();
    all.push(gguf::target());
    all.extend(texts::targets());
    all.extend(results::targets());
    all.extend(settings::targets());
    all.extend(tasks::targets());
    all.extend(plugins::targets());
    all
}

/// Targets by name; all readers where none is named.
pub fn named(names: &[String]) -> Result<Vec<Target>> {
    let mut targets = all();
    if !names.is_empty() {
        targets.extend(broken::targets());
    }
    if let Some(name) = names.iter().find(|name| targets.iter().all(|own| own.name != **name)) {
        let known: Vec<&str> = targets.iter().map(|target| target.name).collect();
        bail!("there is no target `{name}`; there are {}", known.join(", "));
    }
    targets.retain(|target| names.is_empty() || names.iter().any(|name| *name == target.name));
    Ok(targets)
}

/// A path of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A file of the repository.
fn file(path: &str) -> Result<Vec<u8>> {
    let path = repository(path);
    std::fs::read(&path).with_context(|| path.display().to_string())
}

/// Files of the repository.
fn files(paths: &[&str]) -> Result<Vec<Vec<u8>>> {
    paths.iter().map(|path| file(path)).collect()
}

fn at(path: &Path) -> ModelChoice {
    ModelChoice { path: path.to_path_buf(), ..ModelChoice::default() }
}

/// The model of a reference case.
fn reference(case: &str) -> Result<Box<dyn Model>> {
    Ok(circuit_models::load(&at(&repository("tests/reference").join(case).join("model")))?.model)
}

/// Panics on where a panic was made an error of: plugins' are, and none is to come of a file. One in the
/// tokenizers crate may: it is another's.
fn checked<T>(read: circuit_framework::Result<T>) -> Result<T> {
    match read {
        Err(Error::Panicked { what, message }) if !what.contains("the tokenizer") => {
            panic!("{what}: {message}")
        }
        read => Ok(read?),
    }
}
