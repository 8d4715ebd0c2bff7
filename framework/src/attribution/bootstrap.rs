//! How sure scores and a circuit are: the bootstrap over examples. A resample draws as many examples as
//! there are, with replacement; its scores are each example's own times the number of times it was drawn, so
//! that all resamples come from one scoring. Their spread is a score's standard error (Efron, 1979), and a
//! circuit is cut from each by the rule that the circuit was cut by.
//!
//! Every resample has its running sums: 8 bytes an edge and resample, however many examples there are. The
//! examples' own scores, 8 bytes an edge and example, would be less only where resamples outnumber examples,
//! and grow with the data. Draws keep the number of examples, where Poisson's would let it vary: with the
//! metric's divisor held, that adds the score's own size to its spread.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::by_example::EdgeOrder;
use crate::graph::Graph;
use crate::graph::circuit::Circuit;
use crate::graph::scores::Scores;

/// Circuits that are held at once.
const CHUNK: usize = 16;

/// The sums of resampled scores.
pub struct Resamples {
    graph: Graph,
    order: EdgeOrder,
    /// How many times each example was drawn, [resamples, examples].
    counts: Vec<Vec<u32>>,
    /// [resamples, edges]
    sums: Vec<f64>,
}

/// What resamples say of scores and of the circuit that was cut from them.
#[derive(Clone, Debug, PartialEq)]
pub struct Certainty {
    pub bootstrap: Bootstrap,
    /// The standard deviation of each edge's score over resamples, [writers, readers]; 0 where there is no
    /// edge.
    pub standard_errors: Vec<f32>,
    /// The share of resamples in whose circuit each edge is, [writers, readers].
    pub resample_shares: Vec<f32>,
}

/// What resamples say of a circuit as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// How many there were.
    pub resamples: usize,
    /// The mean Jaccard overlap of the circuit with the resamples' circuits.
    pub overlap: f64,
}

impl Certainty {
    /// Notes at a circuit's edges, which are of this graph, what is said of them.
    pub fn note(&self, graph: &Graph, circuit: &mut Circuit) {
        for edge in &mut circuit.edges {
            let ends = graph.writer_of(edge.writer).zip(graph.reader_of(edge.reader));
            if let Some((writer, reader)) = ends {
                let place = writer.0 * graph.readers().len() + reader.0;
                edge.standard_error = Some(self.standard_errors[place]);
                edge.resample_share = Some(self.resample_shares[place]);
            }
        }
    }
}

impl Resamples {
    /// Draws so many resamples of so many examples. Each has a stream of its own, so that more resamples
    /// begin with the same.
    pub fn draw(graph: &Graph, resamples: usize, examples: usize, seed: u64) -> Self {
        let draw = |resample: usize| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(resample as u64);
            let mut counts = vec![0; examples];
            (0..examples).for_each(|_| counts[random.random_range(0..examples)] += 1);
            counts
        };
        let order = EdgeOrder::of(graph);
        Self {
            graph: graph.clone(),
            counts: (0..resamples).into_par_iter().map(draw).collect(),
            sums: vec![0.0; resamples * order.edge_count()],
            order,
        }
    }

    /// Adds the scores [examples, edges] of some examples, by [`EdgeOrder`].
    pub fn add(&mut self, examples: &[usize], scores: &[f64]) {
        let edges = self.order.edge_count().max(1);
        let resamples = self.sums.par_chunks_mut(edges).zip(&self.counts);
        resamples.for_each(|(sums, counts)| {
            for (&example, scores) in examples.iter().zip(scores.chunks(edges)) {
                let count = f64::from(counts[example]);
                if count > 0.0 {
                    sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += count * score);
                }
            }
        });
    }

    /// What the resamples say of a circuit, which `cut` cuts from scores.
    pub fn judge(&self, circuit: &Circuit, cut: impl Fn(&Scores) -> Circuit + Sync) -> Certainty {
        let edges = self.order.edge_count().max(1);
        let mut times = vec![0u32; edges];
        let mut overlaps = 0.0;
        for chunk in self.sums.chunks(edges * CHUNK) {
            let cut = |sums: &[f64]| {
                let values = self.order.matrix(&self.graph, sums);
                let resampled = cut(&Scores { graph: self.graph.clone(), values });
                (circuit.jaccard(&resampled), resampled)
            };
            let circuits: Vec<(f64, Circuit)> = chunk.par_chunks(edges).map(cut).collect();
            for (overlap, circuit) in circuits {
                overlaps += overlap;
                for edge in circuit.edges {
                    let ends =
                        self.graph.writer_of(edge.writer).zip(self.graph.reader_of(edge.reader));
                    if let Some((writer, reader)) = ends {
                        times[self.order.place(writer, reader)] += 1;
                    }
                }
            }
        }
        let resamples = self.counts.len();
        let shares: Vec<f64> = times.iter().map(|&n| f64::from(n) / resamples as f64).collect();
        Certainty {
            bootstrap: Bootstrap { resamples, overlap: overlaps / resamples as f64 },
            standard_errors: self.order.matrix(&self.graph, &self.standard_deviations()),
            resample_shares: self.order.matrix(&self.graph, &shares),
        }
    }

    /// Of each edge's score over resamples.
    fn standard_deviations(&self) -> Vec<f64> {
        let edges = self.order.edge_count().max(1);
        let resamples = self.counts.len() as f64;
        let mut means = vec![0.0; edges];
        let mut squares = vec![0.0; edges];
        for sums in self.sums.chunks(edges) {
            means.iter_mut().zip(sums).for_each(|(mean, sum)| *mean += sum / resamples);
        }
        for sums in self.sums.chunks(edges) {
            for ((square, sum), mean) in squares.iter_mut().zip(sums).zip(&means) {
                *square += (sum - mean) * (sum - mean);
            }
        }
        squares.iter().map(|square| (square / (resamples - 1.0)).sqrt()).collect()
    }
}
