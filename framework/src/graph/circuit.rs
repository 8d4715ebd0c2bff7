//! The circuit that is cut from the scores of a graph's edges. What of a
//! circuit is trained is a [`crate::tuning::selector::ParamSelector`]'s.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::graph::{Graph, Input, Node, Reader, Writer};
use crate::weights::parameters::Owner;
use crate::{Result, refuse};

/// One edge of a circuit, with its signed score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    pub writer: Node,
    pub reader: Input,
    pub score: f32,
    /// The score's, where there was a bootstrap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_error: Option<f32>,
    /// The share of resamples in whose circuit it is, where there was a bootstrap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resample_share: Option<f32>,
}

impl Edge {
    /// An edge of which a score is all that is known.
    pub fn new(writer: Node, reader: Input, score: f32) -> Self {
        Self { writer, reader, score, standard_error: None, resample_share: None }
    }
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
