//! Files that are whole or not there: everything is written under a temporary name in the target's
//! folder, synced and renamed.

pub(crate) mod tensors;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

use crate::{Error, Result};

/// What the names of files and folders begin with that aren't whole yet: a file, a model's folder.
pub const UNFINISHED: [&str; 2] = [".writing-", ".saving-"];

/// Writes `content` to `path` in one step.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(content).map_err(Error::io(path)))
}

/// Writes in one step what `write` gives the file.
pub(crate) fn write_with(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<()>,
) -> Result<()> {
    let unfinished = Unfinished::new(path)?;
    let mut buffered = BufWriter::new(unfinished.file());
    write(&mut buffered)?;
    buffered.flush().map_err(Error::io(path))?;
    drop(buffered);
    unfinished.finish()
}

/// A file that has its name only when it is finished, and is gone where it isn't.
pub(crate) struct Unfinished {
    path: PathBuf,
    file: NamedTempFile,
}

impl Unfinished {
    /// Begins the file that is to be at `path`.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let file = as_readable_as_any(tempfile::Builder::new().prefix(UNFINISHED[0]))
            .tempfile_in(folder)
            .map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), file })
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

/// Writes `value` as indented JSON with a final newline.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::input(format!("{}: {error}", path.display())))?;
    text.push('\n');
    write_atomically(path, text.as_bytes())
}

/// Values as JSON Lines.
pub fn jsonl(values: &[impl Serialize]) -> Result<String> {
    let mut text = String::new();
    for value in values {
        let line = serde_json::to_string(value)
            .map_err(|error| Error::input(format!("can't be written as JSON: {error}")))?;
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

/// The file's text; an error names the file.
pub fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(Error::io(path))
}

/// A JSON file; an error names the file and the line.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&read_text(path)?)
        .map_err(|error| Error::input(format!("{}: {error}", path.display())))
}

/// A JSON Lines file, each value with its line number; blank lines are passed over.
pub fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<(usize, T)>> {
    let text = read_text(path)?;
    let parse = |(index, line): (usize, &str)| {
        let number = index + 1;
        serde_json::from_str(line)
            .map(|value| (number, value))
            .map_err(|error| Error::input(format!("{}:{number}: {error}", path.display())))
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}
