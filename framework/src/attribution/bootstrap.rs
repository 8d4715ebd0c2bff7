//! How sure scores and a circuit are: the bootstrap over examples. A resample draws as many examples as
//! there are, with replacement; its scores are each example's own times the number of times it was drawn, so
//! that all resamples come from one scoring. Their spread is a score's standard error (Efron, 1979), and a
//! circuit is cut from each by the rule that the circuit was cut by.
//!
//! Every resample has its running sums: 8 bytes an edge and resample, however many examples there are. The
//! examples' own scores, 8 bytes an edge and example, would be less only where resamples outnumber examples,
//! and grow with the data. Draws keep the number of examples, where Poisson's would let it vary: with the
//! metric's divisor held, that adds the score's own size to its spread. Of an edge whose score a few examples
//! make, a standard error is too small: what is rare may not be among the examples at all.

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::graph::circuit::Edge;
    use crate::graph::pruning::Pruning;
    use crate::graph::{Input, Node, Port};

    /// The embedding and two MLPs, which read and write, and the logits: six edges.
    fn graph() -> Graph {
        let mlp = |layer| Node::Mlp { layer, part: None };
        let input = |node| Input { node, port: Port::Input };
        Graph::new([
            (vec![], vec![Node::Embed]),
            (vec![input(mlp(0))], vec![mlp(0)]),
            (vec![input(mlp(1))], vec![mlp(1)]),
            (vec![input(Node::Logits)], vec![]),
        ])
    }

    proptest! {
        /// Drawn with replacement, as many as there are; the first are the same however many follow; the
        /// order and the batches in which examples are added change nothing but rounding.
        #[test]
        fn resamples_are_draws_of_all_examples(
            scores in prop::collection::vec(prop::collection::vec(-1f64..1.0, 6), 2..9),
            seed in any::<u64>(),
        ) {
            let n = scores.len();
            let (mut few, mut many) = (
                Resamples::draw(&graph(), 5, n, seed),
                Resamples::draw(&graph(), 8, n, seed),
            );
            prop_assert_eq!(&few.counts[..], &many.counts[..5]);
            prop_assert!(few.counts.iter().all(|counts| counts.iter().sum::<u32>() as usize == n));
            few.add(&(0..n).collect::<Vec<_>>(), &scores.concat());
            (0..n).rev().for_each(|example| many.add(&[example], &scores[example]));
            for (a, b) in few.sums.iter().zip(&many.sums) {
                prop_assert!((a - b).abs() < 1e-12);
            }
        }

        /// Against the resamples' circuits themselves, cut one by one.
        #[test]
        fn shares_are_counts_of_circuits(
            scores in prop::collection::vec(prop::collection::vec(-1f64..1.0, 6), 2..9),
            top_n in 1usize..6,
        ) {
            let graph = graph();
            let mut resamples = Resamples::draw(&graph, 20, scores.len(), 1);
            resamples.add(&(0..scores.len()).collect::<Vec<_>>(), &scores.concat());
            let cut = |scores: &Scores| Pruning::default().prune(scores, &scores.magnitudes(), top_n);
            let circuits: Vec<Circuit> = (resamples.sums.chunks(6))
                .map(|sums| {
                    let values = resamples.order.matrix(&graph, sums);
                    cut(&Scores { graph: graph.clone(), values })
                })
                .collect();
            let mut circuit = circuits[0].clone();
            let certainty = resamples.judge(&circuit, cut);
            let overlap: f64 = circuits.iter().map(|other| circuit.jaccard(other)).sum();
            prop_assert!((certainty.bootstrap.overlap - overlap / 20.0).abs() < 1e-12);
            certainty.note(&graph, &mut circuit);
            for Edge { writer, reader, resample_share, .. } in circuit.edges {
                let of = |edge: &Edge| edge.writer == writer && edge.reader == reader;
                let times = circuits.iter().filter(|other| other.edges.iter().any(of)).count();
                prop_assert_eq!(resample_share, Some((times as f64 / 20.0) as f32));
            }
        }
    }

    /// Of two examples' scores 1 and 3 a resample has 2, 4 or 6, with probabilities ¼, ½, ¼: a standard
    /// deviation of √2. Had the number of draws Poisson's spread, it would be √10.
    #[test]
    fn a_standard_error_by_hand() {
        let graph = graph();
        let mut resamples = Resamples::draw(&graph, 4000, 2, 7);
        resamples.add(&[0, 1], &[[1.0; 6], [3.0; 6]].concat());
        let certainty = resamples.judge(&Circuit::default(), |_| Circuit::default());
        let error = certainty.standard_errors[0];
        assert!((error - 2f32.sqrt()).abs() < 0.05, "{error}");
        assert_eq!(certainty.bootstrap, Bootstrap { resamples: 4000, overlap: 1.0 });
    }
}
