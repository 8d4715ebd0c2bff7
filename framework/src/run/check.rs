//! Whether an experiment fits: its settings, its examples, the metrics, the adapters. Everything here
//! is asked before the run folder is made.

use std::path::Path;

use super::Runner;
use crate::analysis::Name;
use crate::data::example::Example;
use crate::evaluation::metric::PatchingMetric;
use crate::evaluation::task::{Figures, Split};
use crate::graph::circuit::Circuit;
use crate::lora::Adapters;
use crate::plugin::registry;
use crate::run::experiment::{Experiment, Plugins};
use crate::{Error, Result, files, refuse};

impl Runner<'_> {
    /// Refuses to show figures that no evaluation has.
    pub(super) fn check_shown(&self, evaluated: &Figures) -> Result<()> {
        let mut shown = self.experiment.figures.iter();
        match shown.find(|&name| !evaluated.contains_key(name)) {
            Some(name) => {
                let names: Vec<&str> = evaluated.keys().map(String::as_str).collect();
                refuse!("figures: there is no figure `{name}`; there are {}", names.join(", "))
            }
            None => Ok(()),
        }
    }

    /// The task's training examples, checked against the model and the settings.
    ///
    /// # Errors
    /// Naming the first example that doesn't fit.
    pub fn examples(&self) -> Result<&[Example]> {
        let Plugins { task, metric, selector, controls, measure, .. } = self.plugins;
        let examples = self.split(Split::Train)?.examples();
        self.check_metric(examples)?;
        let control_discovers = controls.iter().any(|(_, control)| control.needs_circuit());
        let judges = self.experiment.faithfulness.is_some()
            || self.experiment.analyses.contains(&Name::Roles);
        if selector.needs_circuit() || control_discovers || judges {
            let discovery = &self.experiment.discovery;
            discovery.check(self.model, examples, &**metric, task.why_no_counterfactual())?;
        } else {
            examples.iter().try_for_each(|example| {
                example.check(self.model.vocabulary(), self.model.context())
            })?;
        }
        if !measure.is_empty() {
            self.measured_examples()?;
        }
        Ok(examples)
    }

    /// The training examples, if the whole run fits: settings and examples, a circuit as large as
    /// asked for, adapters, the evaluations' data. What it costs is loading the data.
    ///
    /// # Errors
    /// Saying what doesn't fit.
    pub fn prepare(&self) -> Result<&[Example]> {
        let Plugins { selector, controls, .. } = self.plugins;
        let Experiment { tuning, pruning, discovery, .. } = self.experiment;
        let graph = self.model.graph().subset(&discovery.nodes);
        tuning.check()?;
        pruning.check(&graph)?;
        if let Some(schedule) = &tuning.top_n_schedule {
            schedule.check(&graph)?;
        }
        tuning.fixed_circuit(self.model, &graph)?;
        self.check_controls()?;
        let examples = self.examples()?;
        tuning.check_batch(examples)?;
        for selector in controls.iter().map(|(_, control)| control).chain([selector]) {
            if let Some(lora) = selector.lora(self.model)? {
                let selection = selector.select(&Circuit::default(), self.model, 0)?;
                Adapters::new(
                    self.model.parameters(),
                    self.model.projections(),
                    &selection,
                    lora,
                    0,
                )?;
            }
        }
        if self.experiment.faithfulness.is_some() {
            self.circuit_evaluation(&discovery.nodes)?;
        }
        self.split(Split::Test)?;
        if !self.experiment.analyses.is_empty() {
            self.check_analyses()?;
        }
        self.data.others(self.plugins, &self.setting())?;
        Ok(examples)
    }

    /// Refuses to begin where there is no room for the models that the run saves: the tuned one, and the
    /// checkpoints of the circuit's run, the other seeds' and the controls'. What else a run leaves is small
    /// beside them.
    pub(super) fn check_room(&self, examples: &[Example], folder: &Path) -> Result<()> {
        let tuning = &self.experiment.tuning;
        let steps = tuning.total_steps(examples.len());
        let checkpoints = steps.checked_div(tuning.checkpoint_every).unwrap_or(0) as u64;
        let seeds = self.experiment.controls.seeds.beside(self.experiment.seed).len();
        let tunings = (seeds * (1 + self.plugins.controls.len())) as u64;
        let models = checkpoints.saturating_mul(tunings).saturating_add(1);
        // Saved as float32.
        let bytes = (self.model.parameters().count() as u64).saturating_mul(4);
        let what = format!("a run that saves {models} models of {} parameters", bytes / 4);
        files::check_room(folder, models.saturating_mul(bytes), &what)
    }

    /// Refuses a selector that is a control only, and controls that need what the circuit's run hasn't.
    fn check_controls(&self) -> Result<()> {
        let Plugins { selector, controls, .. } = self.plugins;
        let Experiment { selector: own, tuning, .. } = self.experiment;
        if selector.is_control() {
            refuse!("selector `{0}` is a control; write controls.kinds = [\"{0}\"]", own.name);
        }
        let scored = selector.needs_circuit() && tuning.circuit.is_none();
        match controls.iter().find(|(_, control)| control.needs_node_scores() && !scored) {
            Some((kind, _)) => refuse!(
                "control `{kind}` needs the scores of all nodes, but nothing is discovered for selector \
                 `{}`{}; leave it out",
                own.name,
                if tuning.circuit.is_some() { " with tuning.circuit" } else { "" }
            ),
            None => Ok(()),
        }
    }

    /// Refuses a metric that can't be computed on the examples, with those that can.
    pub(super) fn check_metric(&self, examples: &[Example]) -> Result<()> {
        let misfit = |metric: &dyn PatchingMetric| {
            examples.iter().find_map(|example| Some((example, metric.check(example).err()?)))
        };
        let Some((example, error)) = misfit(&*self.plugins.metric) else {
            return Ok(());
        };
        let mut fitting = Vec::new();
        for plugin in registry::all::<dyn PatchingMetric>()? {
            if misfit(&*plugin.build(&toml::Table::new())?).is_none() {
                fitting.push(plugin.name);
            }
        }
        let Experiment { task, metric, .. } = self.experiment;
        let metric =
            metric.as_ref().map_or(self.plugins.task.default_metric(), |metric| &metric.name);
        refuse!(
            "metric `{metric}` doesn't fit task `{}`: {}: {error}; those that fit: {}",
            task.name,
            example.origin,
            fitting.join(", ")
        )
    }

    /// The test examples, if every measuring metric can be computed on them.
    pub(super) fn measured_examples(&self) -> Result<&[Example]> {
        let examples = self.split(Split::Test)?.examples();
        if examples.is_empty() {
            refuse!("there are no test examples to measure metrics on");
        }
        for (name, metric) in &self.plugins.measure {
            for example in examples {
                metric.check(example).map_err(|error| {
                    Error::input(format!("measuring metric `{name}`: {}: {error}", example.origin))
                })?;
            }
        }
        Ok(examples)
    }
}
