//! `run`: a whole experiment, registered or from a TOML file, into a run folder; or a matrix of them.

use std::path::Path;

use anyhow::{Result, bail};
use circuit_framework::run::matrix::combinations;
use circuit_framework::run::next_folder;
use clap::{Arg, ArgMatches, Command};

use super::{
    Finished, json_flag, matrix, output, path, print_summary, prints_json, show, with_runner,
};
use crate::experiments;
use crate::flags::{self, COMPUTING, Flag};

const FLAGS: &[&[Flag]] = &[COMPUTING];

pub(crate) fn command() -> Command {
    flags::add(
        Command::new("run").about("Run an experiment: discover, tune, evaluate before and after"),
        FLAGS,
    )
    .arg(
        Arg::new("experiment")
            .value_name("EXPERIMENT|FILE.toml")
            .default_value(experiments::DEFAULT)
            .help("A registered experiment (see `list experiments`) or a TOML file"),
    )
    .arg(output(
        "out",
        "DIR",
        "The run folder; runs/EXPERIMENT-N without it, for a matrix runs/EXPERIMENT",
    ))
    .arg(json_flag())
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let name = matches.get_one::<String>("experiment").map_or(experiments::DEFAULT, String::as_str);
    let mut table = experiments::find(name)?;
    let stem = Path::new(name).file_stem().map_or(name.into(), |stem| stem.to_string_lossy());
    table.entry("name").or_insert_with(|| stem.clone().into_owned().into());
    flags::apply(matches, FLAGS, &mut table)?;
    if let Some(combinations) = combinations(&table, name)? {
        let folder = path(matches, "out").unwrap_or_else(|| Path::new("runs").join(&*stem));
        if matches.contains_id("json") {
            bail!(
                "{name}: a matrix leaves its rows in compare.json of its folder; run it without --json"
            );
        }
        return matrix::run(combinations, name, &folder);
    }
    let experiment = flags::from_table(table, name)?;
    let folder =
        path(matches, "out").unwrap_or_else(|| next_folder(Path::new("runs"), &experiment.name));
    if !experiment.description.is_empty() && !prints_json(matches) {
        println!("{}\n", experiment.description);
    }
    with_runner(&experiment, |runner| {
        let summary = runner.run(&folder)?;
        show(matches, &Finished { folder: &folder, summary }, print_summary)
    })
}
