//! Files that are whole or not there: everything is written under a temporary name in the target's
//! folder, synced and renamed.

mod room;
pub(crate) mod tensors;
mod unfinished;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Error, Result, memory, refuse};
pub use room::check_room;
pub(crate) use unfinished::{PREFIX, Unfinished};
pub use unfinished::{clear_left_behind, make_folder, parent};

/// Whether this process writes files.
static WRITES: AtomicBool = AtomicBool::new(true);

/// Has this process write no file from now on: another one of the same work does. What would be written is left
/// out without a word.
pub fn write_nothing() {
    WRITES.store(false, Ordering::Relaxed);
}

/// Whether this process writes files.
pub(crate) fn writes() -> bool {
    WRITES.load(Ordering::Relaxed)
}

/// Writes `content` to `path` in one step.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(content).map_err(Error::io(path)))
}

/// Writes in one step what `write` gives the file.
pub(crate) fn write_with(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<()>,
) -> Result<()> {
    if !writes() {
        return Ok(());
    }
    let unfinished = Unfinished::new(path)?;
    let mut buffered = BufWriter::new(unfinished.file());
    write(&mut buffered)?;
    buffered.flush().map_err(Error::io(path))?;
    drop(buffered);
    unfinished.finish()
}

/// Writes `value` as indented JSON with a final newline.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::input(format!("{}: {error}", path.display())))?;
    text.push('\n');
    write_atomically(path, text.as_bytes())
}

/// Writes tensors as a safetensors file, by their names.
///
/// # Errors
/// If it can't be written.
pub fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: Map<String, Value>,
) -> Result<()> {
    let piece = |(name, tensor): (&String, &Tensor)| tensors::Piece {
        name: name.clone(),
        dtype: tensor.dtype(),
        shape: tensor.dims().to_vec(),
        values: Box::new({
            let tensor = tensor.clone();
            move || Ok(tensor.clone())
        }),
    };
    let pieces: Vec<_> = tensors.iter().map(piece).collect();
    tensors::write(path, metadata, &pieces)
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

/// The most bytes that are read of what is no regular file: a pipe or a device need not end.
const MOST_PIPED: u64 = 1 << 30;

/// Refuses a path that names something else than a regular file; one that names nothing is left to whoever
/// reads it.
///
/// # Errors
/// If it is a folder, a pipe or a device.
pub fn check_regular(path: &Path) -> Result<()> {
    match path.metadata() {
        Ok(found) if !found.is_file() => {
            refuse!("{}: is no regular file, which it must be", path.display())
        }
        _ => Ok(()),
    }
}

/// A file's bytes.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let found = file.metadata().map_err(Error::io(path))?;
    let mut bytes = Vec::new();
    if found.is_file() {
        let what = format!("{}: to read it", path.display());
        memory::check(&what, found.len().saturating_mul(2), "give a smaller file")?;
        file.read_to_end(&mut bytes).map_err(Error::io(path))?;
        return Ok(bytes);
    }
    file.take(MOST_PIPED + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > MOST_PIPED {
        refuse!("{}: is no regular file, and gives more than 1 GiB; give a file", path.display());
    }
    Ok(bytes)
}

/// The file's text; an error names the file.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = read(path)?;
    String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        Error::input(format!("{}: is no text file: byte {place} is not UTF-8", path.display()))
    })
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
        let value = parse_row(line)
            .map_err(|reason| Error::input(format!("{}:{number}: {reason}", path.display())))?;
        Ok((number, value))
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

/// A line of a JSON Lines file; the reason where it is malformed, or has other fields than wanted: then with those
/// that it has.
pub fn parse_row<T: DeserializeOwned>(line: &str) -> Result<T, String> {
    serde_json::from_str(line).map_err(|error| {
        // serde's own line number is the one within this line.
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        if !error.is_data() {
            return format!("malformed JSON: {reason}");
        }
        let has = match serde_json::from_str(line) {
            Ok(Value::Object(row)) => {
                let names: Vec<String> =
                    row.keys().take(10).map(|key| format!("{key:?}")).collect();
                format!("; the row has {}", names.join(", "))
            }
            _ => "; a row is an object, { }".to_owned(),
        };
        format!("not a row of this task: {reason}{has}")
    })
}
