//! Opening a plugin: its registrations join the registry.

use std::path::Path;

use circuit_framework::plugin::registry::Registration;
use circuit_framework::run::experiment;
use circuit_framework::{Error, Result, refuse};
use libloading::Library;

use crate::fingerprint::{Fingerprint, Stamp};

/// Opens a plugin for good and returns what it registers.
///
/// # Errors
/// If the file is missing or no plugin, was built for another program or can't be opened, if it
/// registers nothing, or what it registers is registered already; each with the remedy.
pub fn load(path: &Path) -> Result<Vec<Registration>> {
    let stamp = Stamp::read(path)?;
    let program = Fingerprint::of_this_program()?;
    if stamp.built_for != program {
        refuse!(
            "{}: was built for another program, {}; this one is {program}; run `circuit-tuning \
             plugin build` again",
            path.display(),
            stamp.built_for
        );
    }
    let path = path.canonicalize().map_err(Error::io(path))?;
    // SAFETY: opening runs the library's initialisers. They are those of a library that was compiled
    // by this program's compiler against this program's own runtime library, as its fingerprint and
    // the hash of its content say; what they do is what the plugin's author wrote, as in any
    // dependency.
    #[expect(
        unsafe_code,
        reason = "the initialisers of a library are code that runs on opening it"
    )]
    let library = unsafe { Library::new(&path) };
    let library = library.map_err(|error| Error::input(format!("{}: {error}", path.display())))?;
    // What it registered is 'static, so it stays open.
    std::mem::forget(library);
    let mut own = experiment::registrations()?;
    own.retain(|registration| registration.origin.crate_name == stamp.name);
    if own.is_empty() {
        refuse!("{}: registers nothing; add an `register!`", path.display());
    }
    Ok(own)
}
