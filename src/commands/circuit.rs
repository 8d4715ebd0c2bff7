//! `circuit`: the union, intersection or difference of circuit files as another.

use std::path::PathBuf;

use anyhow::Result;
use circuit_framework::graph::circuit::Circuit;
use circuit_framework::graph::comparison::Comparison;
use circuit_framework::results::circuit_file::CircuitFile;
use circuit_framework::results::provenance::Provenance;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;

use super::{diff, json_flag, output, show};
use crate::outputs::Outputs;
use crate::print::say;

/// A set operation: its name, what help says, and the sign between tasks' names.
const OPERATIONS: [(&str, &str, &str); 3] = [
    ("union", "The edges of any of the circuits", "+"),
    ("intersection", "The edges of all of the circuits", "&"),
    ("difference", "The edges of the first circuit that no other has", "-"),
];

pub(crate) fn command() -> Command {
    let operation = |(name, about, _)| {
        Command::new(name)
            .about(about)
            .arg(
                Arg::new("circuits")
                    .value_name("CIRCUIT.json|RUN")
                    .action(ArgAction::Append)
                    .required(true)
                    .num_args(2..)
                    .help("Circuit files, or run folders: their circuits after tuning. Scores are the first one's that has the edge"),
            )
            .arg(output("out", "C.json", "Write the circuit here").required(true))
            .arg(json_flag())
    };
    Command::new("circuit")
        .about("Join, intersect or subtract circuits")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(OPERATIONS.map(operation))
}

/// What `--json` writes.
#[derive(Serialize)]
struct Outcome {
    operation: String,
    circuits: Vec<PathBuf>,
    edges: usize,
    out: PathBuf,
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let Some((operation, matches)) = matches.subcommand() else { return Ok(()) };
    let paths: Vec<PathBuf> =
        matches.get_many::<String>("circuits").into_iter().flatten().map(PathBuf::from).collect();
    let outputs = Outputs::new(matches, &["out"], paths.clone())?;
    let files = paths.iter().map(|path| diff::read(path)).collect::<Result<Vec<_>>>()?;
    let ((first, mut result), others) = match files.split_first() {
        Some((first, others)) => (first.clone(), others),
        None => return Ok(()),
    };
    for (path, other) in others {
        diff::check(&first, result.provenance.as_ref(), path, other.provenance.as_ref())?;
        result = combined(operation, result, other);
    }
    let Some(out) = outputs.file("out")? else { return Ok(()) };
    result.write(out)?;
    let outcome = Outcome {
        operation: operation.to_owned(),
        circuits: files.into_iter().map(|(path, _)| path).collect(),
        edges: result.edges.len(),
        out: out.to_owned(),
    };
    show(matches, &outputs, &outcome, print)
}

/// Two circuits as one. Nothing is known of how sure that is.
fn combined(operation: &str, one: CircuitFile, other: &CircuitFile) -> CircuitFile {
    let circuit = |file: &CircuitFile| Circuit { edges: file.edges.clone() };
    let Comparison { shared, first_only, second_only } =
        Comparison::of(&circuit(&one), &circuit(other));
    let edges = match operation {
        "union" => one.edges.into_iter().chain(second_only).collect(),
        "intersection" => shared.into_iter().map(|[edge, _]| edge).collect(),
        _ => first_only,
    };
    let provenance = one.provenance.map(|provenance| joined(operation, provenance, other));
    CircuitFile { provenance, bootstrap: None, edges }
}

/// What the result is of: the first circuit's, with both tasks' names, in the graph that has both.
fn joined(operation: &str, one: Provenance, other: &CircuitFile) -> Provenance {
    let Some(other) = &other.provenance else { return one };
    let sign =
        OPERATIONS.iter().find(|(name, ..)| *name == operation).map_or("", |(.., sign)| sign);
    let mut nodes = one.nodes.clone();
    nodes.extend(other.nodes.iter().filter(|kind| !one.nodes.contains(kind)));
    Provenance { task: format!("{} {sign} {}", one.task, other.task), nodes, ..one }
}

fn print(Outcome { circuits, edges, out, .. }: &Outcome) {
    circuits.iter().for_each(|circuit| say!("circuit     {}", circuit.display()));
    say!("edges       {edges}");
    say!("written to  {}", out.display());
}
