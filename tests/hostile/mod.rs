//! Files and settings that nobody means well with: each ends in one line that names it, never in an abort, a
//! hang or a full memory.

mod folders;
mod gguf;
#[cfg(all(unix, feature = "runtime"))]
mod plugins;
mod shown;
mod sizes;
mod templates;

use std::path::Path;
use std::process::{Command, Output};

use crate::command_line::words;

/// Runs the program with so many kilobytes of address space.
fn limited(folder: &Path, kilobytes: u64, line: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_circuit-tuning");
    Command::new("sh")
        .args(["-c", &format!("ulimit -v {kilobytes}; exec \"$0\" \"$@\""), program])
        .args(words(line))
        .current_dir(folder)
        .output()
        .unwrap()
}

/// The one line of an error.
fn error(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{}: {errors}", output.status);
    let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "{errors}");
    assert_eq!(errors.lines().last(), Some(lines[0]), "{errors}");
    lines[0].to_owned()
}

/// Fails under the limit with one line that has all of `parts`.
fn refuses_within(folder: &Path, kilobytes: u64, line: &str, parts: &[&str]) {
    let error = error(&limited(folder, kilobytes, line));
    for part in parts {
        assert!(error.contains(part), "{line}: `{part}` is not in: {error}");
    }
}
