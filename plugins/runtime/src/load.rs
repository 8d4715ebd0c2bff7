//! Opening a plugin: its registrations join the registry. A file is read once, and what was checked is what is
//! opened, whatever becomes of the file meanwhile.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use circuit_framework::plugin::registry::Registration;
use circuit_framework::run::experiment;
use circuit_framework::{Error, Result, refuse};
use libloading::Library;

use crate::fingerprint::{Fingerprint, Stamp};

/// The plugins that are open, each a file with the name of its crate.
static OPEN: Mutex<BTreeMap<PathBuf, String>> = Mutex::new(BTreeMap::new());

/// Opens a plugin for good and returns what it registers. One that is open is not read again.
///
/// # Errors
/// If the file is missing or no plugin, if anybody may write to it, if it was built for another program or can't
/// be opened, if it registers nothing, or what it registers is registered already; each with the remedy.
pub fn load(path: &Path) -> Result<Vec<Registration>> {
    let place = path.canonicalize().map_err(Error::io(path))?;
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(name) = open.get(&place) {
        return registered_by(name, path);
    }
    let bytes = read(path, &place)?;
    let stamp = Stamp::of(&bytes, path)?;
    let program = Fingerprint::of_this_program()?;
    if stamp.built_for != program {
        refuse!(
            "{}: was built for another program, {}; this one is {program}; run `circuit-tuning \
             plugin build` again",
            path.display(),
            stamp.built_for
        );
    }
    open_library(&bytes, path)?;
    let registered = registered_by(&stamp.name, path)?;
    open.insert(place, stamp.name);
    Ok(registered)
}

/// What a crate registers.
fn registered_by(name: &str, path: &Path) -> Result<Vec<Registration>> {
    let mut own = experiment::registrations()?;
    own.retain(|registration| registration.origin.crate_name == name);
    if own.is_empty() {
        refuse!("{}: registers nothing; add an `register!`", path.display());
    }
    Ok(own)
}

/// The bytes of a plugin file that only its owner can have written.
fn read(path: &Path, place: &Path) -> Result<Vec<u8>> {
    let folder = place.parent().unwrap_or(place);
    let mut file = File::open(place).map_err(Error::io(path))?;
    let found = file.metadata().map_err(Error::io(path))?;
    if !found.is_file() {
        refuse!("{}: is no regular file, which a plugin must be", path.display());
    }
    if is_anyones(&found, false) {
        refuse!(
            "{0}: everybody may write to this plugin, so that it may be anybody's code; `chmod o-w {0}` if it is \
             yours",
            path.display()
        );
    }
    if is_anyones(&folder.metadata().map_err(Error::io(folder))?, true) {
        refuse!(
            "{}: everybody may put another file in the plugin's place; `chmod o-w {}`, or move it elsewhere",
            path.display(),
            folder.display()
        );
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

/// Whether everybody may write to a file, or may replace the files of others in a folder: not in one with the
/// sticky bit, like /tmp.
#[cfg(unix)]
fn is_anyones(found: &Metadata, is_folder: bool) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let mode = found.permissions().mode();
    mode & 0o002 != 0 && !(is_folder && mode & 0o1000 != 0)
}

#[cfg(not(unix))]
fn is_anyones(_: &Metadata, _: bool) -> bool {
    false
}

/// Opens these very bytes as a library: from a file that nobody else has a name for.
fn open_library(bytes: &[u8], path: &Path) -> Result<()> {
    let folder = tempfile::tempdir().map_err(Error::io(&std::env::temp_dir()))?;
    let copy = folder.path().join("library");
    std::fs::write(&copy, bytes).map_err(Error::io(&copy))?;
    // SAFETY: opening runs the library's initialisers. They are those of a library that was compiled
    // by this program's compiler against this program's own runtime library, as its fingerprint and
    // the hash of its content say; what they do is what the plugin's author wrote, as in any
    // dependency.
    #[expect(
        unsafe_code,
        reason = "the initialisers of a library are code that runs on opening it"
    )]
    let library = unsafe { Library::new(&copy) };
    let library = library.map_err(|error| Error::input(format!("{}: {error}", path.display())))?;
    // What it registered is 'static, so it stays open.
    std::mem::forget(library);
    Ok(())
}
