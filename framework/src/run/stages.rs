//! What a run does, stage by stage: evaluation, circuit and analyses before, tuning, the same after, controls. A
//! stage that an earlier try finished isn't repeated.

use serde::{Deserialize, Serialize};

use super::Runner;
use super::controls::Repeat;
use super::experiment::Experiment;
use super::faithfulness::CircuitSummary;
use super::folder::RunFolder;
use super::resume::{STATE, Stages};
use super::summary::{SUMMARY, Summary};
use crate::analysis::Name;
use crate::attribution::Bootstrap;
use crate::data::example::Example;
use crate::evaluation::task::Figures;
use crate::results::circuit_file::CircuitFile;
use crate::results::drawing::Drawing;
use crate::tuning::Tuned;
use crate::{Error, Result, files};

impl Runner<'_> {
    /// Every stage that isn't finished yet.
    pub(super) fn go_on(&self, examples: &[Example], folder: &RunFolder) -> Result<Summary> {
        let stages = Stages::of(&folder.path(STATE), &self.experiment.resolved()?, self.peers)?;
        // A second copy of the weights, only where something starts from it or is compared with it.
        let compared = self.plugins.measure.iter().any(|(_, metric)| metric.needs_untuned());
        let untuned = match compared || self.has_controls() {
            true => Some(self.model.parameters().snapshot()?),
            false => None,
        };
        let untuned = untuned.as_deref();
        let before = stages.evaluation("before", || {
            self.evaluate(Some(&folder.path("evaluation-before")), None)
        })?;
        self.check_shown(&before)?;
        self.track_start(folder, &before)?;
        let circuit_before =
            stages.once("circuit before", || self.circuit(folder, "before", examples))?;
        stages.once("analyses before", || self.analyse(folder, "before"))?;
        stages.once("observed before", || self.observe(folder, "before", None))?;
        let tuned = self.tune(folder, &*self.plugins.selector, None, examples, untuned, &stages)?;
        // Before anything else can fail.
        stages.once("model", || (self.save)(&folder.clear("model")?, self.model))?;
        let after = stages.evaluation("after", || {
            self.evaluate(Some(&folder.path("evaluation-after")), untuned)
        })?;
        self.track_end(folder, self.experiment.tuning.total_steps(examples.len()), &after)?;
        let circuit_after =
            stages.once("circuit after", || self.circuit(folder, "after", examples))?;
        stages.once("analyses after", || self.analyse(folder, "after"))?;
        stages.once("observed after", || self.observe(folder, "after", untuned))?;
        let main = Summary {
            seconds: stages.seconds(),
            faithfulness_before: circuit_before.faithfulness,
            faithfulness_after: circuit_after.faithfulness,
            bootstrap_before: circuit_before.bootstrap,
            bootstrap_after: circuit_after.bootstrap,
            ..self.summary(examples, &before, &after, &tuned)
        };
        // Before controls, which may take long and can fail.
        files::write_json(&folder.path(SUMMARY), &main)?;
        let summary = match untuned {
            Some(weights) if self.has_controls() => {
                let circuit = Repeat {
                    figures: after,
                    tuned_parameters: tuned.tuned_parameters,
                    seconds: tuned.discovery_seconds + tuned.tuning_seconds,
                };
                let controls = self.controls(folder, (&before, circuit), weights, &stages)?;
                let seconds = stages.seconds();
                let summary = Summary { controls: Some(controls), seconds, ..main };
                files::write_json(&folder.path(SUMMARY), &summary)?;
                summary
            }
            _ => main,
        };
        stages.finish()?;
        Ok(summary)
    }

    fn summary(
        &self,
        examples: &[Example],
        before: &Figures,
        after: &Figures,
        tuned: &Tuned,
    ) -> Summary {
        let parameters = self.model.parameters().count();
        let Experiment { name, task, selector, tuning, figures, .. } = self.experiment;
        Summary {
            experiment: name.clone(),
            shown: figures.clone(),
            task: task.name.clone(),
            selector: selector.name.clone(),
            before: before.clone(),
            after: after.clone(),
            faithfulness_before: None,
            faithfulness_after: None,
            bootstrap_before: None,
            bootstrap_after: None,
            parameters,
            tuned_parameters: tuned.tuned_parameters,
            tuned_parameter_ratio: tuned.tuned_parameters as f64 / parameters as f64,
            steps: tuning.total_steps(examples.len()),
            discovery_seconds: tuned.discovery_seconds,
            tuning_seconds: tuned.tuning_seconds,
            seconds: 0.0,
            controls: None,
        }
    }

    /// Discovers the circuit as the model is now; writes and draws it, and evaluates it where
    /// `[faithfulness]` asks for that.
    fn circuit(
        &self,
        folder: &RunFolder,
        when: &str,
        examples: &[Example],
    ) -> Result<CircuitOutcome> {
        let Experiment { discovery, tuning, faithfulness, .. } = self.experiment;
        let is_wanted = faithfulness.is_some() || self.experiment.analyses.contains(&Name::Roles);
        if !self.plugins.selector.needs_circuit() && !is_wanted {
            return Ok(CircuitOutcome::default());
        }
        let graph = self.model.graph().subset(&discovery.nodes);
        let fixed = tuning.fixed_circuit(self.model, &graph)?.filter(|_| when == "before");
        // What a fixed circuit is held against is the ranking by scores.
        let found = match (&fixed, faithfulness) {
            (Some(_), None) => None,
            _ => match self.discover(examples) {
                Ok(found) => Some(found),
                // The tuned model is there to be looked at; the figures say what became of it.
                Err(error @ Error::NotFinite(_)) if when == "after" => {
                    ::log::warn!("there is no circuit after tuning: {error}");
                    return Ok(CircuitOutcome::default());
                }
                Err(error) => return Err(error),
            },
        };
        let (scores, circuit, bootstrap) = match (fixed, found) {
            // Resamples say nothing of a circuit that wasn't cut from these scores.
            (Some(fixed), found) => (found.map(|found| found.scores), fixed, None),
            (None, Some(found)) => {
                (Some(found.scores), found.circuit, found.certainty.map(|c| c.bootstrap))
            }
            (None, None) => return Ok(CircuitOutcome::default()),
        };
        let provenance = self.provenance(examples);
        let title = format!("{}: circuit {when} tuning", self.experiment.name);
        let drawing = Drawing::of(&circuit.edges, &title, &provenance);
        CircuitFile::new(circuit.clone(), provenance, bootstrap)
            .write(&folder.path(&format!("circuit-{when}.json")))?;
        let file = folder.path(&format!("circuit-{when}.svg"));
        files::write_atomically(&file, drawing.svg().as_bytes())?;
        let faithfulness = match (faithfulness, scores) {
            (Some(settings), Some(scores)) => {
                self.judge(settings, &circuit, &scores, folder, when)?
            }
            _ => None,
        };
        Ok(CircuitOutcome { faithfulness, bootstrap })
    }
}

/// What is said of a run's circuit.
#[derive(Default, Serialize, Deserialize)]
struct CircuitOutcome {
    faithfulness: Option<CircuitSummary>,
    bootstrap: Option<Bootstrap>,
}
