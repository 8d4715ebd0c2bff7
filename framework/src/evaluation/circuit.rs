//! What a circuit is worth: how faithful it is, whether it is complete (nothing of the behaviour is left
//! in its complement; knock-outs do to it what they do to the model) and minimal (each edge counts).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::evaluation::faithfulness::{CircuitEvaluation, Measured, Scale};
use crate::graph::circuit::Circuit;
use crate::graph::edge_set::EdgeSet;
use crate::graph::{Node, Writer};
use crate::{Result, refuse};

/// The figures of a circuit that was run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CircuitFigures {
    /// How many edges it has.
    pub n: usize,
    /// How many of them were kept when dead ends were dropped.
    pub kept: usize,
    pub metric: f64,
    pub faithfulness: f64,
    /// The graph's other edges; near 0 where the circuit is complete.
    pub complement: Complement,
    /// What the circuit's metric loses with each edge, m(C) − m(C∖e), in the circuit's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimality: Option<Vec<f64>>,
    pub knockouts: Vec<Knockout>,
}

/// The graph's edges that aren't in the circuit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Complement {
    pub metric: f64,
    pub faithfulness: f64,
}

/// Writers K whose edges are ablated in the model and in the circuit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Knockout {
    pub nodes: Vec<Node>,
    /// m(M∖K)
    pub model: f64,
    /// m(C∖K)
    pub circuit: f64,
    /// |m(C∖K) − m(M∖K)|
    pub incompleteness: f64,
}

impl CircuitEvaluation<'_> {
    /// Evaluates a circuit, its complement, what `knockouts` do to it and, where asked, each edge's part.
    ///
    /// # Errors
    /// If an edge or a writer isn't the graph's, and as [`CircuitEvaluation::measure`]'s.
    pub fn circuit(
        &self,
        circuit: &Circuit,
        knockouts: &[Vec<Node>],
        minimality: bool,
    ) -> Result<(Scale, CircuitFigures)> {
        let edges = circuit.indices(self.model.graph())?;
        let set = EdgeSet::of(self.model.graph(), edges.iter().copied());
        if !set.minus(&self.all).is_empty() {
            refuse!(
                "the circuit has edges that aren't the graph's; give the kinds of nodes as they were when \
                 it was found"
            );
        }
        let mut runs = vec![set.clone(), self.all.minus(&set)];
        for nodes in knockouts {
            let writers = self.writers(nodes)?;
            let without = |set: &EdgeSet| set.filtered(|(writer, _)| !writers.contains(&writer));
            runs.extend([without(&self.all), without(&set)]);
        }
        if minimality {
            runs.extend(edges.iter().map(|&edge| set.filtered(|other| other != edge)));
        }
        let Measured { scale, kept, metrics } = self.measure(&runs)?;
        let knocked_out = knockouts.iter().zip(metrics[2..].chunks(2));
        let figures = CircuitFigures {
            n: set.len(),
            kept: kept[0],
            metric: metrics[0],
            faithfulness: scale.faithfulness(metrics[0]),
            complement: Complement {
                metric: metrics[1],
                faithfulness: scale.faithfulness(metrics[1]),
            },
            minimality: minimality.then(|| {
                metrics[2 + 2 * knockouts.len()..].iter().map(|m| metrics[0] - m).collect()
            }),
            knockouts: knocked_out
                .map(|(nodes, metrics)| Knockout {
                    nodes: nodes.clone(),
                    model: metrics[0],
                    circuit: metrics[1],
                    incompleteness: (metrics[1] - metrics[0]).abs(),
                })
                .collect(),
        };
        Ok((scale, figures))
    }

    /// The indices of writers that are knocked out.
    fn writers(&self, nodes: &[Node]) -> Result<BTreeSet<Writer>> {
        let writer = |node: &Node| {
            let writer = self.model.graph().writer_of(*node);
            match writer.filter(|&writer| self.all.iter().any(|edge| edge.0 == writer)) {
                Some(writer) => Ok(writer),
                None => refuse!(
                    "knock-out of `{node}`: no edge of the graph leaves a node of this name"
                ),
            }
        };
        nodes.iter().map(writer).collect()
    }
}
