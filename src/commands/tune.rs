//! `tune`: discover and tune from flags alone, into a run folder.

use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{json_flag, output, path, resume, resume_flag, run_and_show};
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
        .arg(resume_flag())
        .arg(json_flag())
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    if let Some(folder) = path(matches, "resume") {
        return resume(matches, &folder);
    }
    let mut experiment = flags::experiment(matches, FLAGS)?;
    experiment.name = "tune".to_owned();
    if matches.get_flag("no-shuffle") {
        experiment.tuning.shuffle = false;
    }
    run_and_show(matches, &experiment)
}
