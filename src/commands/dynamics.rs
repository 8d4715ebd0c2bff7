//! `dynamics`: how a run's circuit changed as the model was tuned, from its rediscoveries, and how far what each
//! node owns moved.

use anyhow::Result;
use circuit_framework::evaluation::{Across, Line, Plot};
use circuit_framework::files;
use circuit_framework::results::dynamics::{Change, Dynamics, Life};
use clap::{Arg, ArgMatches, Command};
use serde::Serialize;

use super::movement::{self, Moved};
use super::{json_flag, output, path, show, table};
use crate::outputs::Outputs;
use crate::print::say;

/// How many edges are printed.
const SHOWN: usize = 10;

pub(crate) fn command() -> Command {
    Command::new("dynamics")
        .about("How a run's circuit changed on its way: overlap, edges born and gone, signs that turned")
        .arg(Arg::new("run").value_name("RUN").required(true).help("A finished run's folder"))
        .arg(output("svg", "OUT.svg", "Plot the overlap with the first circuit and the one before"))
        .arg(output("table", "OUT.csv", "Write a line an edge as comma-separated values"))
        .arg(output(
            "movement",
            "OUT.csv",
            "Read the models that the run saved, and write how far each node's rows moved by each",
        ))
        .arg(json_flag())
}

/// What is found.
#[derive(Serialize)]
struct Found {
    #[serde(flatten)]
    dynamics: Dynamics,
    /// Where it is asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    movement: Vec<Moved>,
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let folder = path(matches, "run").unwrap_or_default();
    let outputs = Outputs::new(matches, &["svg", "table", "movement"], vec![folder.clone()])?;
    let dynamics = Dynamics::of_run(&folder)?;
    if let Some(file) = outputs.file("svg")? {
        let title = format!("{}: its circuits over the steps", folder.display());
        files::write_atomically(file, plot(&dynamics, title).svg().as_bytes())?;
    }
    if let Some(file) = outputs.file("table")? {
        files::write_atomically(file, csv(&dynamics.edges).as_bytes())?;
    }
    let mut found = Found { dynamics, movement: Vec::new() };
    if let Some(file) = outputs.file("movement")? {
        found.movement = movement::of_run(&folder)?;
        files::write_atomically(file, movement::csv(&found.movement).as_bytes())?;
    }
    show(matches, &outputs, &found, |Found { dynamics, movement }| {
        print(dynamics);
        movement::print(movement);
    })
}

fn plot(dynamics: &Dynamics, title: String) -> Plot {
    let line = |label: &str, of: fn(&Change) -> f64| Line {
        label: label.to_owned(),
        points: dynamics.steps.iter().map(|change| (change.step as f64, of(change))).collect(),
    };
    Plot {
        title,
        subtitle: format!(
            "{} circuits, {} edges that were in any",
            dynamics.steps.len(),
            dynamics.edges.len()
        ),
        across: Across::Steps,
        values: "overlap".to_owned(),
        lines: vec![
            line("with the first circuit", |change| change.overlap_first),
            line("with the one before", |change| change.overlap_previous),
        ],
    }
}

fn print(Dynamics { steps, layers, edges }: &Dynamics) {
    let head = ["step", "edges", "with first", "with previous", "ranks", "born", "gone", "turned"];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    cells.extend(steps.iter().map(|change| {
        vec![
            change.step.to_string(),
            change.edges.to_string(),
            format!("{:.4}", change.overlap_first),
            format!("{:.4}", change.overlap_previous),
            change.rank_correlation.map_or("-".to_owned(), |ranks| format!("{ranks:.4}")),
            change.born.to_string(),
            change.died.to_string(),
            change.turned.to_string(),
        ]
    }));
    say!("{}", table::markdown(&cells, 0));
    let head = ["edges into layer", "born", "gone", "turned"].map(str::to_owned).to_vec();
    let lines = layers.iter().map(|of| {
        let layer = of.layer.map_or("logits".to_owned(), |layer| layer.to_string());
        let counts = [of.born, of.died, of.turned].map(|count| count.to_string());
        std::iter::once(layer).chain(counts).collect()
    });
    let cells: Vec<Vec<String>> = std::iter::once(head).chain(lines).collect();
    say!("{}", table::markdown(&cells, 1));
    let always = edges.iter().filter(|edge| edge.share == 1.0).count();
    let turned = edges.iter().filter(|edge| edge.turned > 0).count();
    say!(
        "{} edges were in some circuit, {always} in all, {turned} turned their sign\n",
        edges.len()
    );
    let mut cells = vec![
        ["edge", "first", "last", "share", "mean |score|", "turned"].map(str::to_owned).to_vec(),
    ];
    cells.extend(edges.iter().take(SHOWN).map(|life| {
        vec![
            format!("{} → {}", life.writer, life.reader),
            life.first.to_string(),
            life.last.to_string(),
            format!("{:.3}", life.share),
            format!("{:.6}", life.mean_magnitude),
            life.turned.to_string(),
        ]
    }));
    say!("{}", table::markdown(&cells, 1));
}

fn csv(edges: &[Life]) -> String {
    let mut csv = "writer,reader,first,last,share,mean_magnitude,turned\n".to_owned();
    for Life { writer, reader, first, last, share, mean_magnitude, turned } in edges {
        csv.push_str(&format!(
            "{writer},{reader},{first},{last},{share},{mean_magnitude},{turned}\n"
        ));
    }
    csv
}
