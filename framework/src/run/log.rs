//! What a run writes down while it tunes: a line a step in `log.jsonl`, a line a circuit in
//! `circuits.jsonl`, and on the way evaluations in `evaluations.jsonl` and checkpoints.

use std::sync::Arc;

use candle_core::Tensor;
use serde::Serialize;
use serde_json::json;

use super::Runner;
use super::folder::{Lines, RunFolder};
use crate::Result;
use crate::evaluation::figures::InJson;
use crate::graph::circuit::Edge;
use crate::lora::Adapters;
use crate::progress::Progress;
use crate::tuning::{Event, Step};

/// The files of a tuning under way. Call [`RunLog::event`] for everything that happens, then
/// [`RunLog::finish`].
pub(super) struct RunLog<'a> {
    runner: &'a Runner<'a>,
    folder: &'a RunFolder,
    /// The parameters before tuning, for the evaluations on the way.
    untuned: Option<&'a [Tensor]>,
    steps: Lines,
    circuits: Lines,
    evaluations: Lines,
    /// The adapters that are trained, if any are; they follow every step.
    adapters: Option<Arc<Adapters>>,
}

/// A circuit at a step: a line of `circuits.jsonl`.
#[derive(Serialize)]
struct CircuitLine<'c> {
    step: usize,
    /// Best first, each by its nodes' names and with its score, as in circuit files.
    edges: &'c [Edge],
}

impl<'a> RunLog<'a> {
    pub(super) fn new(
        runner: &'a Runner<'a>,
        folder: &'a RunFolder,
        untuned: Option<&'a [Tensor]>,
    ) -> Self {
        let lines = |name: &str| Lines::new(folder.path(name));
        Self {
            runner,
            folder,
            untuned,
            steps: lines("log.jsonl"),
            circuits: lines("circuits.jsonl"),
            evaluations: lines("evaluations.jsonl"),
            adapters: None,
        }
    }

    /// Takes note of what happened.
    ///
    /// # Errors
    /// If a file can't be written, and as the evaluation on the way.
    pub(super) fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Adapters { adapters } => {
                self.adapters = Some(adapters.clone());
                Ok(())
            }
            Event::Circuit { step, circuit } => {
                self.circuits.write(&CircuitLine { step, edges: &circuit.edges })
            }
            Event::Step { step, total } => self.step(step, total),
        }
    }

    /// The adapters that were trained so far.
    pub(super) fn adapters(&self) -> Option<&Adapters> {
        self.adapters.as_deref()
    }

    /// Gives the files their names.
    ///
    /// # Errors
    /// If a file can't be renamed.
    pub(super) fn finish(self) -> Result<()> {
        self.steps.finish()?;
        self.circuits.finish()?;
        self.evaluations.finish()
    }

    fn step(&mut self, step: &Step, total: usize) -> Result<()> {
        self.steps.write(step)?;
        (self.runner.report)(Progress {
            stage: "tune",
            done: step.step + 1,
            total,
            figure: Some(("loss", step.loss)),
        });
        let tuning = &self.runner.experiment.tuning;
        let due = |every: usize| every > 0 && (step.step + 1).is_multiple_of(every);
        let (evaluates, saves) = (due(tuning.evaluate_every), due(tuning.checkpoint_every));
        if !evaluates && !saves {
            return Ok(());
        }
        match self.adapters.clone() {
            Some(adapters) => adapters
                .while_merged(self.runner.model, || self.on_the_way(step.step, evaluates, saves)),
            None => self.on_the_way(step.step, evaluates, saves),
        }
    }

    /// Evaluates and saves the model as it is after a step.
    fn on_the_way(&mut self, step: usize, evaluates: bool, saves: bool) -> Result<()> {
        if evaluates {
            let figures = self.runner.evaluate(None, self.untuned)?;
            self.evaluations.write(&json!({ "step": step, "figures": InJson(&figures) }))?;
        }
        if saves {
            let name = format!("checkpoint-{}", step + 1);
            (self.runner.save)(&self.folder.path(&name), self.runner.model)?;
        }
        Ok(())
    }
}
