//! How often the intervals of a bootstrap hold the value of examples that it has not seen.

use circuit_framework::PatchingMetric;
use circuit_framework::attribution::{Ablation, Discovery, EdgeOrder, Resamples};
use circuit_framework::graph::circuit::Circuit;
use circuit_framework::graph::pruning::Pruning;
use circuit_framework::graph::{Graph, Input, Node, Port};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::bootstrap::{by_example, sentences};
use crate::support::plugin;

/// How many of the intervals of ±1 and ±1.96 standard errors hold the value of a held-out half.
#[derive(Default)]
struct Coverage {
    within: [f64; 2],
    intervals: f64,
}

impl Coverage {
    /// Counts the intervals of some edges, from the examples' scores of two halves. They are widened by √2,
    /// since the other half's value is as uncertain.
    fn count(&mut self, graph: &Graph, half: &[Vec<f64>], held_out: &[Vec<f64>], edges: &[usize]) {
        let mut resamples = Resamples::draw(graph, 200, half.len(), 3);
        resamples.add(&(0..half.len()).collect::<Vec<_>>(), &half.concat());
        let certainty = resamples.judge(&Circuit::default(), |_| Circuit::default());
        let sums = |terms: &[Vec<f64>]| {
            let sum = |edge: usize| terms.iter().map(|scores| scores[edge]).sum();
            let sums: Vec<f64> = (0..graph.edge_count()).map(sum).collect();
            EdgeOrder::of(graph).matrix(graph, &sums)
        };
        let (score, other) = (sums(half), sums(held_out));
        for &edge in edges {
            let error = certainty.standard_errors[edge] * std::f32::consts::SQRT_2;
            let distance = (score[edge] - other[edge]).abs() / error;
            self.within[0] += f64::from(u8::from(distance <= 1.0));
            self.within[1] += f64::from(u8::from(distance <= 1.96));
            self.intervals += 1.0;
        }
    }

    fn check(&self, tolerances: [f64; 2]) {
        let shares = self.within.map(|within| within / self.intervals);
        for ((share, expected), tolerance) in shares.iter().zip([0.683, 0.950]).zip(tolerances) {
            assert!((share - expected).abs() <= tolerance, "{shares:?}");
        }
    }
}

/// On scores drawn at random, with means of all sizes beside their spread, intervals cover about as often as
/// a normal variable's would.
#[test]
fn intervals_cover_the_value_of_a_held_out_half() {
    let [embed, mlp] = [Node::Embed, Node::Mlp { layer: 0, part: None }];
    let reads = |node| vec![Input { node, port: Port::Input }];
    let sites = [(vec![], vec![embed]), (reads(mlp), vec![mlp]), (reads(Node::Logits), vec![])];
    let graph = Graph::new(sites);
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut coverage = Coverage::default();
    for _ in 0..500 {
        let mut half = || -> Vec<Vec<f64>> {
            let mut score = |mean: f64| mean + random.random::<f64>().powi(2);
            (0..60).map(|_| [-0.3, 0.0, 5.0].map(&mut score).to_vec()).collect()
        };
        // The edges of the matrix [2 writers, 2 readers].
        coverage.count(&graph, &half(), &half(), &[0, 1, 3]);
    }
    coverage.check([0.03, 0.02]);
}

/// On generated sentences, intervals of the built-in model's strongest edges cover about as often too. (Those of weak
/// edges, whose score a few examples make, are too narrow.)
#[test]
fn intervals_cover_the_value_of_held_out_sentences() {
    const HALF: usize = 200;
    let (model, data) = sentences("train_examples = 2000", 5, true);
    let metric: Box<dyn PatchingMetric> = plugin("logit_diff", "");
    let options = Discovery { ablation: Ablation::Corrupt, ..Discovery::default() };
    let (found, _, mut terms) = by_example(&*model.model, data.examples(), &*metric, &options);
    let graph = &found.scores.graph;
    let circuit = Pruning::default().prune(&found.scores, &found.scores.magnitudes(), 50);
    let columns = graph.readers().len();
    let edges: Vec<usize> = (circuit.indices(graph).unwrap().into_iter())
        .map(|(writer, reader)| writer.0 * columns + reader.0)
        .collect();
    // The edges' scores vary together, so that few pairs of halves would tell little.
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut coverage = Coverage::default();
    for _ in 0..20 {
        terms.shuffle(&mut random);
        for pair in terms.chunks_exact(2 * HALF) {
            coverage.count(graph, &pair[..HALF], &pair[HALF..], &edges);
        }
    }
    coverage.check([0.08, 0.04]);
}
