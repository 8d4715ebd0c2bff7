//! The scores of a graph's edges. How they come about is
//! [`crate::attribution`]'s; what is cut from them, [`crate::graph::circuit`]'s.

use crate::graph::{Graph, Reader, Writer};

/// The signed worth of every edge: a matrix [writers, readers], 0 where there is no edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    pub graph: Graph,
    /// Row-major, `values[writer * readers + reader]`, in the metric's unit.
    pub values: Vec<f32>,
}

impl Scores {
    /// The score of an edge.
    pub fn of(&self, writer: Writer, reader: Reader) -> f32 {
        self.values[writer.0 * self.graph.readers().len() + reader.0]
    }

    /// |score|, laid out as the scores are.
    pub fn magnitudes(&self) -> Vec<f32> {
        self.values.iter().map(|score| score.abs()).collect()
    }
}
