//! The scores of a graph's edges. How they come about is
//! [`crate::attribution`]'s; what is cut from them, [`crate::graph::circuit`]'s.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::graph::{Graph, Input, Node, Reader, Writer};

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

    /// The `count` edges with the largest |score|, or all where there are fewer. Ties go to the lower
    /// writer, then the lower reader.
    pub fn strongest(&self, count: usize) -> Vec<(Writer, Reader)> {
        let mut edges: Vec<_> = self.graph.edges().collect();
        let magnitude = |&(writer, reader): &_| self.of(writer, reader).abs();
        edges.sort_by(|a, b| magnitude(b).total_cmp(&magnitude(a)));
        edges.truncate(count);
        edges
    }

    /// |score|, laid out as the scores are.
    pub fn magnitudes(&self) -> Vec<f32> {
        self.values.iter().map(|score| score.abs()).collect()
    }
}

/// What every node of a graph scores: the sum of its edges' |score|, or of what stands for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeScores {
    pub writers: BTreeMap<Node, f32>,
    pub readers: BTreeMap<Input, f32>,
}

impl NodeScores {
    /// The sums of `importance`, which is laid out as the scores of the graph are.
    pub fn of(graph: &Graph, importance: &[f32]) -> Self {
        let readers = graph.readers().len();
        let mut writer_sums = vec![0f64; graph.writers().len()];
        let mut reader_sums = vec![0f64; readers];
        for (writer, reader) in graph.edges() {
            let value = f64::from(importance[writer.0 * readers + reader.0]);
            writer_sums[writer.0] += value;
            reader_sums[reader.0] += value;
        }
        let single = |sums: Vec<f64>| sums.into_iter().map(|sum| sum as f32);
        Self {
            writers: graph.writers().iter().copied().zip(single(writer_sums)).collect(),
            readers: graph.readers().iter().copied().zip(single(reader_sums)).collect(),
        }
    }
}
