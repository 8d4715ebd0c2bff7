//! Run-time plugins, where the program was built to load them (feature `runtime`).

use std::path::{Path, PathBuf};

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use circuit_framework::plugin::registry::Registration;

/// Whether plugins are opened that somebody else's experiment names.
static ALLOWED: AtomicBool = AtomicBool::new(false);

/// Lets plugins be opened that somebody else's experiment names.
pub(crate) fn allow() {
    ALLOWED.store(true, Ordering::Relaxed);
}

/// Opens a plugin that an experiment names, which is shown before: it is code. Where the experiment is a file that
/// isn't this user's own, the user has to allow it.
pub(crate) fn load_named(path: &Path, origin: &str) -> Result<()> {
    let experiment = Path::new(origin);
    if experiment.is_file() {
        if !is_own(experiment) && !ALLOWED.load(Ordering::Relaxed) {
            bail!(
                "{origin}: names plugin {}, code that would be run, and the file isn't yours; allow it with \
                 --allow-plugins",
                path.display()
            );
        }
        log::info!("{origin} loads plugin {}", path.display());
    }
    load(path).map(|_| ())
}

/// Whether a file belongs to this user.
#[cfg(unix)]
fn is_own(file: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().is_ok_and(|found| found.uid() == rustix::process::geteuid().as_raw())
}

#[cfg(not(unix))]
fn is_own(_: &Path) -> bool {
    true
}

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
    bail!(
        "{}: this program has no run-time plugins; one built with `cargo build --release --features \
         runtime` has",
        path.display()
    )
}
