//! Files and folders that are being made: each has a temporary name beside its own until it is whole and
//! synced. What a killed process left under such a name is removed by the next one that writes there.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::NamedTempFile;

use super::writes;
use crate::{Error, Result, refuse};

/// What the names of files and folders begin with that aren't whole yet.
pub(crate) const PREFIX: &str = ".circuit-tuning-";

/// The folder that holds what is at `path`.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file that has its name only when it is finished, and is gone where it isn't.
pub(crate) struct Unfinished {
    path: PathBuf,
    file: NamedTempFile,
    _in_use: InUse,
}

impl Unfinished {
    /// Begins the file that is to be at `path`.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let folder = parent(path);
        let in_use = InUse::of(folder);
        let file = as_readable_as_any(tempfile::Builder::new().prefix(PREFIX))
            .tempfile_in(folder)
            // Without the temporary name, which says nothing to anybody.
            .map_err(|error| Error::io(path)(error.kind().into()))?;
        Ok(Self { path: path.to_path_buf(), file, _in_use: in_use })
    }

    pub(crate) fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Gives it its name.
    pub(crate) fn finish(self) -> Result<()> {
        // Else a machine that goes down may have the name without the content.
        self.file().sync_all().map_err(Error::io(&self.path))?;
        self.file.persist(&self.path).map_err(|error| Error::io(&self.path)(error.error))?;
        Ok(())
    }
}

/// Temporary files are the owner's alone; results are as readable as the umask lets any new file be.
#[cfg(unix)]
fn as_readable_as_any<'a, 'b>(
    builder: &'a mut tempfile::Builder<'b, 'b>,
) -> &'a mut tempfile::Builder<'b, 'b> {
    use std::os::unix::fs::PermissionsExt;
    builder.permissions(std::fs::Permissions::from_mode(0o666))
}

#[cfg(not(unix))]
fn as_readable_as_any<'a, 'b>(
    builder: &'a mut tempfile::Builder<'b, 'b>,
) -> &'a mut tempfile::Builder<'b, 'b> {
    builder
}

/// Makes a folder that appears whole or not at all: `fill` writes into one of another name.
///
/// # Errors
/// If there is something at `path` already, `fill` fails, or a file can't be written.
pub fn make_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if !writes() {
        return Ok(());
    }
    if path.symlink_metadata().is_ok() {
        refuse!("{}: exists already; name a new folder", path.display());
    }
    let folder = parent(path);
    let _in_use = InUse::of(folder);
    let new = folder.join(format!("{PREFIX}{:016x}", rand::random::<u64>()));
    std::fs::create_dir(&new).map_err(Error::io(path))?;
    let made = fill(&new)
        .and_then(|()| sync(&new))
        // Refused by the system where a folder that isn't empty has the name by now.
        .and_then(|()| std::fs::rename(&new, path).map_err(Error::io(path)));
    if made.is_err() {
        // It is of no use to anybody; what went wrong is said already.
        let _ = std::fs::remove_dir_all(&new);
    }
    made
}

/// Has all files in a folder on the disk.
fn sync(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        match path.is_dir() {
            true => sync(&path)?,
            false => File::options()
                .write(true)
                .open(&path)
                .and_then(|file| file.sync_all())
                .map_err(Error::io(&path))?,
        }
    }
    Ok(())
}

/// Removes what killed processes left unfinished in a folder, unless some process is writing there.
pub fn clear_left_behind(folder: &Path) {
    if !writes() {
        return;
    }
    // Where there are no locks on folders, nothing says that nobody is writing.
    let Some(lock) = File::open(folder).ok().filter(|file| file.try_lock().is_ok()) else {
        return;
    };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let (path, is_folder) = (entry.path(), entry.file_type().is_ok_and(|t| t.is_dir()));
            // What belongs to somebody else stays.
            let _ = match is_folder {
                true => std::fs::remove_dir_all(path),
                false => std::fs::remove_file(path),
            };
        }
    }
    drop(lock);
}

/// A folder in which this process has something unfinished: [`clear_left_behind`] lets it alone.
struct InUse(#[expect(dead_code, reason = "held for its lock")] Option<File>);

impl InUse {
    /// Best effort: some systems have no locks on folders, and there nothing is cleared either.
    fn of(folder: &Path) -> Self {
        let file = File::open(folder).ok();
        if let Some(file) = &file {
            // Whoever clears takes a moment; others may hold the folder for as long as they like.
            for _ in 0..50 {
                match file.try_lock_shared() {
                    Err(std::fs::TryLockError::WouldBlock) => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    _ => break,
                }
            }
        }
        Self(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = (std::fs::read_dir(folder).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_left_behind_is_cleared_but_not_what_is_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        std::fs::write(here.join(format!("{PREFIX}left")), "half").unwrap();
        std::fs::create_dir(here.join(format!("{PREFIX}folder"))).unwrap();
        std::fs::write(here.join(".circuit"), "somebody's").unwrap();
        let writing = Unfinished::new(&here.join("new")).unwrap();
        clear_left_behind(here);
        assert_eq!(names(here).len(), 4);
        writing.finish().unwrap();
        clear_left_behind(here);
        assert_eq!(names(here), [".circuit", "new"]);
    }

    #[test]
    fn a_folder_that_fails_leaves_nothing_and_never_replaces_one() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        let fails = |_: &Path| Err(Error::input("no"));
        make_folder(&here.join("a"), fails).unwrap_err();
        assert!(names(here).is_empty());
        make_folder(&here.join("a"), |a| std::fs::write(a.join("b"), "c").map_err(Error::io(a)))
            .unwrap();
        let error = make_folder(&here.join("a"), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
        assert_eq!(std::fs::read_to_string(here.join("a/b")).unwrap(), "c");
    }
}
