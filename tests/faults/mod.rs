//! What may go wrong from outside, at any moment: kills, signals, full disks, closed pipes, races, and outputs that
//! would destroy what is there. docs/reliability.md tells what is promised.

mod disk;
mod kills;
mod outputs;
mod races;
mod shards;
mod signals;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::command_line::words;

fn start(folder: &Path, line: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_circuit-tuning"));
    command.args(words(line)).current_dir(folder).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs a shell's script in a folder; `$PROGRAM` in it is the program.
#[cfg(unix)]
fn shell(folder: &Path, script: &str) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(folder);
    command.env("PROGRAM", env!("CARGO_BIN_EXE_circuit-tuning")).output().unwrap()
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
