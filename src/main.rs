//! The command line of `circuit-tuning`: what was asked for is turned into an experiment, the
//! framework runs it, and what came of it is shown. No science in here.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the program that prints")]

mod commands;
mod experiments;
mod flags;
mod progress;

// Linked for what they register.
use circuit_metrics as _;
use circuit_plugins as _;
use circuit_tasks as _;

use std::process::ExitCode;

use clap::Command;

fn main() -> ExitCode {
    progress::log_to_stderr();
    let matches = command().get_matches();
    let done = match matches.subcommand() {
        Some(("list", matches)) => commands::list::run(matches),
        Some(("run", matches)) => commands::run::run(matches),
        Some(("discover", matches)) => commands::discover::run(matches),
        Some(("tune", matches)) => commands::tune::run(matches),
        Some(("eval", matches)) => commands::eval::run(matches),
        Some(("compare", matches)) => commands::compare::run(matches),
        // clap has refused everything else.
        _ => Ok(()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
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
            commands::eval::command(),
            commands::compare::command(),
            commands::list::command(),
        ])
}
