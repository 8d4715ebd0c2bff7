//! `diff`: two circuits side by side, the edges of both and of one alone, by layer and drawn.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use circuit_framework::files;
use circuit_framework::graph::circuit::{Circuit, Edge};
use circuit_framework::graph::comparison::{Comparison, Counts};
use circuit_framework::results::circuit_file::CircuitFile;
use circuit_framework::results::drawing::{Colours, Drawing, MOST_EDGES};
use circuit_framework::results::provenance::Provenance;
use clap::{Arg, ArgMatches, Command};
use serde::Serialize;

use super::{json_flag, output, show, table};
use crate::outputs::Outputs;
use crate::print::say;

/// How many edges of one circuit alone are printed.
const SHOWN: usize = 10;

/// Grey, blue and orange: told apart by those who see no red either.
const COLOURS: [&str; 3] = ["#9a9a9a", "#2166ac", "#e08214"];

pub(crate) fn command() -> Command {
    Command::new("diff")
        .about("Put two circuits side by side: shared edges, edges of one alone, by layer, drawn")
        .args(["first", "second"].map(|name| {
            Arg::new(name)
                .value_name("CIRCUIT.json|RUN")
                .required(true)
                .help("A circuit file, or a run folder: its circuit after tuning")
        }))
        .arg(output("svg", "OUT.svg", "Draw both circuits here, coloured by where an edge is"))
        .arg(output("table", "OUT.csv", "Write a line an edge as comma-separated values"))
        .arg(json_flag())
}

/// What `--json` writes.
#[derive(Serialize)]
struct Found {
    first: PathBuf,
    second: PathBuf,
    overlap: f64,
    rank_correlation: Option<f64>,
    /// Shared edges whose score turned its sign.
    turned: usize,
    /// By the name of the layer that reads.
    layers: BTreeMap<String, Counts>,
    #[serde(flatten)]
    edges: Comparison,
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let [first, second] =
        ["first", "second"].map(|name| super::path(matches, name).unwrap_or_default());
    let outputs = Outputs::new(matches, &["svg", "table"], vec![first.clone(), second.clone()])?;
    let [(first, one), (second, other)] = [read(&first)?, read(&second)?];
    check(&first, one.provenance.as_ref(), &second, other.provenance.as_ref())?;
    let circuit = |file: &CircuitFile| Circuit { edges: file.edges.clone() };
    let edges = Comparison::of(&circuit(&one), &circuit(&other));
    let layers = edges.by_layer().into_iter();
    let found = Found {
        overlap: edges.overlap(),
        rank_correlation: edges.rank_correlation(),
        turned: edges.turned().count(),
        layers: layers.map(|(layer, counts)| (layer_name(layer), counts)).collect(),
        edges,
        first,
        second,
    };
    if let Some(file) = outputs.file("svg")? {
        files::write_atomically(file, found.drawing(one.provenance.as_ref()).as_bytes())?;
    }
    if let Some(file) = outputs.file("table")? {
        files::write_atomically(file, found.csv().as_bytes())?;
    }
    show(matches, &outputs, &found, Found::print)
}

/// A circuit file, or the circuit after tuning of a run; and the file's path.
pub(super) fn read(path: &Path) -> Result<(PathBuf, CircuitFile)> {
    let file = match path.is_dir() {
        true => path.join("circuit-after.json"),
        false => path.to_path_buf(),
    };
    if path.is_dir() && !file.is_file() {
        bail!(
            "{}: there is no circuit-after.json; name a finished run or a circuit file",
            path.display()
        );
    }
    let circuit = CircuitFile::read(&file)?;
    Ok((file, circuit))
}

/// Refuses circuits of models of another geometry.
pub(super) fn check(
    first: &Path,
    one: Option<&Provenance>,
    second: &Path,
    other: Option<&Provenance>,
) -> Result<()> {
    match (one, other) {
        (Some(one), Some(other)) if one.model != other.model => bail!(
            "{}: is a circuit of {}, but {} is one of {}; give two of one geometry",
            second.display(),
            other.model_path,
            first.display(),
            one.model_path
        ),
        _ => Ok(()),
    }
}

