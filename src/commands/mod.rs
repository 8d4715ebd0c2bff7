//! One file a subcommand; here what several of them share: loading, showing results, printing figures.

pub(crate) mod analyze;
pub(crate) mod bench;
pub(crate) mod circuit;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod delta;
pub(crate) mod diff;
pub(crate) mod discover;
pub(crate) mod draw;
pub(crate) mod dynamics;
pub(crate) mod eval;
pub(crate) mod faithfulness;
pub(crate) mod list;
pub(crate) mod logits;
pub(crate) mod methods;
mod movement;
mod plan;
pub(crate) mod plugin;
pub(crate) mod relearn;
pub(crate) mod report;
pub(crate) mod run;
mod settings;
mod share;
mod summary;
mod sweep;
mod table;
pub(crate) mod tokens;
pub(crate) mod tune;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use circuit_framework::run::experiment::Experiment;
use circuit_framework::run::{Runner, finished, last_kept_step};
use circuit_framework::{Error, Figures, files};
use circuit_report::REPORT;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Id};
use serde::Serialize;

use crate::outputs::{self, Outputs, STDOUT};
use crate::print::say;
use crate::progress::Display;
use crate::signals::stoppable;
use crate::{experiments, flags, job};
use summary::Finished;

/// Loads an experiment's model and plugins and hands them to `work`.
fn with_runner<T>(experiment: &Experiment, work: impl FnOnce(&Runner) -> Result<T>) -> Result<T> {
    check_alike(experiment)?;
    let plugins = experiment.plugins()?;
    let loaded = circuit_models::load(&job::with_own_device(&experiment.model))?;
    let tokenizer = loaded.tokenizer;
    let display = Display::new();
    work(&Runner {
        experiment,
        plugins: &plugins,
        model: &*loaded.model,
        tokenizer: tokenizer.as_ref(),
        save: &|folder, model| circuit_models::save(folder, model, tokenizer.as_ref()),
        report: &|progress| display.show(&progress),
        peers: job::peers(),
        data: Default::default(),
    })
}

/// Refuses to go on with processes that were started with something else.
fn check_alike(experiment: &Experiment) -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    Ok(circuit_framework::run::check_alike(job::peers(), experiment, &arguments)?)
}

/// A flag's path, where given.
fn path(matches: &ArgMatches, name: &str) -> Option<PathBuf> {
    matches.get_one::<String>(name).map(PathBuf::from)
}

