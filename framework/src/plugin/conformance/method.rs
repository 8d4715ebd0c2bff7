//! What an attribution method must keep to.

use super::check_float64;
use crate::attribution::{AttributionMethod, Discovered, Discovery, Positions, Scoring};
use crate::data::example::{Batch, Example};
use crate::evaluation::metric::PatchingMetric;
use crate::graph::{Reader, Writer};
use crate::model::Model;
use crate::pass::{Pass, scalar};
use crate::{Result, refuse};

/// Checks that a method scores every edge of the graph and nothing else, that its metric is the
/// metric's, and that scores are the same when asked again, however the examples are split into batches,
/// and where every example is there twice. With `discovery`'s ablation, on examples that have what it
/// needs.
///
/// # Errors
/// Saying what is broken, or that the model is not float64.
pub fn attribution_method(
    method: &dyn AttributionMethod,
    model: &dyn Model,
    metric: &dyn PatchingMetric,
    examples: &[Example],
    discovery: &Discovery,
) -> Result<()> {
    check_float64(model)?;
    let discovery = match method.needs().all_positions {
        true => Discovery { positions: Positions::All, ..discovery.clone() },
        false => discovery.clone(),
    };
    let score = |examples: &[&Example], batch_size: usize| -> Result<Discovered> {
        let scoring = Scoring::new(model, examples, metric, &discovery)?;
        let mut scoring = scoring.with_rules(method.rules());
        let batches: Vec<Vec<&Example>> = examples.chunks(batch_size).map(<[_]>::to_vec).collect();
        for batch in &batches {
            method.add(&mut scoring, &Batch::new(batch.clone(), &model.device())?)?;
        }
        method.finish(scoring, &batches)
    };
    let once: Vec<&Example> = examples.iter().collect();
    let found = score(&once, once.len())?;
    check_scores(&found, model, &discovery)?;
    check_metric(&found, model, metric, &once)?;
    let twice = [&once[..], &once].concat();
    let others = [
        ("asked again", score(&once, once.len())?),
        ("in batches of one", score(&once, 1)?),
        ("where every example is there twice", score(&twice, 3)?),
    ];
    for (how, other) in others {
        let difference = difference(&found, &other);
        if difference > 1e-5 {
            refuse!("{how} the scores are others: they differ by {difference:e} of the largest");
        }
    }
    Ok(())
}

fn check_scores(found: &Discovered, model: &dyn Model, discovery: &Discovery) -> Result<()> {
    found.check()?;
    let graph = model.graph().subset(&discovery.nodes);
    if found.scores.graph != graph {
        refuse!("the scores are of another graph than the one that was asked for");
    }
    let (writers, readers) = (graph.writers().len(), graph.readers().len());
    if found.scores.values.len() != writers * readers {
        refuse!("there are {} scores, not {writers} × {readers}", found.scores.values.len());
    }
    for (writer, reader) in (0..writers).flat_map(|w| (0..readers).map(move |r| (w, r))) {
        let (writer, reader) = (Writer(writer), Reader(reader));
        if !graph.has_edge(writer, reader) && found.scores.of(writer, reader) != 0.0 {
            let names = (graph.writers()[writer.0], graph.readers()[reader.0]);
            refuse!("{} → {} is no edge, but has a score", names.0, names.1);
        }
    }
    Ok(())
}

fn check_metric(
    found: &Discovered,
    model: &dyn Model,
    metric: &dyn PatchingMetric,
    examples: &[&Example],
) -> Result<()> {
    let batch = Batch::new(examples.to_vec(), &model.device())?;
    let readout = model.forward(&Pass::forward_only(), &batch.tokens)?;
    let weight: f64 = examples.iter().map(|example| metric.weight(example)).sum();
    let expected = scalar(&metric.sum(&readout, &batch)?)? / weight;
    if (found.metric - expected).abs() > 1e-9 * (1.0 + expected.abs()) {
        refuse!("its metric is {}, but over the clean examples it is {expected}", found.metric);
    }
    Ok(())
}

/// The largest difference of scores, as a share of the largest score; none where they are all nothing but
/// rounding.
fn difference(a: &Discovered, b: &Discovered) -> f32 {
    let (a, b) = (&a.scores.values, &b.scores.values);
    let largest = a.iter().fold(1e-9f32, |largest, score| largest.max(score.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}
