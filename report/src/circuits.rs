//! A run's circuits as columns: every edge that was ever in one stands once, by its nodes, and a circuit is a
//! list of edges with their scores. Five hundred edges rediscovered two hundred times are then a few hundred
//! kilobytes.

use std::collections::BTreeMap;
use std::path::Path;

use circuit_framework::Result;
use circuit_framework::graph::circuit::Edge;
use circuit_framework::results::circuit_file::CircuitFile;
use circuit_framework::tuning::{CIRCUITS, DiscoveredAt};
use serde::Serialize;

use crate::encoding::rounded;
use crate::log;

/// The circuits of a run, in the order in which they were found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Circuits {
    /// The names of writers and of inputs.
    names: Vec<String>,
    /// Each edge's writer, by its name's index.
    writers: Vec<usize>,
    /// Each edge's input.
    readers: Vec<usize>,
    pub stops: Vec<Stop>,
}

/// A circuit.
#[derive(Clone, Debug, Serialize)]
pub struct Stop {
    /// `before`, `after` or `step N`.
    pub label: String,
    pub step: Option<usize>,
    /// By index, best first.
    pub edges: Vec<usize>,
    pub scores: Vec<f64>,
    /// The scores' standard errors; empty without a bootstrap.
    pub standard_errors: Vec<Option<f64>>,
    /// The shares of resamples that have each edge; empty without a bootstrap.
    resample_shares: Vec<Option<f64>>,
}

/// Names and edges that were met, and their indices.
#[derive(Default)]
struct Met {
    names: BTreeMap<String, usize>,
    edges: BTreeMap<(usize, usize), usize>,
}

impl Circuits {
    /// The circuits of a run folder: those of its circuit files, and between them those of its log.
    ///
    /// # Errors
    /// If a file is malformed.
    pub fn read(
        folder: &Path,
        before: Option<&CircuitFile>,
        after: Option<&CircuitFile>,
    ) -> Result<Self> {
        let (mut met, mut all) = (Met::default(), Self::default());
        if let Some(file) = before {
            all.add(&mut met, "before".to_owned(), None, &file.edges);
        }
        for found in log::lines::<DiscoveredAt>(&folder.join(CIRCUITS))? {
            all.add(&mut met, format!("step {}", found.step), Some(found.step), &found.edges);
        }
        if let Some(file) = after {
            all.add(&mut met, "after".to_owned(), None, &file.edges);
        }
        Ok(all)
    }

    fn add(&mut self, met: &mut Met, label: String, step: Option<usize>, edges: &[Edge]) {
        let of = |number: fn(&Edge) -> Option<f64>| -> Vec<Option<f64>> {
            match edges.iter().any(|edge| number(edge).is_some()) {
                true => edges.iter().map(|edge| number(edge).map(rounded)).collect(),
                false => Vec::new(),
            }
        };
        let indices = edges.iter().map(|edge| self.index(met, edge)).collect();
        self.stops.push(Stop {
            label,
            step,
            scores: edges.iter().map(|edge| rounded(f64::from(edge.score))).collect(),
            standard_errors: of(|edge| edge.standard_error.map(f64::from)),
            resample_shares: of(|edge| edge.resample_share.map(f64::from)),
            edges: indices,
        });
    }

    fn index(&mut self, met: &mut Met, edge: &Edge) -> usize {
        let (writer, reader) = (edge.writer.to_string(), edge.reader.to_string());
        let ends = [writer, reader].map(|name| {
            let next = met.names.len();
            *met.names.entry(name.clone()).or_insert_with(|| {
                self.names.push(name);
                next
            })
        });
        let next = met.edges.len();
        *met.edges.entry((ends[0], ends[1])).or_insert_with(|| {
            self.writers.push(ends[0]);
            self.readers.push(ends[1]);
            next
        })
    }

    /// The names of an edge's ends.
    pub fn ends(&self, edge: usize) -> (&str, &str) {
        (&self.names[self.writers[edge]], &self.names[self.readers[edge]])
    }
}

impl Stop {
    /// The standard error of the score at a rank.
    pub fn standard_error(&self, rank: usize) -> Option<f64> {
        self.standard_errors.get(rank).copied().flatten()
    }
}
