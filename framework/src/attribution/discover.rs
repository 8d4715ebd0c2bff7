//! Scores over all examples, batch by batch, by whichever method; example by example too, where that is asked
//! for.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use super::by_example::EdgeOrder;
use super::method::Discovered;
use super::{Discovery, Scoring};
use crate::data::example::{Batch, Example, by_length};
use crate::evaluation::metric::PatchingMetric;
use crate::graph::{Reader, Writer};
use crate::model::Model;
use crate::peers::{self, Peers};
use crate::progress::{self, Progress, Report};
use crate::{Error, Result};

/// Takes some examples' own scores: their indices, and the scores [examples, edges] by [`EdgeOrder`].
pub type TakeExamples<'a> = dyn Fn(&[usize], &[f64]) -> Result<()> + 'a;

/// How far the sum of the examples' scores may be from the scores, as a share of the largest: rounding in
/// bfloat16 is less, and what is no sum is further off.
const TOLERANCE: f64 = 0.02;

/// Scores every edge over all `examples`, whose batches are shared with the process's peers.
///
/// # Errors
/// As for [`Discovery::check`], and if a tensor operation fails.
pub fn discover(
    model: &dyn Model,
    examples: &[&Example],
    metric: &dyn PatchingMetric,
    options: &Discovery,
    peers: &dyn Peers,
    report: &Report,
) -> Result<Discovered> {
    let scoring = Scoring::new(model, examples, metric, options)?;
    start(scoring.shared(peers, batches(examples, options)), examples, report)
}

/// Scores some edges, of the graph between the options' kinds of nodes, like [`discover`] scores all. What the
/// result has for other edges is unsaid.
///
/// # Errors
/// Those of [`discover`].
pub fn discover_edges(
    model: &dyn Model,
    examples: &[&Example],
    metric: &dyn PatchingMetric,
    options: &Discovery,
    edges: &BTreeSet<(Writer, Reader)>,
    (peers, report): (&dyn Peers, &Report),
) -> Result<Discovered> {
    let scoring = Scoring::new(model, examples, metric, options)?.wanting(edges);
    start(scoring.shared(peers, batches(examples, options)), examples, report)
}

/// How many batches examples are scored in.
fn batches(examples: &[&Example], options: &Discovery) -> usize {
    examples.len().div_ceil(options.batch_size)
}

/// Scores on examples, those of a length together.
fn start(scoring: Scoring, examples: &[&Example], report: &Report) -> Result<Discovered> {
    let order = by_length(examples, |example| example.tokens.len());
    let examples: Vec<&Example> = order.iter().map(|&index| examples[index]).collect();
    score(scoring, &examples, report)
}

/// As [`discover`], to the very bits, and gives `take` each example's own scores too. Batches come one after
/// the other, examples of a length together. An ablation's means and the metric's divisor are those of all
/// examples; for means the examples are run once more before. Says whether the examples' scores add up to the
/// scores: those of a method that is no sum over examples don't.
///
/// # Errors
/// As [`discover`], and as `take`.
pub fn discover_by_example(
    model: &dyn Model,
    examples: &[&Example],
    metric: &dyn PatchingMetric,
    options: &Discovery,
    (peers, report): (&dyn Peers, &Report),
    take: &TakeExamples,
) -> Result<(Discovered, bool)> {
    let order = by_length(examples, |example| example.tokens.len());
    let scoring = Scoring::new(model, examples, metric, options)?;
    let scoring = scoring.shared(peers, batches(examples, options));
    let examples: Vec<&Example> = order.iter().map(|&index| examples[index]).collect();
    let edges = EdgeOrder::of(scoring.graph());
    let count = edges.edge_count();
    let (taken, sums) = (Cell::new(0), RefCell::new(vec![0f64; count]));
    let take = |scores: &[f64]| {
        let first = taken.get();
        let Some(indices) = order.get(first..first + scores.len() / count) else {
            return Err(Error::input("the method scores examples that it was not given"));
        };
        taken.set(first + indices.len());
        for scores in scores.chunks(count) {
            sums.borrow_mut().iter_mut().zip(scores).for_each(|(sum, score)| *sum += score);
        }
        take(indices, scores)
    };
    let mut run = 0;
    let chunks = peers::own(peers, examples.chunks(options.batch_size));
    let batches = chunks.map(|chunk| {
        progress::check_stop()?;
        run += chunk.len();
        report(Progress { stage: "means", done: run, total: examples.len(), figure: None });
        Batch::new(chunk.to_vec(), &model.device())
    });
    let scoring = scoring.by_example(batches, &take)?;
    let found = score(scoring, &examples, report)?;
    let sums = edges.matrix(&found.scores.graph, &sums.borrow());
    let is_sum = taken.get() == examples.len() && adds_up(&found, &sums);
    Ok((found, is_sum))
}

/// Scores on examples in this order, of which this process does its own batches.
fn score(scoring: Scoring, examples: &[&Example], report: &Report) -> Result<Discovered> {
    let (options, device) = (scoring.options, scoring.model.device());
    let batches = peers::own(scoring.peers(), examples.chunks(options.batch_size));
    let batches: Vec<Vec<&Example>> = batches.map(<[_]>::to_vec).collect();
    let method = options.method.build()?;
    let mut scoring = scoring.with_rules(method.rules());
    let mut done = 0;
    for batch in &batches {
        progress::check_stop()?;
        method.add(&mut scoring, &Batch::new(batch.clone(), &device)?)?;
        done += batch.len();
        let figure = Some(("metric", scoring.metric()));
        report(Progress { stage: "discover", done, total: examples.len(), figure });
    }
    method.finish(scoring, &batches)
}

/// Whether sums over examples [writers, readers] are the scores, but for rounding. The difference of scores
/// that are all nothing but rounding is none.
fn adds_up(found: &Discovered, sums: &[f32]) -> bool {
    let values = found.scores.values.iter().map(|&score| f64::from(score));
    let largest = values.clone().fold(0.0, |largest: f64, score| largest.max(score.abs()));
    let tolerance = TOLERANCE * largest + 1e-6 * (1.0 + found.metric.abs());
    values.zip(sums).all(|(score, &sum)| (score - f64::from(sum)).abs() <= tolerance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::scores::Scores;
    use crate::graph::{Graph, Input, Node, Port};

    #[test]
    fn only_sums_that_are_the_scores_add_up() {
        let input = Input { node: Node::Logits, port: Port::Input };
        let graph = Graph::new([(vec![], vec![Node::Embed]), (vec![input], vec![])]);
        let of = |score: f32| Discovered {
            scores: Scores { graph: graph.clone(), values: vec![score] },
            metric: 1.0,
        };
        assert!(adds_up(&of(0.5), &[0.5 + 1e-4]));
        // Scores scaled to a largest of 1, or their size: no sums over examples.
        assert!(!adds_up(&of(1.0), &[0.5]));
        assert!(!adds_up(&of(0.5), &[-0.5]));
        assert!(!adds_up(&of(0.5), &[0.0]));
        // Nothing but rounding.
        assert!(adds_up(&of(1e-8), &[-1e-8]));
    }
}
