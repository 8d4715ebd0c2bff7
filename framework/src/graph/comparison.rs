//! Two circuits side by side: the edges of both and of one alone, layer by layer, and how far the scores of
//! those in both agree.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::circuit::{Circuit, Edge};
use super::{Input, Node};
use crate::correlation::spearman;

/// Where two circuits' edges are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Edges of both, each as it is in the one and in the other, in the first one's order.
    pub shared: Vec<[Edge; 2]>,
    /// Edges of the first circuit alone, best first.
    pub first_only: Vec<Edge>,
    /// Edges of the second circuit alone, best first.
    pub second_only: Vec<Edge>,
}

/// How many edges end in a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub shared: usize,
    pub first_only: usize,
    pub second_only: usize,
}

impl Comparison {
    /// The comparison of a circuit with another.
    pub fn of(first: &Circuit, second: &Circuit) -> Self {
        let others: BTreeMap<(Node, Input), Edge> =
            second.edges.iter().map(|edge| ((edge.writer, edge.reader), *edge)).collect();
        let twin = |edge: &Edge| others.get(&(edge.writer, edge.reader)).copied();
        let shared: Vec<[Edge; 2]> =
            first.edges.iter().filter_map(|edge| Some([*edge, twin(edge)?])).collect();
        let both: BTreeSet<(Node, Input)> =
            shared.iter().map(|[edge, _]| (edge.writer, edge.reader)).collect();
        let alone = |circuit: &Circuit| -> Vec<Edge> {
            let is_alone = |edge: &&Edge| !both.contains(&(edge.writer, edge.reader));
            circuit.edges.iter().filter(is_alone).copied().collect()
        };
        Self { first_only: alone(first), second_only: alone(second), shared }
    }

    /// The share of edges in both, |A ∩ B| / |A ∪ B|; 1 for two empty circuits.
    pub fn overlap(&self) -> f64 {
        match self.shared.len() + self.first_only.len() + self.second_only.len() {
            0 => 1.0,
            union => self.shared.len() as f64 / union as f64,
        }
    }

    /// Spearman's correlation of the scores of the edges in both. None where there are fewer than two, or
    /// the scores don't vary.
    pub fn rank_correlation(&self) -> Option<f64> {
        let scores = |which: usize| -> Vec<f64> {
            self.shared.iter().map(|pair| f64::from(pair[which].score)).collect()
        };
        spearman(&scores(0), &scores(1))
    }

    /// The edges in both whose score has the other sign in the second.
    pub fn turned(&self) -> impl Iterator<Item = &[Edge; 2]> {
        self.shared.iter().filter(|[first, second]| first.score * second.score < 0.0)
    }

    /// Edges by the layer that reads; those into the logits have none.
    pub fn by_layer(&self) -> BTreeMap<Option<usize>, Counts> {
        let mut layers: BTreeMap<Option<usize>, Counts> = BTreeMap::new();
        let mut at = |edge: &Edge, count: fn(&mut Counts) -> &mut usize| {
            *count(layers.entry(edge.reader.node.layer()).or_default()) += 1;
        };
        self.shared.iter().for_each(|[edge, _]| at(edge, |counts| &mut counts.shared));
        self.first_only.iter().for_each(|edge| at(edge, |counts| &mut counts.first_only));
        self.second_only.iter().for_each(|edge| at(edge, |counts| &mut counts.second_only));
        layers
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn circuits() -> impl Strategy<Value = [Circuit; 2]> {
        let edge = (0..2usize, 0..3usize, -3i8..4);
        let circuit = || {
            prop::collection::vec(edge.clone(), 0..12).prop_map(|edges| {
                let mut circuit = Circuit::default();
                for (head, layer, score) in edges {
                    let reader = Input {
                        node: Node::Mlp { layer, part: None },
                        port: super::super::Port::Input,
                    };
                    let edge = Edge::new(Node::Head { layer: 0, head }, reader, score.into());
                    if !circuit
                        .edges
                        .iter()
                        .any(|e| (e.writer, e.reader) == (edge.writer, edge.reader))
                    {
                        circuit.edges.push(edge);
                    }
                }
                circuit
            })
        };
        [circuit(), circuit()]
    }

    proptest! {
        /// Every edge is counted once; what one comparison calls the first's the other calls the second's.
        #[test]
        fn edges_are_in_one_or_both([a, b] in circuits()) {
            let (ab, ba) = (Comparison::of(&a, &b), Comparison::of(&b, &a));
            prop_assert_eq!(ab.shared.len() + ab.first_only.len(), a.edges.len());
            prop_assert_eq!(ab.shared.len() + ab.second_only.len(), b.edges.len());
            prop_assert_eq!(&ab.first_only, &ba.second_only);
            prop_assert_eq!(ab.overlap(), a.jaccard(&b));
            prop_assert_eq!(ab.turned().count(), ba.turned().count());
            let counted: usize =
                ab.by_layer().values().map(|c| c.shared + c.first_only + c.second_only).sum();
            prop_assert_eq!(counted, ab.shared.len() + ab.first_only.len() + ab.second_only.len());
            let same = Comparison::of(&a, &a);
            prop_assert!(same.first_only.is_empty() && same.second_only.is_empty());
            prop_assert!(same.rank_correlation().is_none_or(|r| (r - 1.0).abs() < 1e-9));
        }
    }
}
