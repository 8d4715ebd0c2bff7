//! `run`: a whole experiment, registered or from a TOML file, into a run folder; or a sweep of them;
//! or the rest of one that was ended.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Result, bail};
use circuit_framework::run::sweep::combinations;
use clap::{Arg, ArgMatches, Command};

use super::share::Share;
use super::{json_flag, output, path, prints_json, resume, resume_flag, run_and_show, sweep};
use crate::experiments;
use crate::flags::{self, COMPUTING, Flag};
use crate::job;
use crate::outputs;
use crate::print::say;
use crate::signals::stoppable;

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
            .conflicts_with("resume")
            .help("A registered experiment (see `list experiments`) or a TOML file"),
    )
    .arg(output(
        "out",
        "DIR",
        "The run folder; runs/EXPERIMENT-N without it, for a sweep runs/EXPERIMENT",
    ))
    .arg(
        output(
            "shard",
            "I/N",
            "Run only the I-th of N shares of a sweep, or with `auto` what no other process has claimed",
        )
        .value_parser(clap::builder::ValueParser::new(Share::from_str))
        .conflicts_with("resume"),
    )
    .arg(resume_flag())
    .arg(json_flag())
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    if let Some(folder) = path(matches, "resume") {
        return resume(matches, &folder);
    }
    let name = matches.get_one::<String>("experiment").map_or(experiments::DEFAULT, String::as_str);
    let mut table = experiments::find(name)?;
    let stem = Path::new(name).file_stem().map_or(name.into(), |stem| stem.to_string_lossy());
    table.entry("name").or_insert_with(|| stem.clone().into_owned().into());
    flags::apply(matches, FLAGS, &mut table)?;
    if let Some(combinations) = combinations(&table, name)? {
        if job::peers().size() > 1 {
            bail!(
                "{name}: is a sweep, whose runs are one process's work each; share them out by --shard, without \
                 mpirun"
            );
        }
        let folder = outputs::folder(matches, "out")?;
        let folder = folder.unwrap_or_else(|| Path::new("runs").join(&*stem));
        if matches.contains_id("json") {
            bail!(
                "{name}: a sweep leaves its rows in compare.json of its folder; run it without --json"
            );
        }
        let share = matches.get_one("shard").copied().unwrap_or(Share::All);
        let shard = matches.get_raw("shard").into_iter().flatten();
        let shard: String = shard.map(|share| format!(" --shard {}", share.display())).collect();
        let out = folder.display();
        let again = || format!("`circuit-tuning run {name} --out {out}{shard}` goes on from here");
        return stoppable(|| sweep::run(combinations, share, name, &folder), again);
    }
    if matches.contains_id("shard") {
        bail!("{name}: has no [sweep] that --shard could share out");
    }
    let experiment = flags::from_table(table, name)?;
    if !experiment.description.is_empty() && !prints_json(matches) {
        say!("{}\n", experiment.description);
    }
    run_and_show(matches, &experiment)
}
