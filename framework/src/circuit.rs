//! Scored edges and the circuit that is cut from them. How scores come about is
//! [`crate::discovery`]'s; what of a circuit is trained is a [`crate::selector::ParamSelector`]'s.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::files;
use crate::graph::{Graph, Input, Node, Reader, Writer};
use crate::parameters::Owner;
use crate::range::Range;
use crate::{Result, refuse};

/// The signed worth of every edge: a matrix [writers, readers], 0 where there is no edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    pub graph: Graph,
    /// Row-major, `values[writer * readers + reader]`.
    pub values: Vec<f32>,
}

impl Scores {
    pub fn of(&self, writer: Writer, reader: Reader) -> f32 {
        self.values[writer.0 * self.graph.readers().len() + reader.0]
    }

    /// |score|, laid out as the scores are.
    pub fn magnitudes(&self) -> Vec<f32> {
        self.values.iter().map(|score| score.abs()).collect()
    }

    /// Writes one float32 tensor `scores` [upstream, downstream], with the node names as JSON lists
    /// in the metadata under `upstream` and `downstream`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let list = |names: Vec<String>| serde_json::Value::from(names).to_string();
        let bytes: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        // The header is written here because the crate's has its metadata in random order, and the
        // same scores shall be the same file.
        let header = json!({
            "__metadata__": {
                "upstream": list(self.graph.writers().iter().map(Node::to_string).collect()),
                "downstream": list(self.graph.readers().iter().map(Input::to_string).collect()),
            },
            "scores": {
                "dtype": "F32",
                "shape": [self.graph.writers().len(), self.graph.readers().len()],
                "data_offsets": [0, bytes.len()],
            },
        });
        let mut header = header.to_string().into_bytes();
        // The data begins at a multiple of 8 bytes.
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.extend(bytes);
        files::write_atomically(path, &file)
    }
}

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
    /// `top_edges` (|score|) or `top_nodes` (|score| × the sums of both its nodes).
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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

    /// The edges as `[writer, reader]` indices of `graph`, best first.
    pub fn indices(&self, graph: &Graph) -> Vec<[usize; 2]> {
        let index = |edge: &Edge| {
            let writer = graph.writers().iter().position(|&node| node == edge.writer);
            let reader = graph.readers().iter().position(|&input| input == edge.reader);
            writer.zip(reader).map(|(writer, reader)| [writer, reader])
        };
        self.edges.iter().filter_map(index).collect()
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        files::write_json(path, self)
    }

    /// Reads a circuit and checks that each of its edges is one of `graph`.
    pub fn load(path: &Path, graph: &Graph) -> Result<Self> {
        let circuit: Circuit = files::read_json(path)?;
        for edge in &circuit.edges {
            let found = (graph.writer(&edge.writer.to_string()))
                .and_then(|writer| Ok((writer, graph.reader(&edge.reader.to_string())?)))
                .is_ok_and(|(writer, reader)| graph.has_edge(writer, reader));
            if !found {
                refuse!(
                    "{}: {} → {} is no edge of this model's graph",
                    path.display(),
                    edge.writer,
                    edge.reader
                );
            }
        }
        Ok(circuit)
    }
}
