//! How a circuit is cut from the scores of a graph's edges.

use serde::{Deserialize, Serialize};

use crate::graph::circuit::{Circuit, Edge};
use crate::graph::scores::Scores;
use crate::graph::{Graph, Reader, Writer};
use crate::range::Range;
use crate::{Result, refuse};

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

/// An edge with its rank.
type Ranked = (f64, (Writer, Reader));

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
        let mut ranked: Vec<Ranked> = graph
            .edges()
            .filter(|&edge| !self.same_layer || layer_of(edge).is_some_and(|(a, b)| a == b))
            .filter(|&edge| at(edge) >= self.threshold)
            .map(|edge| (rank(edge), edge))
            .collect();
        let better = |a: &Ranked, b: &Ranked| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        // Most edges are none of the best, and need no order among themselves.
        if top_n < ranked.len() {
            ranked.select_nth_unstable_by(top_n, better);
            ranked.truncate(top_n);
        }
        ranked.sort_unstable_by(better);
        let edge = |(writer, reader): (Writer, Reader)| {
            let ends = (graph.writers()[writer.0], graph.readers()[reader.0]);
            Edge::new(ends.0, ends.1, scores.of(writer, reader))
        };
        Circuit { edges: ranked.into_iter().map(|(_, indices)| edge(indices)).collect() }
    }
}