/// A flag that names a file or folder that is written.
fn output(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

/// The run folders that a command takes.
fn runs(help: &'static str) -> Arg {
    Arg::new("runs")
        .value_name("RUN")
        .action(ArgAction::Append)
        .required(true)
        .num_args(1..)
        .help(help)
}

/// The run folders that were named.
fn named_runs(matches: &ArgMatches) -> impl Iterator<Item = &String> {
    matches.get_many("runs").into_iter().flatten()
}

/// The flag `--json [FILE]`, the same on every command that prints a result; [`show`] follows it.
fn json_flag() -> Arg {
    output(
        "json",
        "FILE",
        "Write the result as JSON to a file; without one, print it as one object",
    )
    .num_args(0..=1)
    .default_missing_value(STDOUT)
}

/// Whether `--json` leaves standard output to one object.
fn prints_json(matches: &ArgMatches) -> bool {
    matches.get_one::<String>("json").is_some_and(|file| file == STDOUT)
}

/// Shows a command's result: by `print`, and where `--json` says so as JSON; never both on standard
/// output.
fn show<T: Serialize>(
    matches: &ArgMatches,
    outputs: &Outputs,
    result: &T,
    print: impl FnOnce(&T),
) -> Result<()> {
    if prints_json(matches) {
        say!("{}", serde_json::to_string(result)?);
        return Ok(());
    }
    if let Some(file) = outputs.file("json")? {
        files::write_json(file, result)?;
    }
    print(result);
    Ok(())
}

/// The flag of commands that run: go on with a run that was ended.
fn resume_flag() -> Arg {
    output("resume", "DIR", "Go on with the run of this folder, from where it was ended")
        .conflicts_with("out")
}

/// Runs what the experiment asks for, in the folder `--out` names or the next one of its name, and shows the
/// summary.
fn run_and_show(matches: &ArgMatches, experiment: &Experiment) -> Result<()> {
    let folder = RefCell::new(outputs::new_folder(matches, "out")?);
    let outputs = Outputs::new(matches, &[], experiment.inputs())?;
    let run = || {
        with_runner(experiment, |runner| {
            let given = folder.borrow().clone();
            Ok(match given {
                Some(folder) => runner.run(&folder)?,
                None => runner.run_in_next(Path::new("runs"), |path| {
                    *folder.borrow_mut() = Some(path.to_path_buf());
                })?,
            })
        })
    };
    let named = || folder.borrow().clone().unwrap_or_default();
    let summary = stoppable(run, || go_on(&named())).map_err(|error| kept(error, &named()))?;
    if job::is_first() {
        report::write_own(&named());
    }
    show(matches, &outputs, &Finished { folder: &named(), summary }, summary::print)
}

/// The flags that `--resume` goes with: none changes what a run is.
const GO_WITH_RESUME: [&str; 6] = ["resume", "json", "plugins", "allow-plugins", "force", "quiet"];

/// Goes on with the run of a folder, and shows the summary; a finished one's is shown as it is.
fn resume(matches: &ArgMatches, folder: &Path) -> Result<()> {
    for flag in matches.ids().map(Id::as_str).filter(|id| !GO_WITH_RESUME.contains(id)) {
        if matches.value_source(flag) == Some(ValueSource::CommandLine) {
            bail!("--resume takes every setting from the run's config.toml; leave `{flag}` out");
        }
    }
    let outputs = Outputs::new(matches, &[], vec![folder.to_path_buf()])?;
    let summary = match finished(folder)? {
        Some(summary) => summary,
        None => {
            let config = folder.join("config.toml");
            if !config.is_file() {
                bail!("{}: is no run folder; give one that `run` or `tune` made", folder.display());
            }
            let origin = config.display().to_string();
            let experiment = flags::from_table(experiments::find(&origin)?, &origin)?;
            let run = || with_runner(&experiment, |runner| Ok(runner.resume(folder)?));
            stoppable(run, || go_on(folder)).map_err(|error| kept(error, folder))?
        }
    };
    // A process that was killed at its very end may have left none.
    if job::is_first() && !folder.join(REPORT).exists() {
        report::write_own(folder);
    }
    show(matches, &outputs, &Finished { folder, summary }, summary::print)
}

/// Where a file couldn't be written or read, what of the run is kept, beside the error.
fn kept(error: anyhow::Error, folder: &Path) -> anyhow::Error {
    let is_io = matches!(error.downcast_ref(), Some(Error::Io { .. }));
    if !is_io || !folder.join("config.toml").is_file() {
        return error;
    }
    let what = match last_kept_step(folder) {
        Some(step) => format!("the state after step {step} is kept"),
        None => "the stages that were finished are kept".to_owned(),
    };
    anyhow::anyhow!("{error:#}; {what}, and {}", go_on(folder))
}

/// How to go on with a run that was stopped.
fn go_on(folder: &Path) -> String {
    format!("`circuit-tuning run --resume {}` goes on from here", folder.display())
}

/// Figures side by side, a column a model.
fn print_figures(columns: &[(&str, &Figures)]) {
    let columns: Vec<_> =
        columns.iter().map(|&(name, figures)| (name, summary::cells(figures))).collect();
    print_columns(&columns, &[]);
}

/// A row each of the figures `shown`, or of all that any column has; a figure that a column lacks is a dash.
fn print_columns(columns: &[(&str, BTreeMap<&String, String>)], shown: &[String]) {
    let names: Vec<&String> = match shown {
        [] => {
            let all = columns.iter().flat_map(|(_, cells)| cells.keys().copied());
            all.collect::<BTreeSet<_>>().into_iter().collect()
        }
        shown => shown.iter().collect(),
    };
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(12) + 2;
    let widths: Vec<usize> = (columns.iter())
        .map(|(name, cells)| {
            let cells = cells.values().map(|cell| cell.chars().count());
            cells.chain([name.chars().count(), 10]).max().unwrap_or(0) + 2
        })
        .collect();
    let row = |cell: &dyn Fn(usize) -> String| -> String {
        widths
            .iter()
            .enumerate()
            .map(|(column, &width)| format!("{:>width$}", cell(column)))
            .collect()
    };
    say!("{:width$}{}", "", row(&|column| columns[column].0.to_owned()));
    for name in names {
        let cell =
            |column: usize| columns[column].1.get(name).map_or("-", String::as_str).to_owned();
        say!("{name:width$}{}", row(&cell));
    }
}
