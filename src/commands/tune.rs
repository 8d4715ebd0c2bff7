//! `tune`: discover and tune from flags alone, into a run folder.

use std::path::Path;

use anyhow::Result;
use circuit_framework::run::next_folder;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{Finished, json_flag, output, path, print_summary, show, with_runner};
use crate::flags::{self, COMPUTING, DISCOVERY, Flag, MODEL, TASK, TUNING};

const FLAGS: &[&[Flag]] = &[MODEL, COMPUTING, TASK, DISCOVERY, TUNING];

pub(crate) fn command() -> Command {
    flags::add(Command::new("tune").about("Fine-tune only the circuit"), FLAGS)
        .arg(
            Arg::new("no-shuffle")
                .long("no-shuffle")
                .action(ArgAction::SetTrue)
                .help("Take the examples in file order"),
        )
        .arg(output("out", "DIR", "The run folder; runs/tune-N without it"))
        .arg(json_flag())
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let mut experiment = flags::experiment(matches, FLAGS)?;
    experiment.name = "tune".to_owned();
    if matches.get_flag("no-shuffle") {
        experiment.tuning.shuffle = false;
    }
    let folder = path(matches, "out").unwrap_or_else(|| next_folder(Path::new("runs"), "tune"));
    with_runner(&experiment, |runner| {
        let summary = runner.run(&folder)?;
        show(matches, &Finished { folder: &folder, summary }, print_summary)
    })
}
