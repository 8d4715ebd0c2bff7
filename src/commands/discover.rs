//! `discover`: score the edges, cut the circuit, write both down.

use anyhow::Result;
use circuit_framework::attribution::Bootstrap;
use circuit_framework::files;
use circuit_framework::results::circuit_file::CircuitFile;
use circuit_framework::results::drawing::Drawing;
use circuit_framework::results::table;
use circuit_framework::run::Found;
use clap::{ArgMatches, Command};
use serde::Serialize;
use toml::Table;

use super::{json_flag, output, show, with_runner};
use crate::flags::{self, BOOTSTRAP, COMPUTING, DISCOVERY, DISCOVERY_BATCH, Flag, MODEL, TASK};
use crate::outputs::Outputs;
use crate::print::say;

const FLAGS: &[&[Flag]] = &[MODEL, COMPUTING, TASK, DISCOVERY, BOOTSTRAP, DISCOVERY_BATCH];

const OUTPUTS: [&str; 5] = ["per-example", "scores", "table", "drawing", "circuit"];

/// A look at a circuit takes no longer than it must.
fn defaults() -> Table {
    toml::toml! {
        discovery = { bootstrap = 0 }
    }
}

pub(crate) fn command() -> Command {
    let about = "Find the circuit: score every edge, keep the best";
    let per_example = "Write each example's own scores here, a float32 matrix an example";
    flags::add_over(Command::new("discover").about(about), FLAGS, &defaults())
        .arg(output("scores", "OUT.safetensors", "Write all scores here"))
        .arg(output("per-example", "OUT.safetensors", per_example))
        .arg(output("circuit", "OUT.json", "Write the circuit here"))
        .arg(output("table", "OUT.csv", "Write all edges here, a line each, for pandas and R"))
        .arg(output("drawing", "OUT.svg", "Draw the circuit here"))
        .arg(json_flag())
}

/// What is shown.
#[derive(Serialize)]
struct Shown {
    /// Over all examples.
    metric: f64,
    /// How many the graph has.
    graph_edges: usize,
    circuit: CircuitFile,
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let mut table = defaults();
    flags::apply(matches, FLAGS, &mut table)?;
    let experiment = flags::from_table(table, "settings")?;
    let outputs = Outputs::new(matches, &OUTPUTS, experiment.inputs())?;
    with_runner(&experiment, |runner| {
        let examples = runner.examples()?;
        let found = runner.discover_into(examples, outputs.file("per-example")?)?;
        let Found { scores, metric, circuit, certainty } = found;
        let provenance = runner.provenance(examples);
        if let Some(path) = outputs.file("scores")? {
            scores.save_with(path, &provenance, certainty.as_ref())?;
        }
        if let Some(path) = outputs.file("table")? {
            let table = table::edges(&scores, &circuit, certainty.as_ref());
            files::write_atomically(path, table.as_bytes())?;
        }
        if let Some(path) = outputs.file("drawing")? {
            let drawing =
                Drawing::of(&circuit.edges, &super::draw::title(&provenance), &provenance);
            files::write_atomically(path, drawing.svg().as_bytes())?;
        }
        let circuit = CircuitFile::new(circuit, provenance, certainty.map(|c| c.bootstrap));
        if let Some(path) = outputs.file("circuit")? {
            circuit.write(path)?;
        }
        let graph_edges = scores.graph.edge_count();
        show(matches, &outputs, &Shown { metric, graph_edges, circuit }, print)
    })
}

fn print(Shown { metric, graph_edges, circuit }: &Shown) {
    say!("metric   {metric:.6}");
    say!("circuit  {} of {graph_edges} edges", circuit.edges.len());
    if let Some(Bootstrap { resamples, overlap }) = circuit.bootstrap {
        say!("overlap  {overlap:.4} on average with the circuits of {resamples} resamples");
    }
    say!("the strongest:");
    for edge in circuit.edges.iter().take(10) {
        let sure = match edge.standard_error.zip(edge.resample_share) {
            Some((error, share)) => format!(" ± {error:.1e}  in {:>3.0} %", 100.0 * share),
            None => String::new(),
        };
        say!("  {:>12.4e}{sure}  {} → {}", edge.score, edge.writer, edge.reader);
    }
}
