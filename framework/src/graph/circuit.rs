//! The circuit that is cut from the scores of a graph's edges, and the file it is kept in. What of a
//! circuit is trained is a [`crate::tuning::selector::ParamSelector`]'s.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files;
use crate::graph::{Graph, Input, Node, Reader, Writer};
use crate::model::Model;
use crate::run::provenance::{self, Provenance};
use crate::weights::parameters::Owner;
use crate::{Error, Result, refuse};

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
