//! The command line of `circuit-tuning`: what was asked for is turned into an experiment, the
//! framework runs it, and what came of it is shown. No science in here.
//!
//! It is a library so that a program of one's own has every command and one's own plugins:
//!
//! ```ignore
//! use my_plugins as _;
//!
//! fn main() -> std::process::ExitCode {
//!     circuit_tuning::main()
//! }
//! ```

mod arguments;
mod commands;
mod experiments;
mod flags;
mod job;
mod outputs;
mod plugins;
mod print;
mod progress;
mod signals;

// Linked for what they register.
use circuit_metrics as _;
use circuit_plugins as _;
use circuit_tasks as _;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use circuit_framework::panics;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::signals::Stopped;

/// Runs the command that the program's arguments name, with every plugin linked into the program. The exit
/// code is 2 where it was refused or failed.
pub fn main() -> ExitCode {
    progress::log_to_stderr();
    panics::note_panics();
    let matches = command().get_matches_from(arguments::joined(std::env::args_os()));
    // A closed pipe ends the program as it ends any other, without a word; but not a run.
    let runs = matches!(matches.subcommand_name(), Some("run" | "tune"));
    if !runs {
        sigpipe::reset();
    }
    // In the pool from the start: a thread outside would wake it and sleep itself for every operation.
    let work = || panics::caught("the program", || Ok(job::join().and_then(|()| run(&matches))));
    let done = rayon::scope(|_| work());
    match done.map_err(anyhow::Error::from).flatten() {
        Ok(()) => match print::lost().filter(|_| !runs) {
            Some(error) => {
                job::end(2, Some(&format!("error: standard output can't be written: {error}")))
            }
            None => job::end(0, None),
        },
        Err(error) => match error.downcast_ref::<Stopped>() {
            Some(stopped) => job::end(stopped.exit_code(), Some(&format!("{error:#}"))),
            None => job::end(2, Some(&format!("error: {}", one_line(&format!("{error:#}"))))),
        },
    }
}

/// The most characters of a message; what is longer quotes a file at length.
const LONGEST: usize = 1500;

/// A message without the backtrace that candle's errors have behind them where RUST_BACKTRACE is set.
fn one_line(message: &str) -> String {
    let is_frame = |line: &&str| line.trim_start().starts_with("0: ");
    let lines = message.lines().take_while(|line| !is_frame(line)).map(str::trim);
    let line = lines.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn run(matches: &ArgMatches) -> Result<()> {
    job::check_shared(matches)?;
    if matches.get_flag("quiet") {
        progress::be_quiet();
    }
    if matches.get_flag("allow-plugins") {
        plugins::allow();
    }
    for path in matches.get_many::<String>("plugins").into_iter().flatten() {
        plugins::load(Path::new(path))?;
    }
    match matches.subcommand() {
        Some(("list", matches)) => commands::list::run(matches),
        Some(("run", matches)) => commands::run::run(matches),
        Some(("discover", matches)) => commands::discover::run(matches),
        Some(("tune", matches)) => commands::tune::run(matches),
        Some(("relearn", matches)) => commands::relearn::run(matches),
        Some(("draw", matches)) => commands::draw::run(matches),
        Some(("eval", matches)) => commands::eval::run(matches),
        Some(("faithfulness", matches)) => commands::faithfulness::run(matches),
        Some(("analyze", matches)) => commands::analyze::run(matches),
        Some(("report", matches)) => commands::report::run(matches),
        Some(("compare", matches)) => commands::compare::run(matches),
        Some(("dynamics", matches)) => commands::dynamics::run(matches),
        Some(("diff", matches)) => commands::diff::run(matches),
        Some(("circuit", matches)) => commands::circuit::run(matches),
        Some(("delta", matches)) => commands::delta::run(matches),
        Some(("methods", matches)) => commands::methods::run(matches),
        Some(("convert", matches)) => commands::convert::run(matches),
        Some(("bench", matches)) => commands::bench::run(matches),
        Some(("logits", matches)) => commands::logits::run(matches),
        Some(("tokens", matches)) => commands::tokens::run(matches),
        Some(("plugin", matches)) => commands::plugin::run(matches),
        // clap has refused everything else.
        _ => Ok(()),
    }
}

fn command() -> Command {
    Command::new("circuit-tuning")
        .about(
            "Finds the circuit a language model uses for a task and fine-tunes only that circuit",
        )
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            commands::run::command(),
            commands::discover::command(),
            commands::tune::command(),
            commands::relearn::command(),
            commands::draw::command(),
            commands::dynamics::command(),
            commands::diff::command(),
            commands::circuit::command(),
            commands::delta::command(),
            commands::eval::command(),
            commands::faithfulness::command(),
            commands::analyze::command(),
            commands::report::command(),
            commands::compare::command(),
            commands::methods::command(),
            commands::convert::command(),
            commands::tokens::command(),
            commands::logits::command(),
            commands::list::command(),
            commands::plugin::command(),
            commands::bench::command(),
        ])
        .arg(
            Arg::new("plugins")
                .long("plugin")
                .value_name("FILE.plugin")
                .action(ArgAction::Append)
                .global(true)
                .help("Load a run-time plugin first, as `plugin build` made it"),
        )
        .arg(
            Arg::new("allow-plugins")
                .long("allow-plugins")
                .action(ArgAction::SetTrue)
                .global(true)
                .help("Load the plugins that an experiment file names though the file isn't yours"),
        )
        .arg(outputs::force_flag())
        .arg(
            Arg::new("quiet")
                .long("quiet")
                .action(ArgAction::SetTrue)
                .global(true)
                .help("Show no progress and no notes, only warnings and the result"),
        )
}
