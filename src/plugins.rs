//! Run-time plugins, where the program was built to load them (feature `runtime`).

use std::path::{Path, PathBuf};

use anyhow::Result;
use circuit_framework::plugin::registry::Registration;

/// Opens a plugin for good and returns what it registers.
#[cfg(feature = "runtime")]
pub(crate) fn load(path: &Path) -> Result<Vec<Registration>> {
    Ok(circuit_runtime::load::load(path)?)
}

/// Compiles a plugin crate and returns the plugin file.
#[cfg(feature = "runtime")]
pub(crate) fn compile(folder: &Path) -> Result<PathBuf> {
    Ok(circuit_runtime::compile::compile(folder)?)
}

/// What a plugin file says of itself.
#[cfg(feature = "runtime")]
pub(crate) fn describe(path: &Path) -> Result<String> {
    let stamp = circuit_runtime::fingerprint::Stamp::read(path)?;
    Ok(format!("{} {}, built for {}", stamp.name, stamp.version, stamp.built_for))
}

#[cfg(not(feature = "runtime"))]
pub(crate) fn load(path: &Path) -> Result<Vec<Registration>> {
    without(path)
}

#[cfg(not(feature = "runtime"))]
pub(crate) fn compile(folder: &Path) -> Result<PathBuf> {
    without(folder)
}

#[cfg(not(feature = "runtime"))]
pub(crate) fn describe(path: &Path) -> Result<String> {
    without(path)
}

#[cfg(not(feature = "runtime"))]
fn without<T>(path: &Path) -> Result<T> {
    anyhow::bail!(
        "{}: this program has no run-time plugins; one built with `cargo build --release --features \
         runtime` has",
        path.display()
    )
}
