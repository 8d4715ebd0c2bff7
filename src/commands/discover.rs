//! `discover`: score the edges, cut the circuit, write both down.

use anyhow::Result;
use circuit_framework::files;
use circuit_framework::results::circuit_file::CircuitFile;
use circuit_framework::results::drawing::Drawing;
use circuit_framework::results::table;
use clap::{ArgMatches, Command};
use serde::Serialize;

use super::{json_flag, output, path, show, with_runner};
use crate::flags::{self, COMPUTING, DISCOVERY, DISCOVERY_BATCH, Flag, MODEL, TASK};

const FLAGS: &[&[Flag]] = &[MODEL, COMPUTING, TASK, DISCOVERY, DISCOVERY_BATCH];

pub(crate) fn command() -> Command {
    flags::add(
        Command::new("discover").about("Find the circuit: score every edge, keep the best"),
        FLAGS,
    )
    .arg(output("scores", "OUT.safetensors", "Write all scores here"))
    .arg(output("circuit", "OUT.json", "Write the circuit here"))
    .arg(output("table", "OUT.csv", "Write all edges here, a line each, for pandas and R"))
    .arg(output("drawing", "OUT.svg", "Draw the circuit here"))
    .arg(json_flag())
}

#[derive(Serialize)]
struct Found {
    /// Over all examples.
    metric: f64,
    /// How many the graph has.
    graph_edges: usize,
    circuit: CircuitFile,
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let experiment = flags::experiment(matches, FLAGS)?;
    with_runner(&experiment, |runner| {
        let examples = runner.examples()?;
        let (found, circuit) = runner.discover(examples)?;
        let provenance = runner.provenance(examples);
        if let Some(path) = path(matches, "scores") {
            found.scores.save(&path, &provenance)?;
        }
        if let Some(path) = path(matches, "circuit") {
            circuit.save(&path, &provenance)?;
        }
        if let Some(path) = path(matches, "table") {
            let table = table::edges(&found.scores, &circuit);
            files::write_atomically(&path, table.as_bytes())?;
        }
        if let Some(path) = path(matches, "drawing") {
            let drawing =
                Drawing::of(&circuit.edges, &super::draw::title(&provenance), &provenance);
            files::write_atomically(&path, drawing.svg().as_bytes())?;
        }
        let graph_edges = found.scores.graph.edge_count();
        let circuit = CircuitFile::new(circuit, provenance);
        show(matches, &Found { metric: found.metric, graph_edges, circuit }, print)
    })
}

fn print(Found { metric, graph_edges, circuit }: &Found) {
    println!("metric   {metric:.6}");
    println!("circuit  {} of {graph_edges} edges", circuit.edges.len());
    println!("the strongest:");
    for edge in circuit.edges.iter().take(10) {
        println!("  {:>12.4e}  {} → {}", edge.score, edge.writer, edge.reader);
    }
}
