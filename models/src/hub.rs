//! Hugging Face's local cache: a model that was downloaded before is found by its name, without
//! network.

use std::path::{Path, PathBuf};

use circuit_framework::{Error, Result, files, refuse};

/// The folder of a model's newest snapshot in the cache, where `name` is one of the hub's names,
/// `ORG/NAME`.
///
/// # Errors
/// If there is none, saying where it was looked for.
pub(crate) fn snapshot(name: &Path) -> Result<PathBuf> {
    let unknown = |looked: &str| {
        Error::input(format!(
            "{}: there is no such model{looked}; give a Hugging Face folder, a .gguf file, a \
             downloaded model's name or `embedded`",
            name.display()
        ))
    };
    let (Some(repository), Some(cache)) = (name.to_str().filter(|n| is_name(n)), cache()) else {
        return Err(unknown(""));
    };
    let model = cache.join(format!("models--{}", repository.replace('/', "--")));
    let reference = model.join("refs/main");
    if !reference.is_file() {
        return Err(unknown(&format!(", nor a download of that name in {}", cache.display())));
    }
    let snapshot = files::read_text(&reference)?;
    let snapshot = snapshot.trim();
    if !is_name(snapshot) || snapshot.contains('/') {
        refuse!(
            "{}: {snapshot:?} is no snapshot's name; download the model again",
            reference.display()
        );
    }
    let folder = model.join("snapshots").join(snapshot);
    if !folder.is_dir() {
        refuse!(
            "{}: names a snapshot that is not there, {}; download the model again",
            reference.display(),
            folder.display()
        );
    }
    Ok(folder)
}

/// Whether this can be a name on the hub: `NAME` or `ORG/NAME`.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() <= 2
        && parts
            .iter()
            .all(|part| part.starts_with(char::is_alphanumeric) && part.chars().all(allowed))
}

/// The cache's folder, from the variables that Hugging Face's libraries go by.
fn cache() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let hub = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
    let home = || variable("HF_HOME").map(|home| home.join("hub"));
    let everyones = || {
        let cache = variable("XDG_CACHE_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
        Some(cache.join("huggingface/hub"))
    };
    hub.or_else(home).or_else(everyones)
}
