//! `draw`: a circuit file as an SVG drawing.

use std::path::Path;

use anyhow::{Result, bail};
use circuit_framework::graph::circuit::Circuit;
use circuit_framework::results::circuit_file::CircuitFile;
use circuit_framework::results::drawing::{Drawing, MOST_EDGES};
use circuit_framework::results::provenance::{Geometry, Provenance};
use circuit_framework::{Graph, files};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{output, path};
use crate::flags::{self, Flag, MODEL};
use crate::outputs::Outputs;
use crate::print;

const FLAGS: &[&[Flag]] = &[MODEL];

pub(crate) fn command() -> Command {
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    let draw = Command::new("draw").about("Draw a circuit file").arg(
        Arg::new("circuit")
            .value_name("CIRCUIT.json")
            .required(true)
            .help("As `discover --circuit` or a run wrote it"),
    );
    flags::add(draw, FLAGS)
        .mut_arg("model", |model| {
            model.help(
                "The model, to hold the circuit against it [default: none, only the file is read]",
            )
        })
        .arg(output("out", "OUT.svg", "Write the drawing here; without it, to standard output"))
        .arg(switch("landscape", "Layers from left to right instead of from bottom to top"))
        .arg(switch("all-nodes", "Draw the nodes that the circuit leaves alone too; needs --model"))
        .arg(
            Arg::new("top")
                .long("top")
                .value_name("N")
                .value_parser(clap::value_parser!(u64).range(1..))
                .help(format!("Draw only the N strongest edges [default: {MOST_EDGES}]")),
        )
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let file = path(matches, "circuit").unwrap_or_default();
    let outputs = Outputs::new(matches, &["out"], vec![file.clone()])?;
    let CircuitFile { provenance, edges, .. } = CircuitFile::read(&file)?;
    let model = match matches.contains_id("model") {
        true => Some(circuit_models::load(&flags::experiment(matches, FLAGS)?.model)?.model),
        false => None,
    };
    if matches.get_flag("all-nodes") && model.is_none() {
        bail!("--all-nodes: a circuit file names only the nodes in use; give --model too");
    }
    let (mut edges, mut graph) = (edges, None);
    let mut geometry = provenance.as_ref().map(|provenance| provenance.model.clone());
    if let Some(model) = &model {
        let of: Graph = match &provenance {
            Some(provenance) => model.graph().subset(&provenance.nodes),
            None => model.graph().clone(),
        };
        edges = Circuit::load(&file, &**model, &of)?.edges;
        geometry = Some(Geometry::of(&**model));
        graph = Some(of);
    }
    let name = || file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
    let drawing = Drawing {
        title: provenance.as_ref().map_or_else(name, title),
        subtitle: provenance.as_ref().map(Provenance::to_string).unwrap_or_default(),
        edges: &edges,
        most_edges: matches.get_one::<u64>("top").map_or(MOST_EDGES, |&top| top as usize),
        all_of: graph.as_ref().filter(|_| matches.get_flag("all-nodes")),
        heads_per_group: geometry.map_or(0, |geometry| geometry.heads_per_group()),
        landscape: matches.get_flag("landscape"),
    };
    match outputs.file("out")? {
        Some(path) => files::write_atomically(path, drawing.svg().as_bytes())?,
        None => print::text(&drawing.svg()),
    }
    Ok(())
}

/// What a drawing is called: the model as it was named, and the task.
pub(super) fn title(provenance: &Provenance) -> String {
    let model = Path::new(&provenance.model_path);
    let model = model.file_name().map_or(provenance.model_path[..].into(), |m| m.to_string_lossy());
    format!("{model}: {}", provenance.task)
}