fn layer_name(layer: Option<usize>) -> String {
    layer.map_or_else(|| "logits".to_owned(), |layer| layer.to_string())
}

impl Found {
    fn print(&self) {
        let Comparison { shared, first_only, second_only } = &self.edges;
        say!("A  {}", self.first.display());
        say!("B  {}\n", self.second.display());
        say!("edges in both    {}", shared.len());
        say!("in A alone       {}", first_only.len());
        say!("in B alone       {}", second_only.len());
        say!("overlap          {:.4}  (Jaccard index)", self.overlap);
        if let Some(correlation) = self.rank_correlation {
            say!("rank correlation {correlation:.4}  (of the scores of edges in both)");
        }
        say!("turned sign      {}\n", self.turned);
        let mut cells =
            vec![["layer", "in both", "A alone", "B alone"].map(str::to_owned).to_vec()];
        let mut layers: Vec<_> = self.layers.iter().collect();
        layers.sort_by_key(|(name, _)| name.parse::<usize>().unwrap_or(usize::MAX));
        cells.extend(layers.into_iter().map(|(name, counts)| {
            let Counts { shared, first_only, second_only } = counts;
            let counts = [shared, first_only, second_only].map(|count| count.to_string());
            std::iter::once(name.clone()).chain(counts).collect()
        }));
        say!("{}", table::markdown(&cells, 1));
        for (name, edges) in [("A", first_only), ("B", second_only)] {
            if !edges.is_empty() {
                say!("the strongest edges of {name} alone");
            }
            for edge in edges.iter().take(SHOWN) {
                say!("  {:>12.6}  {} → {}", edge.score, edge.writer, edge.reader);
            }
        }
    }

    /// Every edge once, those of both with the first one's score.
    fn all(&self) -> impl Iterator<Item = (usize, Edge)> {
        let Comparison { shared, first_only, second_only } = &self.edges;
        (shared.iter().map(|[edge, _]| (0, *edge)))
            .chain(first_only.iter().map(|edge| (1, *edge)))
            .chain(second_only.iter().map(|edge| (2, *edge)))
    }

    fn drawing(&self, provenance: Option<&Provenance>) -> String {
        let edges: Vec<Edge> = self.all().map(|(_, edge)| edge).collect();
        let of = self.all().map(|(which, edge)| ((edge.writer, edge.reader), which)).collect();
        let legend = vec![
            (COLOURS[0], "grey: in both"),
            (COLOURS[1], "blue: in the first alone"),
            (COLOURS[2], "orange: in the second alone"),
        ];
        let drawing = Drawing {
            title: format!("{} and {}", self.first.display(), self.second.display()),
            subtitle: format!("overlap {:.3}", self.overlap),
            edges: &edges,
            most_edges: MOST_EDGES,
            all_of: None,
            heads_per_group: provenance.map_or(0, |p| p.model.heads_per_group()),
            landscape: false,
            colours: Some(Colours { legend, of }),
        };
        drawing.svg()
    }

    /// A line an edge: its nodes, the reader's layer, and its scores, empty where it isn't in a circuit.
    fn csv(&self) -> String {
        let mut csv = "writer,reader,layer,first_score,second_score\n".to_owned();
        let mut line = |edge: &Edge, first: Option<f32>, second: Option<f32>| {
            let layer = edge.reader.node.layer().map(|layer| layer.to_string());
            let score =
                |score: Option<f32>| score.map(|score| score.to_string()).unwrap_or_default();
            let (layer, first, second) = (layer.unwrap_or_default(), score(first), score(second));
            csv.push_str(&format!("{},{},{layer},{first},{second}\n", edge.writer, edge.reader));
        };
        let Comparison { shared, first_only, second_only } = &self.edges;
        shared.iter().for_each(|[one, other]| line(one, Some(one.score), Some(other.score)));
        first_only.iter().for_each(|edge| line(edge, Some(edge.score), None));
        second_only.iter().for_each(|edge| line(edge, None, Some(edge.score)));
        csv
    }
}
