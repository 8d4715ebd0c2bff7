//! `eval`: a task's own evaluation of a model.

use anyhow::Result;
use circuit_framework::Error;
use circuit_framework::evaluation::figures::InJson;
use circuit_framework::results::circuit_file::CircuitFile;
use clap::{ArgMatches, Command};

use super::{faithfulness, json_flag, output, path, print_figures, show, with_runner};
use crate::flags::{self, ABLATION, COMPUTING, Flag, MODEL, TASK};
use crate::outputs::{self, Outputs};

const FLAGS: &[&[Flag]] = &[MODEL, COMPUTING, TASK, ABLATION];

pub(crate) fn command() -> Command {
    flags::add(Command::new("eval").about("Evaluate a model, or a circuit of it, on a task"), FLAGS)
        .arg(
            output(
                "circuit",
                "C.json",
                "Only this circuit is in force: all other edges are ablated",
            )
            .requires("ablation"),
        )
        .mut_arg("ablation", |ablation| ablation.requires("circuit"))
        .arg(output(
            "out",
            "DIR",
            "Write what the task leaves beside its figures here: generations, drawings",
        ))
        .arg(json_flag())
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let mut experiment = flags::experiment(matches, FLAGS)?;
    let circuit = path(matches, "circuit");
    if let Some(file) = &circuit {
        experiment.discovery.nodes = faithfulness::nodes(CircuitFile::read(file)?.provenance);
    }
    let out = outputs::new_folder(matches, "out")?;
    let inputs = experiment.inputs().into_iter().chain(circuit.clone());
    let outputs = Outputs::new(matches, &[], inputs.collect())?;
    with_runner(&experiment, |runner| {
        let figures = match &circuit {
            None => runner.evaluate(out.as_deref(), None)?,
            Some(file) => runner.evaluate_circuit(out.as_deref(), file)?,
        };
        if let Some((name, _)) = figures.iter().find(|(_, value)| value.is_nan()) {
            return Err(Error::NotFinite(format!("figure `{name}` is NaN")).into());
        }
        let column = if circuit.is_some() { "circuit" } else { "model" };
        let figures = InJson(&figures);
        show(matches, &outputs, &figures, |InJson(figures)| print_figures(&[(column, figures)]))
    })
}
