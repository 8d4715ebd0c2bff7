//! The files and folders that a command writes, checked before it computes anything and again when it writes
//! them: what exists is replaced only with `--force`, and what the command reads, never.

use std::fs::Metadata;
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail};
use circuit_framework::files;
use clap::{Arg, ArgAction, ArgMatches};

/// Where `--json` writes to without a file.
pub(crate) const STDOUT: &str = "-";

/// The flag of every command.
const FORCE: &str = "force";

/// The flag that lets files be replaced.
pub(crate) fn force_flag() -> Arg {
    Arg::new(FORCE)
        .long(FORCE)
        .action(ArgAction::SetTrue)
        .global(true)
        .help("Replace output files that exist; what is read, and run folders, never are")
}

/// The outputs that a command's flags name.
pub(crate) struct Outputs {
    /// By the flag.
    paths: Vec<(&'static str, PathBuf)>,
    /// Files and folders that are read.
    inputs: Vec<PathBuf>,
    force: bool,
}

impl Outputs {
    /// The files that these flags and `--json` name, if they may be written.
    ///
    /// # Errors
    /// If one may not, or two are one.
    pub(crate) fn new(
        matches: &ArgMatches,
        flags: &[&'static str],
        inputs: Vec<PathBuf>,
    ) -> Result<Self> {
        let value = |&flag: &&'static str| {
            let value = matches.try_get_one::<String>(flag).ok().flatten()?;
            (flag != "json" || value != STDOUT).then(|| (flag, PathBuf::from(value)))
        };
        let paths: Vec<_> = flags.iter().chain(&["json"]).filter_map(value).collect();
        let outputs = Self { paths, inputs, force: matches.get_flag(FORCE) };
        for (flag, path) in &outputs.paths {
            outputs.check(flag, path)?;
            files::clear_left_behind(files::parent(path));
        }
        outputs.check_distinct()?;
        Ok(outputs)
    }

    /// The file that a flag names, if it may be written still.
    ///
    /// # Errors
    /// If something has its name by now.
    pub(crate) fn file(&self, flag: &str) -> Result<Option<&Path>> {
        match self.paths.iter().find(|(name, _)| *name == flag) {
            Some((flag, path)) => self.check(flag, path).map(|()| Some(&**path)),
            None => Ok(None),
        }
    }

    fn check(&self, flag: &str, path: &Path) -> Result<()> {
        let place = named(flag, path)?;
        let is_name = matches!(path.components().next_back(), Some(Component::Normal(_)));
        if !is_name || path.to_string_lossy().ends_with(std::path::is_separator) {
            bail!("{place}: is a folder; name a file");
        }
        let folder = files::parent(path);
        if !folder.is_dir() {
            bail!("{place}: there is no folder {}; make it first", folder.display());
        }
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        match path.metadata() {
            Ok(found) if found.is_dir() => bail!("{place}: is a folder; name a file"),
            Ok(found) if !found.is_file() => {
                bail!("{place}: is a device or a pipe, which can't be replaced; name a file")
            }
            Ok(found) => self.check_no_input(&place, path, &found)?,
            // A link to nowhere.
            Err(_) => {}
        }
        match self.force {
            true => Ok(()),
            false => {
                bail!("{place}: exists already; name another file, or replace it with --force")
            }
        }
    }

    /// Refuses a file that is one of the inputs, or in one, by whatever name.
    fn check_no_input(&self, place: &str, path: &Path, found: &Metadata) -> Result<()> {
        let output = path.canonicalize()?;
        for input in &self.inputs {
            let is_input = input.metadata().is_ok_and(|input| is_same(&input, found))
                || input.canonicalize().is_ok_and(|input| output.starts_with(input))
                || holds(input, found);
            if is_input {
                bail!("{place}: belongs to what is read, {}; name another file", input.display());
            }
        }
        Ok(())
    }

    fn check_distinct(&self) -> Result<()> {
        let place = |path: &Path| {
            let folder = files::parent(path).canonicalize().ok()?;
            Some(folder.join(path.file_name()?))
        };
        for (index, (flag, path)) in self.paths.iter().enumerate() {
            let twin = self.paths[..index].iter().find(|(_, other)| place(other) == place(path));
            if let Some((other, _)) = twin {
                bail!("--{other} and --{flag} name one file, {}; name two", path.display());
            }
        }
        Ok(())
    }
}

/// A folder that a flag names and the command makes, where it is given.
///
/// # Errors
/// If something has its name: folders are never written over.
pub(crate) fn new_folder(matches: &ArgMatches, flag: &'static str) -> Result<Option<PathBuf>> {
    let folder = folder(matches, flag)?;
    if let Some(folder) = &folder
        && folder.symlink_metadata().is_ok()
    {
        bail!(
            "{}: exists already; name a new folder, runs are never overwritten",
            named(flag, folder)?
        );
    }
    Ok(folder)
}

/// A folder that a flag names, where it is given.
///
/// # Errors
/// If that is no name for one.
pub(crate) fn folder(matches: &ArgMatches, flag: &'static str) -> Result<Option<PathBuf>> {
    let folder = matches.get_one::<String>(flag).map(PathBuf::from);
    folder.iter().try_for_each(|folder| named(flag, folder).map(|_| ()))?;
    Ok(folder)
}

/// A flag with its path, as messages show it, if the path can be one.
fn named(flag: &str, path: &Path) -> Result<String> {
    let text = path.to_string_lossy();
    if text.trim().is_empty() {
        bail!("--{flag}: the name is empty; give one");
    }
    if text.contains(char::is_control) {
        bail!("--{flag} {text:?}: there is a control character in the name; leave it out");
    }
    Ok(format!("--{flag} {text}"))
}

/// Whether a folder holds a file under another name: links to it do.
fn holds(folder: &Path, file: &Metadata) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .into_iter()
        .any(|entry| std::fs::metadata(entry.path()).is_ok_and(|entry| is_same(&entry, file)))
}

#[cfg(unix)]
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// By the path alone.
#[cfg(not(unix))]
fn is_same(_: &Metadata, _: &Metadata) -> bool {
    false
}
