//! A page that shows runs: one self-contained HTML file, made of run folders alone. Figures, tables and
//! drawings stand in it as HTML and SVG, so that it can be read and printed anywhere; a script, which is in
//! `page/` and built into `dist/`, makes them interactive with the data that the page carries along.
//!
//! `folder` reads a run folder into `folder::Run`, which is what the script gets too; `html` writes the
//! page.

mod circuits;
mod comparison;
mod encoding;
mod folder;
mod html;
mod log;
mod panels;
mod plot;
mod table;

use std::path::{Path, PathBuf};

use circuit_framework::{Result, files};

/// The name that a run's own page has in its folder.
pub const REPORT: &str = "report.html";

/// The page of runs, by their folders. A sweep's folder stands for its runs.
///
/// # Errors
/// If a folder is no run's, or a file in it can't be read.
pub fn page(folders: &[PathBuf]) -> Result<String> {
    let runs = folder::read_all(folders)?;
    html::page(&runs)
}

/// Writes the page of runs to a file, which is there whole or not at all.
///
/// # Errors
/// As [`page`]'s, and if the file can't be written.
pub fn write(folders: &[PathBuf], file: &Path) -> Result<()> {
    files::write_atomically(file, page(folders)?.as_bytes())
}
