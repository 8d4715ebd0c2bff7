//! Every reader of files on files that were changed at random: none may panic, abort, hang or take much memory,
//! whatever a file holds. What an input is follows from the target, the seed and its number alone.

mod execute;
// The runtime crate is a shared library of its own; what reads its plugins' stamps is this one file.
#[path = "../../plugins/runtime/src/fingerprint.rs"]
#[expect(dead_code, reason = "the running program has no fingerprint here")]
mod fingerprint;
mod mutate;
mod targets;
mod watch;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

// Linked for what they register.
use circuit_metrics as _;
use circuit_plugins as _;
use circuit_tasks as _;

/// Runs readers of files on files that were changed at random.
#[derive(Parser)]
struct Arguments {
    /// The targets; all without any.
    targets: Vec<String>,
    /// Inputs a target.
    #[arg(long, default_value_t = 1000)]
    executions: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of the first input.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Run this input alone, in this process, and say what became of it.
    #[arg(long)]
    only: Option<u64>,
    /// Where inputs that fail are kept.
    #[arg(long, default_value = "target/fuzz")]
    keep: std::path::PathBuf,
    /// Set by the process that watches: the folder that it looks into.
    #[arg(long, hide = true)]
    watched: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether no input failed.
fn run(arguments: &Arguments) -> Result<bool> {
    let targets = targets::named(&arguments.targets)?;
    let inputs = arguments.first..arguments.first + arguments.executions;
    if let (Some(folder), [target]) = (&arguments.watched, &targets[..]) {
        execute::all(target, arguments.seed, inputs, folder)?;
        return Ok(true);
    }
    let mut good = true;
    if arguments.only.is_none() {
        println!("{}", watch::HEADER);
    }
    for target in &targets {
        match arguments.only {
            Some(input) => execute::one(target, arguments.seed, input)?,
            None => {
                let keep: &Path = &arguments.keep;
                good &= watch::target(target, arguments.seed, inputs.clone(), keep)?;
            }
        }
    }
    Ok(good)
}
