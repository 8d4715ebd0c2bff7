//! What each node of a circuit does, in one table: its score, its direct effect, where it looks, and what it
//! moves.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::attention::is_marked;
use super::findings::{Table, names, number};
use super::{Analysis, Panel};
use crate::graph::circuit::Circuit;
use crate::graph::{Graph, Input, Node, Reader, Writer};
use crate::{Result, refuse};

/// The nodes of a circuit that write, in computation order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Roles {
    pub nodes: Vec<Role>,
}

/// What one node does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Role {
    pub node: Node,
    /// The sum of the scores of the circuit's edges out of it.
    pub score: f64,
    /// Its direct effect on the logit difference, as `analyze logits` gives it.
    pub direct: f64,
    /// What the metric changes by when the node is patched: all of its edges, in the circuit or not.
    pub effect: f64,
    /// The span that a head looks at most from the key positions, and its share of the attention. Beside the
    /// marked ones there are the first token and the position itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looks_at: Option<(String, f64)>,
    /// The two marked spans, neither of them the key position, between which a head's attention is the largest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub between: Option<Between>,
    /// The reader of the circuit that it moves most, by its edge's score, and the score.
    pub moves: Input,
    pub moves_by: f64,
}

/// The attention from the last token of one span to the tokens of another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Between {
    pub from: String,
    pub to: String,
    pub share: f64,
}

impl Analysis<'_> {
    /// The roles of a circuit's nodes.
    ///
    /// # Errors
    /// If the circuit isn't this model's or has no edge, and as the other analyses'.
    pub fn roles(&self, circuit: &Circuit) -> Result<Roles> {
        let graph = self.model.graph();
        circuit.indices(graph)?;
        if circuit.edges.is_empty() {
            refuse!("the circuit has no edge, so no node of it does anything");
        }
        let nodes: BTreeSet<Writer> =
            circuit.edges.iter().filter_map(|edge| graph.writer_of(edge.writer)).collect();
        let writers: Vec<Writer> = nodes.into_iter().collect();
        let names: Vec<Node> = writers.iter().map(|writer| graph.writers()[writer.0]).collect();
        let heads: Vec<Node> =
            names.iter().copied().filter(|node| matches!(node, Node::Head { .. })).collect();
        let direct: BTreeMap<Node, f64> =
            self.logits()?.nodes.into_iter().map(|of| (of.node, of.effect)).collect();
        let mut looks = self.looks_at(&heads)?;
        let mut between = self.between(&heads)?;
        let all: BTreeSet<Reader> = (0..graph.readers().len()).map(Reader).collect();
        let patched = self.patched(&writers, &all)?;
        let mut roles = Vec::with_capacity(names.len());
        for (node, patched) in names.into_iter().zip(patched.nodes) {
            let own = || circuit.edges.iter().filter(|edge| edge.writer == node);
            let strongest = own().max_by(|a, b| a.score.abs().total_cmp(&b.score.abs()));
            let Some(strongest) = strongest else { continue };
            roles.push(Role {
                node,
                score: own().map(|edge| f64::from(edge.score)).sum(),
                direct: direct.get(&node).copied().unwrap_or(0.0),
                effect: patched.effect,
                looks_at: looks.remove(&node),
                between: between.remove(&node),
                moves: strongest.reader,
                moves_by: f64::from(strongest.score),
            });
        }
        Ok(Roles { nodes: roles })
    }

    /// The span that each head looks at most, a marked one among equals, and its share of the attention.
    fn looks_at(&self, heads: &[Node]) -> Result<BTreeMap<Node, (String, f64)>> {
        if heads.is_empty() {
            return Ok(BTreeMap::new());
        }
        let attention = self.attention(heads, None, 0)?;
        let most = attention.heads.iter().filter_map(|head| {
            // Names of the others begin with a bracket, which comes before letters.
            let (name, look) = head.looks.iter().max_by(|a, b| a.1.share.total_cmp(&b.1.share))?;
            Some((head.node, (name.clone(), look.share)))
        });
        Ok(most.collect())
    }

    /// The two spans between which each head's attention is the largest.
    fn between(&self, heads: &[Node]) -> Result<BTreeMap<Node, Between>> {
        let mut largest: BTreeMap<Node, Between> = BTreeMap::new();
        if heads.is_empty() {
            return Ok(largest);
        }
        for from in self.marked() {
            for head in self.attention(heads, Some(from), 0)?.heads {
                let others = head.looks.iter().filter(|(to, _)| is_marked(to) && *to != from);
                for (to, look) in others {
                    if largest.get(&head.node).is_none_or(|best| best.share < look.share) {
                        let found =
                            Between { from: from.to_owned(), to: to.clone(), share: look.share };
                        largest.insert(head.node, found);
                    }
                }
            }
        }
        Ok(largest)
    }
}

impl Roles {
    /// A line a node.
    pub(super) fn table(&self) -> Table {
        let cells = |of: &Role| {
            let layer = of.node.layer().map_or_else(String::new, |layer| layer.to_string());
            let kind = serde_json::to_value(of.node.kind()).unwrap_or_default();
            let (span, share) = match &of.looks_at {
                Some((name, share)) => (name.clone(), number(*share)),
                None => (String::new(), String::new()),
            };
            let (spans, share_between) = match &of.between {
                Some(Between { from, to, share }) => (format!("{from} → {to}"), number(*share)),
                None => (String::new(), String::new()),
            };
            vec![
                of.node.to_string(),
                layer,
                kind.as_str().unwrap_or_default().to_owned(),
                number(of.score),
                number(of.direct),
                number(of.effect),
                span,
                share,
                spans,
                share_between,
                of.moves.to_string(),
                number(of.moves_by),
            ]
        };
        Table {
            head: names([
                "node",
                "layer",
                "kind",
                "score",
                "direct",
                "patched",
                "looks at",
                "share",
                "between",
                "share between",
                "moves",
                "by",
            ]),
            lines: self.nodes.iter().map(cells).collect(),
            weights: self.nodes.iter().map(|of| of.effect.abs()).collect(),
        }
    }

    /// Direct effects, and what patching does.
    pub(super) fn panels(&self, graph: &Graph) -> Vec<Panel> {
        let nodes = || self.nodes.iter();
        vec![
            Panel::new(graph, "direct effect", nodes().map(|of| (of.node, of.direct))),
            Panel::new(graph, "patched", nodes().map(|of| (of.node, of.effect))),
        ]
    }
}
