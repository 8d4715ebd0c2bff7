//! `convert`: circuits and scores to EAP-IG's graph files and from them, and as a submission to MIB.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use circuit_framework::files;
use circuit_framework::graph::circuit::Circuit;
use circuit_framework::results::circuit_file::CircuitFile;
use circuit_framework::results::eap_ig::{Converted, Correspondence};
use circuit_framework::results::mib;
use circuit_framework::{Model, Scores};
use clap::{Arg, ArgGroup, ArgMatches, Command};
use serde::Serialize;

use super::{json_flag, path, show};
use crate::flags::{self, Flag, MODEL};
use crate::outputs::{self, Outputs};
use crate::print::say;

const FLAGS: &[&[Flag]] = &[MODEL];

pub(crate) fn command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let convert =
        Command::new("convert")
            .about("Exchange circuits and scores with EAP-IG and MIB's circuit track")
            .arg(Arg::new("file").value_name("FILE.json").required(true).help(
                "A circuit as `discover --circuit` wrote it; with --from, a graph of EAP-IG's",
            ));
    flags::add(convert, FLAGS)
        .arg(
            option(
                "to",
                "FORMAT",
                "What to write: a graph of EAP-IG's, or a folder of them for MIB",
            )
            .value_parser(["eap-ig", "mib"]),
        )
        .arg(option("from", "FORMAT", "What the file is").value_parser(["eap-ig"]))
        .group(ArgGroup::new("direction").args(["to", "from"]).required(true))
        .arg(option(
            "scores",
            "S.safetensors",
            "The scores of all edges: with --to read from here, with --from written here",
        ))
        .arg(option("task", "TASK", "With --to mib, the track's task: ioi, mcqa, arc-easy, …"))
        .arg(
            option("out", "OUT", "Write the result here: a file, with --to mib a folder")
                .required(true),
        )
        .arg(json_flag())
}

#[derive(Serialize)]
struct Outcome {
    files: Vec<PathBuf>,
    /// In the circuit.
    edges: usize,
    /// What could not be carried over as it was.
    losses: Vec<String>,
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let is_mib = matches.get_one::<String>("to").is_some_and(|format| format == "mib");
    let task = matches.get_one::<String>("task");
    if is_mib != task.is_some() {
        bail!("--task goes with --to mib, which needs it: --to mib --task ioi --out FOLDER");
    }
    let file = path(matches, "file").unwrap_or_default();
    let experiment = flags::experiment(matches, FLAGS)?;
    let reads = matches.contains_id("from");
    let scores = path(matches, "scores");
    let read = scores.clone().filter(|_| !reads).into_iter().chain([file.clone()]);
    let written: &[&str] = match (reads, is_mib) {
        (true, _) => &["out", "scores"],
        (false, true) => &[],
        (false, false) => &["out"],
    };
    let inputs = experiment.inputs().into_iter().chain(read).collect();
    let outputs = Outputs::new(matches, written, inputs)?;
    // The folder of a submission has a folder a task.
    let out = outputs::folder(matches, "out")?.unwrap_or_default();
    let model = circuit_models::load(&experiment.model)?.model;
    let outcome = match reads {
        true => from_eap_ig(&file, &*model, &outputs)?,
        false => to(&file, &*model, &out, scores, task)?,
    };
    show(matches, &outputs, &outcome, print)
}

fn to(
    file: &Path,
    model: &dyn Model,
    out: &Path,
    scores: Option<PathBuf>,
    task: Option<&String>,
) -> Result<Outcome> {
    let theirs = Correspondence::of(model)?;
    let circuit = Circuit::load(file, model, model.graph())?;
    let scores = scores.map(|path| Scores::load(&path, model)).transpose()?;
    let Converted { result: files, losses } = match task {
        Some(task) => mib::lay_out(out, task, model, &theirs, &circuit, scores.as_ref())?,
        None => {
            let Converted { result, losses } = theirs.to_eap_ig(&circuit, scores.as_ref())?;
            files::write_atomically(out, result.to_string().as_bytes())?;
            Converted { result: vec![out.to_owned()], losses }
        }
    };
    Ok(Outcome { files, edges: circuit.edges.len(), losses })
}

fn from_eap_ig(file: &Path, model: &dyn Model, outputs: &Outputs) -> Result<Outcome> {
    let Converted { result: (circuit, all), losses } = Correspondence::of(model)?.read(file)?;
    let edges = circuit.edges.len();
    let mut files = Vec::new();
    if let Some(path) = outputs.file("out")? {
        CircuitFile { provenance: None, bootstrap: None, edges: circuit.edges }.write(path)?;
        files.push(path.to_owned());
    }
    if let Some(path) = outputs.file("scores")? {
        all.save(path, None)?;
        files.push(path.to_owned());
    }
    Ok(Outcome { files, edges, losses })
}

fn print(Outcome { files, edges, losses }: &Outcome) {
    say!("circuit           {edges} edges");
    losses.iter().for_each(|loss| say!("not carried over  {loss}"));
    files.iter().for_each(|file| say!("written to        {}", file.display()));
}
