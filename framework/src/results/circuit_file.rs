//! The file that a circuit is kept in: its edges as JSON, and where it came from.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::provenance::{self, Provenance};
use crate::attribution::Bootstrap;
use crate::graph::Graph;
use crate::graph::circuit::{Circuit, Edge};
use crate::model::Model;
use crate::{Error, Result, files};

impl Circuit {
    /// Writes the edges as JSON, and what they are of.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn save(&self, path: &Path, provenance: &Provenance) -> Result<()> {
        CircuitFile::new(self.clone(), provenance.clone(), None).write(path)
    }

    /// Reads a circuit of this model, each edge one of `graph`. A file that doesn't say what it is of is
    /// read with a warning.
    ///
    /// # Errors
    /// If the file is malformed, of another model, or holds an edge that is none of the graph's.
    pub fn load(path: &Path, model: &dyn Model, graph: &Graph) -> Result<Self> {
        let CircuitFile { provenance, edges, .. } = CircuitFile::read(path)?;
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
}

/// A circuit as it stands in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircuitFile {
    /// None in files of former versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
    /// How sure the circuit is, where there was a bootstrap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Bootstrap>,
    /// Best first.
    pub edges: Vec<Edge>,
}

impl CircuitFile {
    /// A circuit, what it is of, and how sure it is.
    pub fn new(circuit: Circuit, provenance: Provenance, bootstrap: Option<Bootstrap>) -> Self {
        Self { provenance: Some(provenance), bootstrap, edges: circuit.edges }
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
