//! What a run writes down while it tunes: a line a step in `log.jsonl`, a line a circuit in
//! `circuits.jsonl`, and on the way evaluations in `evaluations.jsonl` and checkpoints.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Tensor;
use serde_json::json;

use super::Runner;
use super::folder::{Lines, RunFolder};
use super::resume::{Checkpoints, STATE, Stages};
use super::tracking::Events;
use crate::Result;
use crate::evaluation::figures::InJson;
use crate::lora::Adapters;
use crate::progress::{self, Progress};
use crate::tuning::{CIRCUITS, DiscoveredAt, Event, State, Step};

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
    /// What TensorBoard shows, where it is asked for.
    events: Option<Events>,
    checkpoints: Checkpoints,
    /// Whose seconds are kept with every state.
    stages: &'a Stages<'a>,
    /// The adapters that are trained, if any are; they follow every step.
    adapters: Option<Arc<Adapters>>,
}

impl<'a> RunLog<'a> {
    /// The files of a tuning in a folder.
    ///
    /// # Errors
    /// If the event file that is there can't be read.
    pub(super) fn new(
        runner: &'a Runner<'a>,
        folder: &'a RunFolder,
        untuned: Option<&'a [Tensor]>,
        stages: &'a Stages<'a>,
    ) -> Result<Self> {
        let lines = |name: &str| Lines::new(folder.path(name));
        let states = folder.path(STATE);
        Ok(Self {
            runner,
            folder,
            untuned,
            checkpoints: Checkpoints::new(states, &runner.experiment.tuning),
            steps: lines("log.jsonl"),
            circuits: lines(CIRCUITS),
            evaluations: lines("evaluations.jsonl"),
            events: runner.events(folder)?,
            stages,
            adapters: None,
        })
    }

    /// The state to go on from, where an earlier try left one. The logs then go on from its step.
    ///
    /// # Errors
    /// If a file can't be read or written.
    pub(super) fn resume(&mut self) -> Result<Option<PathBuf>> {
        let newest = self.checkpoints.newest()?;
        let steps = newest.as_ref().map_or(0, |(steps, _)| *steps);
        for lines in [&mut self.steps, &mut self.circuits, &mut self.evaluations] {
            lines.resume(steps)?;
        }
        if let Some(events) = &mut self.events {
            events.resume(steps)?;
        }
        Ok(newest.map(|(_, path)| path))
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
            Event::Circuit { step, circuit, nodes } => {
                let controls = &self.runner.plugins.controls;
                let needed = controls.iter().any(|(_, control)| control.needs_node_scores());
                self.circuits.write(&DiscoveredAt {
                    step,
                    edges: circuit.edges.clone(),
                    nodes: needed.then(|| nodes.clone()),
                })
            }
            Event::Step { step, total, state } => self.step(step, total, state),
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

    fn step(&mut self, step: &Step, total: usize, state: &State) -> Result<()> {
        self.steps.write(step)?;
        if let Some(events) = &mut self.events {
            events.step(step)?;
        }
        let made = step.step + 1;
        (self.runner.report)(Progress {
            stage: "tune",
            done: made,
            total,
            figure: Some(("loss", step.loss)),
        });
        let tuning = &self.runner.experiment.tuning;
        let due = |every: usize| every > 0 && made.is_multiple_of(every);
        let (evaluates, saves) = (due(tuning.evaluate_every), due(tuning.checkpoint_every));
        if evaluates || saves {
            // To its end, also where a stop was asked for: the state after the step has this behind it.
            let whole = progress::hold_stop();
            match self.adapters.clone() {
                Some(adapters) => adapters.while_merged(self.runner.model.parameters(), || {
                    self.on_the_way(step.step, evaluates, saves)
                })?,
                None => self.on_the_way(step.step, evaluates, saves)?,
            }
            drop(whole);
        }
        let stops = progress::check_stop();
        if made == total || stops.is_err() || self.checkpoints.due(made) {
            for lines in [&self.steps, &self.circuits, &self.evaluations] {
                lines.sync()?;
            }
            if let Some(events) = &self.events {
                events.sync()?;
            }
            self.checkpoints.write(state, self.runner.model, made < total)?;
            self.stages.keep()?;
        }
        stops
    }

    /// Evaluates and saves the model as it is after a step.
    fn on_the_way(&mut self, step: usize, evaluates: bool, saves: bool) -> Result<()> {
        if evaluates {
            let figures = self.runner.evaluate(None, self.untuned)?;
            self.evaluations.write(&json!({ "step": step, "figures": InJson(&figures) }))?;
            if let Some(events) = &mut self.events {
                events.figures(step + 1, &figures)?;
            }
        }
        if saves {
            let name = format!("checkpoint-{}", step + 1);
            (self.runner.save)(&self.folder.clear(&name)?, self.runner.model)?;
        }
        Ok(())
    }
}
