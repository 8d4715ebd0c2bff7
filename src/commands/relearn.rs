//! `relearn`: how fast a model learns a task, over the number of examples that it is tuned on.

use std::collections::BTreeMap;

use anyhow::Result;
use circuit_framework::run::Relearned;
use clap::{Arg, ArgMatches, Command};
use toml::Table;

use super::{json_flag, print_columns, show, summary, with_runner};
use crate::flags::{self, COMPUTING, DISCOVERY, Flag, MODEL, TASK, TUNING};
use crate::outputs::Outputs;

const FLAGS: &[&[Flag]] = &[MODEL, COMPUTING, TASK, DISCOVERY, TUNING];

/// Whoever tunes a model back tunes all of it.
fn defaults() -> Table {
    toml::toml! { selector = { name = "all" } }
}

pub(crate) fn command() -> Command {
    let relearn = Command::new("relearn")
        .about("Tune a model on n examples, for several n, and evaluate each: the curve over n");
    flags::add_over(relearn, FLAGS, &defaults())
        .arg(
            Arg::new("examples")
                .long("examples")
                .value_name("N,…")
                .value_delimiter(',')
                .default_value("0,1,2,4,8,16,32")
                .value_parser(clap::value_parser!(usize))
                .help("The numbers of training examples, the task's first ones; 0 for the model as it is"),
        )
        .arg(json_flag())
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let mut table = defaults();
    flags::apply(matches, FLAGS, &mut table)?;
    let experiment = flags::from_table(table, "settings")?;
    let outputs = Outputs::new(matches, &[], experiment.inputs())?;
    let counts: Vec<usize> = matches.get_many("examples").into_iter().flatten().copied().collect();
    with_runner(&experiment, |runner| {
        let curve = runner.relearn(&counts)?;
        show(matches, &outputs, &curve, |curve| print(curve, &experiment.figures))
    })
}

/// A column a number of examples.
fn print(curve: &[Relearned], shown: &[String]) {
    let names: Vec<String> = curve.iter().map(|point| point.examples.to_string()).collect();
    let cells = curve.iter().map(|point| summary::cells(&point.figures));
    let columns: Vec<(&str, BTreeMap<&String, String>)> =
        names.iter().map(String::as_str).zip(cells).collect();
    print_columns(&columns, shown);
}
