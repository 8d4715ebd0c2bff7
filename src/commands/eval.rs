//! `eval`: a task's own evaluation of a model.

use anyhow::Result;
use circuit_framework::Error;
use circuit_framework::figures::InJson;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{path, print_figures, with_runner};
use crate::flags::{self, COMPUTING, Flag, MODEL, TASK};

const FLAGS: &[&[Flag]] = &[MODEL, COMPUTING, TASK];

pub(crate) fn command() -> Command {
    flags::add(Command::new("eval").about("Evaluate a model on a task"), FLAGS)
        .arg(
            Arg::new("out")
                .long("out")
                .value_name("DIR")
                .help("Write what the task leaves beside its figures here: generations, drawings"),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print one JSON object"))
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let experiment = flags::experiment(matches, FLAGS)?;
    with_runner(&experiment, |runner| {
        let figures = runner.evaluate(path(matches, "out").as_deref(), None)?;
        if let Some((name, _)) = figures.iter().find(|(_, value)| value.is_nan()) {
            return Err(Error::NotFinite(format!("figure `{name}` is NaN")).into());
        }
        match matches.get_flag("json") {
            true => println!("{}", serde_json::to_string(&InJson(&figures))?),
            false => print_figures(&[("model", &figures)]),
        }
        Ok(())
    })
}
