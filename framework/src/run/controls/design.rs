//! Runs controls: with every seed the circuit, which the run itself has tuned with its own, and every control
//! beside it. Each is a stage of the run: one that is finished isn't repeated when the run goes on.

use std::path::Path;

use candle_core::Tensor;

use super::summary::{ControlsSummary, OfSeed, Repeat};
use crate::Result;
use crate::evaluation::task::Figures;
use crate::files;
use crate::run::Runner;
use crate::run::experiment::Experiment;
use crate::run::folder::RunFolder;
use crate::run::resume::{STATE, Stages};
use crate::tuning::selector::ParamSelector;
use crate::tuning::{CIRCUITS, DiscoveredAt, Matched};

/// What is tuned in a stage, and where it is written down.
struct Stage<'a> {
    name: String,
    folder: &'a RunFolder,
    selector: &'a dyn ParamSelector,
    /// Of a control, the folder of the circuit's own run that it is matched to.
    circuit: Option<&'a RunFolder>,
}

impl Runner<'_> {
    /// Whether anything is tuned beside the circuit with the experiment's own seed.
    pub(in crate::run) fn has_controls(&self) -> bool {
        !self.plugins.controls.is_empty() || self.seeds().len() > 1
    }

    /// The seeds of circuit and controls, the experiment's own first.
    fn seeds(&self) -> Vec<u64> {
        self.experiment.controls.seeds.beside(self.experiment.seed)
    }

    /// Tunes what is to be tuned beside the circuit with the experiment's own seed, whose figures before
    /// and after these are, each from the weights before tuning.
    ///
    /// # Errors
    /// As tuning and evaluations.
    pub(in crate::run) fn controls(
        &self,
        folder: &RunFolder,
        (before, circuit): (&Figures, Repeat),
        weights: &[Tensor],
        stages: &Stages,
    ) -> Result<ControlsSummary> {
        let seeds = self.seeds();
        let mut found = vec![OfSeed {
            before: before.clone(),
            circuit,
            controls: self.matched_controls(folder, folder, weights, stages)?,
        }];
        for &seed in &seeds[1..] {
            let experiment = Experiment { seed, ..self.experiment.clone() };
            let repeat = Runner {
                experiment: &experiment,
                plugins: self.plugins,
                model: self.model,
                tokenizer: self.tokenizer,
                save: self.save,
                report: self.report,
                peers: self.peers,
                data: Default::default(),
            };
            found.push(repeat.of_seed(folder, weights, stages)?);
        }
        let kinds: Vec<&str> = self.plugins.controls.iter().map(|(kind, _)| &kind[..]).collect();
        Ok(ControlsSummary::of(&kinds, seeds, &found, self.model.parameters().count()))
    }

    /// Everything with the seed of this experiment.
    fn of_seed(&self, root: &RunFolder, weights: &[Tensor], stages: &Stages) -> Result<OfSeed> {
        let seed = self.experiment.seed;
        let folder = root.folder(&format!("controls/seed-{seed}/circuit"))?;
        let before = stages.evaluation(&format!("seed {seed}: before"), || {
            let _tuned = self.model.parameters().put_back_on_drop()?;
            self.model.parameters().restore(weights)?;
            self.evaluate(Some(&folder.path("evaluation-before")), None)
        })?;
        let stage = Stage {
            name: format!("seed {seed}: circuit"),
            folder: &folder,
            selector: &*self.plugins.selector,
            circuit: None,
        };
        let circuit = self.repeat(stage, weights, stages)?;
        let controls = self.matched_controls(root, &folder, weights, stages)?;
        Ok(OfSeed { before, circuit, controls })
    }

    /// Every control with the seed of this experiment, matched to the circuit's run in a folder.
    fn matched_controls(
        &self,
        root: &RunFolder,
        circuit: &RunFolder,
        weights: &[Tensor],
        stages: &Stages,
    ) -> Result<Vec<Repeat>> {
        let seed = self.experiment.seed;
        let control = |(kind, selector): &(String, Box<dyn ParamSelector>)| {
            let stage = Stage {
                name: format!("seed {seed}: {kind}"),
                folder: &root.folder(&format!("controls/seed-{seed}/{kind}"))?,
                selector: &**selector,
                circuit: Some(circuit),
            };
            self.repeat(stage, weights, stages)
        };
        self.plugins.controls.iter().map(control).collect()
    }

    /// Tunes from the weights before tuning, evaluates, and puts the weights back.
    fn repeat(&self, stage: Stage, weights: &[Tensor], stages: &Stages) -> Result<Repeat> {
        let Stage { name, folder, selector, circuit } = stage;
        let repeat = stages.once(&name, || {
            let _tuned = self.model.parameters().put_back_on_drop()?;
            self.model.parameters().restore(weights)?;
            let matched = match circuit {
                Some(circuit) => self.matched(selector, circuit)?,
                None => None,
            };
            let examples = self.examples()?;
            let tuned =
                self.tune(folder, selector, matched.as_ref(), examples, Some(weights), stages)?;
            let figures = self.evaluate(Some(&folder.path("evaluation-after")), Some(weights))?;
            let steps = self.experiment.tuning.total_steps(examples.len());
            self.track_end(folder, steps, &figures)?;
            Ok(Repeat {
                figures,
                tuned_parameters: tuned.tuned_parameters,
                seconds: tuned.discovery_seconds + tuned.tuning_seconds,
            })
        })?;
        folder.clear(STATE)?;
        Ok(repeat)
    }

    /// The circuit's own run, for a control that depends on it; none where that run has no circuits.
    fn matched(
        &self,
        control: &dyn ParamSelector,
        folder: &RunFolder,
    ) -> Result<Option<Matched<'_>>> {
        let selector = &*self.plugins.selector;
        if !selector.needs_circuit() || !control.needs_circuit() {
            return Ok(None);
        }
        let Experiment { discovery, tuning, .. } = self.experiment;
        let graph = self.model.graph().subset(&discovery.nodes);
        let circuits = match tuning.fixed_circuit(self.model, &graph)? {
            Some(circuit) => vec![DiscoveredAt { step: 0, edges: circuit.edges, nodes: None }],
            None => circuits(&folder.path(CIRCUITS))?,
        };
        Ok(Some(Matched { selector, circuits }))
    }
}

/// The circuits that a run wrote down; a run without a step has none.
fn circuits(path: &Path) -> Result<Vec<DiscoveredAt>> {
    match path.exists() {
        true => Ok(files::read_jsonl(path)?.into_iter().map(|(_, circuit)| circuit).collect()),
        false => Ok(Vec::new()),
    }
}
