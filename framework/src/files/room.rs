//! Whether there is room on a disk for what is going to be written.

use std::path::Path;

use crate::{Result, refuse};

/// Refuses to begin what needs more bytes in a folder, which need not be there yet, than are free; `what` is
/// what takes them.
///
/// # Errors
/// With both figures.
pub fn check_room(folder: &Path, bytes: u64, what: &str) -> Result<()> {
    match free(folder) {
        Some(free) if free < bytes => refuse!(
            "{}: {what} will take {}, but {} are free there; make room, or write elsewhere",
            folder.display(),
            size(bytes),
            size(free)
        ),
        _ => Ok(()),
    }
}

/// Bytes as one reads them.
fn size(bytes: u64) -> String {
    match bytes {
        0..=999_999 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..=999_999_999 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// The bytes that are free to this user where a folder is or will be, where the system tells.
#[cfg(unix)]
fn free(folder: &Path) -> Option<u64> {
    let folder = std::path::absolute(folder).ok()?;
    let there = folder.ancestors().find(|folder| folder.exists())?;
    let disk = rustix::fs::statvfs(there).ok()?;
    // Some file systems tell nothing.
    (disk.f_blocks > 0).then(|| disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_there_is_is_refused_with_both_figures() {
        let folder = tempfile::tempdir().unwrap();
        let later = folder.path().join("not/there/yet");
        assert!(check_room(&later, 1, "a line").is_ok());
        let error = check_room(&later, u64::MAX, "the run").unwrap_err().to_string();
        assert!(error.contains("the run will take") && error.contains("are free"), "{error}");
    }
}
