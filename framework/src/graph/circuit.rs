//! The circuit that is cut from the scores of a graph's edges, and the file it is kept in. What of a
//! circuit is trained is a [`crate::tuning::selector::ParamSelector`]'s.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files;
use crate::graph::scores::Scores;
use crate::graph::{Graph, Input, Node, Reader, Writer};
use crate::model::Model;
use crate::range::Range;
use crate::run::provenance::{self, Provenance};
use crate::weights::parameters::Owner;
use crate::{Error, Result, refuse};

/// How edges are ranked.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// By |score|.
    #[default]
    TopEdges,
    /// By |score| × the writer's Σ|score| × the reader's Σ|score|.
    TopNodes,
}

/// How a circuit is cut from the scores.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pruning {
    /// How edges are ranked.
    pub rule: Rule,
    /// How many edges to keep; without it, 500 or all where there are fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_n: Option<usize>,
    /// Keep only edges whose |score| is at least this.
    pub threshold: f32,
    /// Keep only edges between nodes of one layer.
    pub same_layer: bool,
}

/// The number of edges kept where nobody says how many.
const DEFAULT_TOP_N: usize = 500;

impl Pruning {
    /// Refuses settings that no circuit of this graph can be cut with.
    ///
    /// # Errors
    /// Naming the setting and what would be right.
    pub fn check(&self, graph: &Graph) -> Result<()> {
        Range::FromZero.check("pruning.threshold", self.threshold)?;
        self.top_n(graph).map(|_| ())
    }

    /// The number of edges to keep of this graph.
    pub fn top_n(&self, graph: &Graph) -> Result<usize> {
        let edges = graph.edge_count();
        match self.top_n {
            None => Ok(edges.min(DEFAULT_TOP_N)),
            Some(0) => refuse!("top_n is 0; keep at least one edge"),
            Some(n) if n > edges => {
                refuse!("top_n is {n}, but the graph has {edges} edges; give at most that")
            }
            Some(n) => Ok(n),
        }
    }

    /// The `top_n` best edges, best first. `importance` is what stands for |score| in the ranking,
    /// laid out as the scores are. Ties go to the lower writer, then the lower reader.
    pub fn prune(&self, scores: &Scores, importance: &[f32], top_n: usize) -> Circuit {
        let graph = &scores.graph;
        let readers = graph.readers().len();
        let at = |(writer, reader): (Writer, Reader)| importance[writer.0 * readers + reader.0];
        let mut writer_sums = vec![0f64; graph.writers().len()];
        let mut reader_sums = vec![0f64; readers];
        for edge in graph.edges() {
            writer_sums[edge.0.0] += f64::from(at(edge));
            reader_sums[edge.1.0] += f64::from(at(edge));
        }
        let rank = |edge: (Writer, Reader)| match self.rule {
            Rule::TopEdges => f64::from(at(edge)),
            Rule::TopNodes => f64::from(at(edge)) * writer_sums[edge.0.0] * reader_sums[edge.1.0],
        };
        let layer_of = |(writer, reader): (Writer, Reader)| {
            let layers =
                (graph.writers()[writer.0].layer(), graph.readers()[reader.0].node.layer());
            layers.0.zip(layers.1)
        };
        let mut ranked: Vec<(f64, (Writer, Reader))> = graph
            .edges()
            .filter(|&edge| !self.same_layer || layer_of(edge).is_some_and(|(a, b)| a == b))
            .filter(|&edge| at(edge) >= self.threshold)
            .map(|edge| (rank(edge), edge))
            .collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        ranked.truncate(top_n);
        let edge = |(writer, reader): (Writer, Reader)| Edge {
            writer: graph.writers()[writer.0],
            reader: graph.readers()[reader.0],
            score: scores.of(writer, reader),
        };
        Circuit { edges: ranked.into_iter().map(|(_, indices)| edge(indices)).collect() }
    }
}

/// One edge of a circuit, with its signed score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    pub writer: Node,
    pub reader: Input,
    pub score: f32,
}

/// The best edges, best first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Circuit {
    pub edges: Vec<Edge>,
}

impl Circuit {
    /// The nodes that write along the circuit's edges.
    pub fn writers(&self) -> BTreeSet<Node> {
        self.edges.iter().map(|edge| edge.writer).collect()
    }

    /// The inputs that read along the circuit's edges.
    pub fn readers(&self) -> BTreeSet<Input> {
        self.edges.iter().map(|edge| edge.reader).collect()
    }

    /// The circuit's writers and readers as owners of parameters.
    pub fn owners(&self) -> BTreeSet<Owner> {
        let writers = self.writers().into_iter().map(Owner::Writer);
        writers.chain(self.readers().into_iter().map(Owner::Reader)).collect()
    }

    /// The share of edges the two circuits have in common, |A ∩ B| / |A ∪ B|; 1 for two empty ones.
    pub fn jaccard(&self, other: &Circuit) -> f64 {
        let edges = |circuit: &Circuit| -> BTreeSet<(Node, Input)> {
            circuit.edges.iter().map(|edge| (edge.writer, edge.reader)).collect()
        };
        let (a, b) = (edges(self), edges(other));
        let common = a.intersection(&b).count();
        match a.len() + b.len() - common {
            0 => 1.0,
            union => common as f64 / union as f64,
        }
    }

    /// Writes the edges as JSON, and what they are of.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn save(&self, path: &Path, provenance: &Provenance) -> Result<()> {
        CircuitFile::new(self.clone(), provenance.clone()).write(path)
    }

    /// Reads a circuit of this model, each edge one of `graph`. A file that doesn't say what it is of is
    /// read with a warning.
    ///
    /// # Errors
    /// If the file is malformed, of another model, or holds an edge that is none of the graph's.
    pub fn load(path: &Path, model: &dyn Model, graph: &Graph) -> Result<Self> {
        let CircuitFile { provenance, edges } = CircuitFile::read(path)?;
        provenance::check_model(provenance.as_ref(), path, model)?;
        let mut circuit = Self { edges };
        let place = |error: Error| Error::input(format!("{}: {error}", path.display()));
        let indices = circuit.indices(graph).map_err(place)?;
        for (edge, (_, reader)) in circuit.edges.iter_mut().zip(indices) {
            // It may have been called by its former name.
            edge.reader = graph.readers()[reader.0];
        }
        Ok(circuit)
    }

    /// The edges' indices in a graph, best first.
    ///
    /// # Errors
    /// If one is none of the graph's.
    pub fn indices(&self, graph: &Graph) -> Result<Vec<(Writer, Reader)>> {
        let index = |edge: &Edge| {
            let ends = graph.writer_of(edge.writer).zip(graph.reader_of(edge.reader));
            match ends.filter(|&(writer, reader)| graph.has_edge(writer, reader)) {
                Some(ends) => Ok(ends),
                None => {
                    refuse!("{} → {} is no edge of this model's graph", edge.writer, edge.reader)
                }
            }
        };
        self.edges.iter().map(index).collect()
    }
}

/// A circuit as it stands in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircuitFile {
    /// None in files of former versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
    /// Best first.
    pub edges: Vec<Edge>,
}

impl CircuitFile {
    /// A circuit and what it is of.
    pub fn new(circuit: Circuit, provenance: Provenance) -> Self {
        Self { provenance: Some(provenance), edges: circuit.edges }
    }

    /// Reads a circuit without a model to hold it against.
    ///
    /// # Errors
    /// If the file is malformed.
    pub fn read(path: &Path) -> Result<Self> {
        files::read_json(path)
    }

    /// Writes it as it stands.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        files::write_json(path, self)
    }
}
