//! The tuning of a run, every step of it written down.

use candle_core::Tensor;
use serde::Serialize;
use serde_json::json;

use super::Runner;
use super::folder::{Lines, RunFolder};
use crate::Result;
use crate::example::Example;
use crate::experiment::Experiment;
use crate::guard::caught;
use crate::progress::Progress;
use crate::selector::ParamSelector;
use crate::tuning::{Event, Tuned, Tuner};

impl Runner<'_> {
    /// Tunes, writing down every step. Adapters are saved and merged into the model.
    pub(super) fn tune(
        &self,
        folder: &RunFolder,
        selector: &dyn ParamSelector,
        examples: &[Example],
        untuned: Option<&[Tensor]>,
    ) -> Result<Tuned> {
        let Experiment { discovery, pruning, tuning, seed, .. } = self.experiment;
        let mut log = Lines::new(folder.path("log.jsonl"));
        let mut circuits = Lines::new(folder.path("circuits.jsonl"));
        let mut evaluations = Lines::new(folder.path("evaluations.jsonl"));
        let due = |every: usize, step: usize| every > 0 && (step + 1).is_multiple_of(every);
        let tuner = Tuner {
            model: self.model,
            metric: &*self.plugins.metric,
            selector,
            discovery,
            pruning,
            tuning,
            seed: *seed,
        };
        let mut on_event = |event: Event| match event {
            Event::Circuit { step, circuit, graph } => {
                circuits.write(&CircuitLine { step, edges: circuit.indices(graph) })
            }
            Event::Step { step, total, adapters } => {
                log.write(step)?;
                (self.report)(Progress {
                    stage: "tune",
                    done: step.step + 1,
                    total,
                    figure: Some(("loss", step.loss)),
                });
                let mut on_the_way = || {
                    if due(tuning.evaluate_every, step.step) {
                        let figures = self.evaluate(None, untuned)?;
                        evaluations.write(&json!({ "step": step.step, "figures": figures }))?;
                    }
                    if due(tuning.checkpoint_every, step.step) {
                        let name = format!("checkpoint-{}", step.step + 1);
                        (self.save)(&folder.path(&name), self.model)?;
                    }
                    Ok(())
                };
                match adapters {
                    Some(adapters)
                        if due(tuning.evaluate_every, step.step)
                            || due(tuning.checkpoint_every, step.step) =>
                    {
                        adapters.while_merged(self.model, on_the_way)
                    }
                    _ => on_the_way(),
                }
            }
        };
        let tuned = caught("tuning", || tuner.run(examples, &mut on_event));
        log.finish()?;
        circuits.finish()?;
        evaluations.finish()?;
        // An update is the last thing in a step, so the model is as the last whole step left it.
        if tuned.is_err() {
            (self.save)(&folder.path("model"), self.model)?;
        }
        let tuned = tuned?;
        if let Some(adapters) = &tuned.adapters {
            adapters.save(&folder.path("adapter"))?;
            adapters.merge(self.model)?;
        }
        Ok(tuned)
    }
}

/// A circuit at a step: a line of `circuits.jsonl`. Edges are [writer, reader] indices of the
/// graph, best first.
#[derive(Serialize)]
struct CircuitLine {
    step: usize,
    edges: Vec<[usize; 2]>,
}
