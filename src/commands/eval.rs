//! `eval`: a task's own evaluation of a model.

use anyhow::Result;
use circuit_framework::Error;
use circuit_framework::evaluation::figures::InJson;
use clap::{ArgMatches, Command};

use super::{json_flag, output, path, print_figures, show, with_runner};
use crate::flags::{self, COMPUTING, Flag, MODEL, TASK};

const FLAGS: &[&[Flag]] = &[MODEL, COMPUTING, TASK];

pub(crate) fn command() -> Command {
    flags::add(Command::new("eval").about("Evaluate a model on a task"), FLAGS)
        .arg(output(
            "out",
            "DIR",
            "Write what the task leaves beside its figures here: generations, drawings",
        ))
        .arg(json_flag())
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let experiment = flags::experiment(matches, FLAGS)?;
    with_runner(&experiment, |runner| {
        let figures = runner.evaluate(path(matches, "out").as_deref(), None)?;
        if let Some((name, _)) = figures.iter().find(|(_, value)| value.is_nan()) {
            return Err(Error::NotFinite(format!("figure `{name}` is NaN")).into());
        }
        show(matches, &InJson(&figures), |InJson(figures)| print_figures(&[("model", figures)]))
    })
}
