//! One file a subcommand; here what several of them share: loading, showing results, printing figures.

pub(crate) mod bench;
pub(crate) mod compare;
pub(crate) mod discover;
pub(crate) mod draw;
pub(crate) mod eval;
pub(crate) mod faithfulness;
pub(crate) mod list;
pub(crate) mod logits;
mod matrix;
pub(crate) mod plugin;
pub(crate) mod run;
mod settings;
pub(crate) mod tokens;
pub(crate) mod tune;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use circuit_framework::run::experiment::Experiment;
use circuit_framework::run::{Runner, Summary};
use circuit_framework::{Figures, files};
use clap::{Arg, ArgMatches};
use serde::Serialize;

use crate::progress::Display;

/// Loads an experiment's model and plugins and hands them to `work`.
fn with_runner<T>(experiment: &Experiment, work: impl FnOnce(&Runner) -> Result<T>) -> Result<T> {
    let plugins = experiment.plugins()?;
    let loaded = circuit_models::load(&experiment.model)?;
    let tokenizer = loaded.tokenizer;
    let display = Display::new();
    work(&Runner {
        experiment,
        plugins: &plugins,
        model: &*loaded.model,
        tokenizer: tokenizer.as_ref(),
        save: &|folder, model| circuit_models::save(folder, model, tokenizer.as_ref()),
        report: &|progress| display.show(&progress),
        data: Default::default(),
    })
}

/// A flag's path, where given.
fn path(matches: &ArgMatches, name: &str) -> Option<PathBuf> {
    matches.get_one::<String>(name).map(PathBuf::from)
}

/// A flag that names a file or folder that is written.
fn output(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

/// Where `--json` writes to without a file.
const STDOUT: &str = "-";

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
fn show<T: Serialize>(matches: &ArgMatches, result: &T, print: impl FnOnce(&T)) -> Result<()> {
    if prints_json(matches) {
        println!("{}", serde_json::to_string(result)?);
        return Ok(());
    }
    if let Some(file) = path(matches, "json") {
        files::write_json(&file, result)?;
    }
    print(result);
    Ok(())
}

/// A finished run.
#[derive(Serialize)]
struct Finished<'a> {
    folder: &'a Path,
    #[serde(flatten)]
    summary: Summary,
}

/// Prints a run's figures side by side.
fn print_summary(Finished { folder, summary }: &Finished) {
    let mut columns = vec![("before", &summary.before), ("after", &summary.after)];
    columns.extend(summary.control.as_ref().map(|control| ("control", control)));
    print_figures(&columns);
    let percent = |ratio: f64| format!("{:.1} %", 100.0 * ratio);
    println!();
    println!(
        "tuned       {} of {} parameters ({}) in {} steps",
        summary.tuned_parameters,
        summary.parameters,
        percent(summary.tuned_parameter_ratio),
        summary.steps
    );
    if let Some(ratio) = summary.control_tuned_parameter_ratio {
        println!("control     {}", percent(ratio));
    }
    println!("discovery   {:.1} s", summary.discovery_seconds);
    println!("tuning      {:.1} s", summary.tuning_seconds);
    println!("written to  {}", folder.display());
}

/// A row a figure that any column has, a column a model; a figure that a column lacks is a dash.
fn print_figures(columns: &[(&str, &Figures)]) {
    let names: BTreeSet<&String> = columns.iter().flat_map(|(_, figures)| figures.keys()).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(12) + 2;
    print!("{:width$}", "");
    columns.iter().for_each(|(name, _)| print!("{name:>12}"));
    println!();
    for name in names {
        print!("{name:width$}");
        for (_, figures) in columns {
            match figures.get(name) {
                Some(value) => print!("{value:>12.4}"),
                None => print!("{:>12}", "-"),
            }
        }
        println!();
    }
}
