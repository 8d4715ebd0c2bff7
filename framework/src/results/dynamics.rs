//! How a run's circuit changes as the model is tuned: from one rediscovery to the next, against the first one,
//! and the life of each edge. It is read from the run's `circuits.jsonl`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::graph::circuit::{Circuit, Edge};
use crate::graph::comparison::Comparison;
use crate::graph::{Input, Node};
use crate::tuning::{CIRCUITS, DiscoveredAt};
use crate::{Result, files, refuse};

/// A run's circuits over its steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dynamics {
    /// The rediscoveries, in order.
    pub steps: Vec<Change>,
    /// The layers that edges end in that changed, in order, the logits first.
    pub layers: Vec<LayerChange>,
    /// Every edge that was in any circuit, the longest lived first, of those the strongest.
    pub edges: Vec<Life>,
}

/// A rediscovery, against the first one and the one before; the first is held against itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    pub step: usize,
    pub edges: usize,
    /// The Jaccard index with the first circuit.
    pub overlap_first: f64,
    /// The Jaccard index with the circuit before.
    pub overlap_previous: f64,
    /// Spearman's correlation of the scores of the edges shared with the circuit before.
    pub rank_correlation: Option<f64>,
    /// Edges that the circuit before lacks.
    pub born: usize,
    /// Edges of the circuit before that this one lacks.
    pub died: usize,
    /// Edges shared with the circuit before whose score turned its sign.
    pub turned: usize,
}

/// How much the edges into a layer changed, over all rediscoveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LayerChange {
    /// None of the logits.
    pub layer: Option<usize>,
    /// How often an edge was there that the circuit before lacks.
    pub born: usize,
    /// How often an edge of the circuit before was lacking.
    pub died: usize,
    /// How often the score of an edge of both turned its sign.
    pub turned: usize,
}

/// The life of an edge.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Life {
    pub writer: Node,
    pub reader: Input,
    /// The first step in whose circuit it is.
    pub first: usize,
    /// The last one.
    pub last: usize,
    /// The share of rediscoveries in whose circuit it is.
    pub share: f64,
    /// The mean of its |score| over the circuits that have it.
    pub mean_magnitude: f64,
    /// How often its score turned its sign from one circuit that has it to the next.
    pub turned: usize,
}

impl Dynamics {
    /// The dynamics of a run, by its folder.
    ///
    /// # Errors
    /// If the run discovered nothing on its way, or the file is malformed.
    pub fn of_run(folder: &Path) -> Result<Self> {
        let file = folder.join(CIRCUITS);
        if !file.is_file() {
            refuse!(
                "{}: there is no {CIRCUITS}; name the folder of a finished run whose selector needs a \
                 circuit",
                folder.display()
            );
        }
        let found: Vec<(usize, DiscoveredAt)> = files::read_jsonl(&file)?;
        let circuits: Vec<(usize, Circuit)> = (found.into_iter())
            .map(|(_, found)| (found.step, Circuit { edges: found.edges }))
            .collect();
        match circuits.is_empty() {
            true => refuse!("{}: there are no circuits in it", file.display()),
            false => Ok(Self::of(&circuits)),
        }
    }

    /// The dynamics of circuits, each with the step at which it was discovered, in order.
    pub fn of(circuits: &[(usize, Circuit)]) -> Self {
        let change = |index: usize| {
            let (step, circuit) = &circuits[index];
            let (_, previous) = &circuits[index.saturating_sub(1)];
            let against = Comparison::of(previous, circuit);
            Change {
                step: *step,
                edges: circuit.edges.len(),
                overlap_first: circuits[0].1.jaccard(circuit),
                overlap_previous: against.overlap(),
                rank_correlation: against.rank_correlation(),
                born: against.second_only.len(),
                died: against.first_only.len(),
                turned: against.turned().count(),
            }
        };
        Self {
            steps: (0..circuits.len()).map(change).collect(),
            layers: layers(circuits),
            edges: lives(circuits),
        }
    }
}

fn layers(circuits: &[(usize, Circuit)]) -> Vec<LayerChange> {
    let mut layers: BTreeMap<Option<usize>, LayerChange> = BTreeMap::new();
    let mut at = |edge: &Edge, count: fn(&mut LayerChange) -> &mut usize| {
        let layer = edge.reader.node.layer();
        *count(layers.entry(layer).or_insert(LayerChange { layer, ..Default::default() })) += 1;
    };
    for pair in circuits.windows(2) {
        let against = Comparison::of(&pair[0].1, &pair[1].1);
        against.second_only.iter().for_each(|edge| at(edge, |of| &mut of.born));
        against.first_only.iter().for_each(|edge| at(edge, |of| &mut of.died));
        against.turned().for_each(|[edge, _]| at(edge, |of| &mut of.turned));
    }
    layers.into_values().collect()
}

fn lives(circuits: &[(usize, Circuit)]) -> Vec<Life> {
    let mut scores: BTreeMap<(Node, Input), Vec<(usize, f32)>> = BTreeMap::new();
    for (step, circuit) in circuits {
        for edge in &circuit.edges {
            scores.entry((edge.writer, edge.reader)).or_default().push((*step, edge.score));
        }
    }
    let life = |((writer, reader), scores): (_, Vec<(usize, f32)>)| {
        let magnitudes = scores.iter().map(|(_, score)| f64::from(score.abs()));
        Life {
            writer,
            reader,
            first: scores.iter().map(|&(step, _)| step).min().unwrap_or(0),
            last: scores.iter().map(|&(step, _)| step).max().unwrap_or(0),
            share: scores.len() as f64 / circuits.len() as f64,
            mean_magnitude: magnitudes.sum::<f64>() / scores.len() as f64,
            turned: scores.windows(2).filter(|pair| pair[0].1 * pair[1].1 < 0.0).count(),
        }
    };
    let mut lives: Vec<Life> = scores.into_iter().map(life).collect();
    lives.sort_by(|a, b| {
        b.share.total_cmp(&a.share).then(b.mean_magnitude.total_cmp(&a.mean_magnitude))
    });
    lives
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: an edge that stays and turns, one that dies, one that is born and comes again.
    #[test]
    fn a_short_life_by_hand() {
        let reader = "logits".parse().unwrap();
        let circuit = |edges: &[(usize, f32)]| Circuit {
            edges: edges
                .iter()
                .map(|&(head, score)| Edge::new(Node::Head { layer: 0, head }, reader, score))
                .collect(),
        };
        let circuits = [
            (0, circuit(&[(0, 2.0), (1, 1.0)])),
            (10, circuit(&[(0, -4.0), (2, 1.0)])),
            (20, circuit(&[(0, -3.0), (2, 2.0)])),
        ];
        let Dynamics { steps, layers, edges } = Dynamics::of(&circuits);
        assert_eq!(layers, [LayerChange { layer: None, born: 1, died: 1, turned: 1 }]);
        let of = |change: &Change| (change.born, change.died, change.turned);
        assert_eq!(steps.iter().map(of).collect::<Vec<_>>(), [(0, 0, 0), (1, 1, 1), (0, 0, 0)]);
        assert_eq!((steps[2].overlap_first, steps[2].overlap_previous), (1.0 / 3.0, 1.0));
        let lives: Vec<_> = edges
            .iter()
            .map(|life| (life.first, life.last, life.turned, life.mean_magnitude))
            .collect();
        assert_eq!(lives, [(0, 20, 1, 3.0), (10, 20, 0, 1.5), (0, 0, 0, 1.0)]);
        assert_eq!(edges[1].share, 2.0 / 3.0);
    }
}
