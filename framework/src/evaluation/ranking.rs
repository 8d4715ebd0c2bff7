//! Rankings: the order in which edges are taken into circuits of growing size. Ties go to the lower
//! writer, then the lower reader, in the graph's order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::graph::edge_set::{EdgeSet, served};
use crate::graph::scores::Scores;
use crate::graph::{Graph, Node, Reader, Writer};
use crate::{Result, refuse};

/// How edges are ranked by their scores.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Ranking {
    /// By |score|.
    #[default]
    Absolute,
    /// By score.
    Signed,
    /// By |score|, but only edges into `logits` or into a node that an edge was already chosen out of.
    Greedy,
}

impl Ranking {
    /// Its name, as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Ranking::Absolute => "absolute",
            Ranking::Signed => "signed",
            Ranking::Greedy => "greedy",
        }
    }

    /// The edges `all` of the model's whole `graph`, best first; `greedy` leaves out those from which no
    /// path leads to `logits`.
    ///
    /// # Errors
    /// If there is no score of an edge, or it is no number.
    pub fn order(
        self,
        graph: &Graph,
        all: &EdgeSet,
        scores: &Scores,
    ) -> Result<Vec<(Writer, Reader)>> {
        let mut scored = Vec::new();
        for edge in all.iter() {
            scored.push((score(graph, edge, scores)?, edge));
        }
        if self == Ranking::Greedy {
            return greedy(graph, &scored);
        }
        let key = |score: f32| if self == Ranking::Absolute { score.abs() } else { score };
        scored.sort_by(|a, b| key(b.0).total_cmp(&key(a.0)).then(a.1.cmp(&b.1)));
        Ok(scored.into_iter().map(|(_, edge)| edge).collect())
    }
}

/// The score of an edge of the model's whole graph.
fn score(graph: &Graph, (writer, reader): (Writer, Reader), scores: &Scores) -> Result<f32> {
    let (node, input) = (graph.writers()[writer.0], graph.readers()[reader.0]);
    let ends = scores.graph.writer_of(node).zip(scores.graph.reader_of(input));
    match ends.map(|(writer, reader)| scores.of(writer, reader)) {
        // −0 and 0 are the same score.
        Some(score) if !score.is_nan() => Ok(score + 0.0),
        Some(_) => refuse!("the score of {node} → {input} is NaN; it must be a number"),
        None => refuse!(
            "there is no score of {node} → {input}; give --nodes (discovery.nodes) as it was when the \
             edges were scored"
        ),
    }
}

/// An edge that can be chosen next: the largest |score|, then the lowest edge is the greatest.
type Candidate = (u32, Reverse<(Writer, Reader)>);

fn greedy(graph: &Graph, scored: &[(f32, (Writer, Reader))]) -> Result<Vec<(Writer, Reader)>> {
    let readers = graph.readers().len();
    let mut into: Vec<Vec<Candidate>> = vec![Vec::new(); readers];
    for &(score, edge) in scored {
        // The bits of numbers from 0 up are in the numbers' order.
        into[edge.1.0].push((score.abs().to_bits(), Reverse(edge)));
    }
    let mut leads_to: Vec<Vec<usize>> = vec![Vec::new(); graph.writers().len()];
    for (reader, nodes) in served(graph).into_iter().enumerate() {
        nodes.iter().for_each(|node| leads_to[node.0].push(reader));
    }
    let mut candidates = BinaryHeap::new();
    for (reader, input) in graph.readers().iter().enumerate() {
        if input.node == Node::Logits {
            candidates.extend(std::mem::take(&mut into[reader]));
        }
    }
    if candidates.is_empty() {
        refuse!(
            "ranking `greedy` begins at `logits`, which no edge leads to; take `logits` into nodes"
        );
    }
    let mut chosen = Vec::new();
    while let Some((_, Reverse(edge))) = candidates.pop() {
        chosen.push(edge);
        for &reader in &leads_to[edge.0.0] {
            candidates.extend(std::mem::take(&mut into[reader]));
        }
    }
    Ok(chosen)
}

/// What plots and tables call the edges in a random order.
pub const RANDOM: &str = "random";

/// The edges in an order drawn with this seed, to hold a ranking against.
pub fn random(all: &EdgeSet, seed: u64) -> Vec<(Writer, Reader)> {
    let mut edges: Vec<_> = all.iter().collect();
    edges.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    edges
}
