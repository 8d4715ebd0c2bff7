//! `report`: one page of one or several runs, to be looked at in a browser. Making it is `circuit_report`'s.

use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use anyhow::{Context, Result};
use circuit_framework::files;
use circuit_report::REPORT;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{named_runs, output, runs};
use crate::outputs::Outputs;
use crate::print::say;

pub(crate) fn command() -> Command {
    Command::new("report")
        .about("Make one page of runs, to be looked at in a browser: one HTML file, offline")
        .arg(runs("Run folders, or a sweep's folder for all of its runs"))
        .arg(output("out", "OUT.html", "Write the page here").default_value(REPORT))
        .arg(
            Arg::new("open").long("open").action(ArgAction::SetTrue).help("Open it in the browser"),
        )
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let runs: Vec<PathBuf> = named_runs(matches).map(PathBuf::from).collect();
    let outputs = Outputs::new(matches, &["out"], runs.clone())?;
    let page = circuit_report::page(&runs)?;
    let Some(out) = outputs.file("out")? else { return Ok(()) };
    files::write_atomically(out, page.as_bytes())?;
    say!("written to {}", out.display());
    match matches.get_flag("open") {
        true => open(out),
        false => Ok(()),
    }
}

/// Writes a finished run's page, or a sweep's, into its folder. The run is there whatever becomes of it.
pub(super) fn write_own(folder: &Path) {
    // A process that was killed while it wrote the page of a finished run left a part of it here, and nothing else
    // is written into such a folder that would clear it.
    files::clear_left_behind(folder);
    if let Err(error) = circuit_report::write(&[folder.to_path_buf()], &folder.join(REPORT)) {
        log::warn!("there is no {REPORT}: {error}");
    }
}

/// Opens a file with the program that the desktop has for it.
fn open(file: &Path) -> Result<()> {
    let program = match std::env::consts::OS {
        "macos" => "open",
        "windows" => "explorer",
        _ => "xdg-open",
    };
    let mut process = Process::new(program);
    process.arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    process.spawn().map(drop).with_context(|| {
        format!("{program} can't be started to open {}; open it in a browser", file.display())
    })
}
