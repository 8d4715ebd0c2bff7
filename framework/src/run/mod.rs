//! One experiment from start to end, and the folder it leaves: configuration, logs, circuits,
//! drawings, summary, tuned model. Files appear whole: each is written under another name first.

mod check;
pub mod experiment;
mod faithfulness;
mod folder;
mod log;
pub mod matrix;
pub mod provenance;
pub mod settings;
pub mod splits;
mod summary;
mod tune;

use std::path::Path;
use std::time::Instant;

use candle_core::Tensor;

pub use faithfulness::CircuitSummary;
pub use folder::next_folder;
pub use summary::Summary;

use crate::attribution::{Ablation, Discovered, discover};
use crate::data::example::Example;
use crate::data::tokenizer::Tokenizer;
use crate::evaluation::task::{Dataset, Figures, Setting, Split};
use crate::evaluation::{CircuitEvaluation, CircuitInForce, Evaluation};
use crate::files;
use crate::graph::circuit::Circuit;
use crate::graph::drawing::Drawing;
use crate::graph::edge_set::EdgeSet;
use crate::model::Model;
use crate::progress::Report;
use crate::run::experiment::{Experiment, Plugins};
use crate::run::provenance::{Geometry, Provenance};
use crate::run::splits::Data;
use crate::tuning::Tuned;
use crate::{Error, Result};
use folder::RunFolder;

/// Saves a model to a folder that doesn't exist yet; the file formats are not the framework's.
pub type Save<'a> = dyn Fn(&Path, &dyn Model) -> Result<()> + 'a;

/// What a run works with.
pub struct Runner<'a> {
    pub experiment: &'a Experiment,
    pub plugins: &'a Plugins,
    pub model: &'a dyn Model,
    pub tokenizer: Option<&'a Tokenizer>,
    pub save: &'a Save<'a>,
    pub report: &'a Report<'a>,
    /// What the tasks have loaded so far.
    pub data: Data,
}

impl Runner<'_> {
    fn setting(&self) -> Setting<'_> {
        Setting {
            tokenizer: self.tokenizer,
            context: self.model.context(),
            seed: self.experiment.seed,
        }
    }

    fn split(&self, split: Split) -> Result<&dyn Dataset> {
        self.data.split(split, self.plugins, &self.setting())
    }

    /// The task's own evaluation, the measuring metrics as `metric.NAME`, and the other tasks'
    /// evaluations as `TASK.FIGURE`. Files that an evaluation leaves go to `folder`; `untuned` are the
    /// parameters before tuning.
    ///
    /// # Errors
    /// As the tasks'.
    pub fn evaluate(&self, folder: Option<&Path>, untuned: Option<&[Tensor]>) -> Result<Figures> {
        self.figures(folder, untuned, None)
    }

    /// The same with the circuit in a file alone in force, in the graph of discovery's kinds of nodes,
    /// without its dead ends. Means are taken over each task's own test examples.
    ///
    /// # Errors
    /// As the tasks', and if the circuit isn't this model's.
    pub fn evaluate_circuit(&self, folder: Option<&Path>, file: &Path) -> Result<Figures> {
        let Experiment { discovery, faithfulness, .. } = self.experiment;
        let graph = self.model.graph();
        let circuit = Circuit::load(file, self.model, &graph.subset(&discovery.nodes))?;
        let all = CircuitEvaluation::graph(self.model, &discovery.nodes)?;
        let circuit = EdgeSet::of(graph, circuit.indices(graph)?);
        let kept = circuit.without_dead_ends(graph, &all);
        let ablation = faithfulness.as_ref().and_then(|settings| settings.ablation);
        self.figures(folder, None, Some((&all, &kept, ablation.unwrap_or(discovery.ablation))))
    }

    /// The figures of the whole model, or of a circuit of a graph under an ablation.
    fn figures(
        &self,
        folder: Option<&Path>,
        untuned: Option<&[Tensor]>,
        circuit: Option<(&EdgeSet, &EdgeSet, Ablation)>,
    ) -> Result<Figures> {
        let batch_size = self.experiment.evaluation_batch_size;
        let in_force = |dataset: &dyn Dataset| {
            let of = |(all, kept, ablation)| {
                let examples = dataset.examples();
                CircuitInForce::new(self.model, (all, kept), ablation, examples, batch_size)
            };
            circuit.map(of).transpose()
        };
        let test = self.split(Split::Test)?;
        let alone = in_force(test)?;
        let own = Evaluation {
            model: self.model,
            setting: self.setting(),
            batch_size,
            report: self.report,
            folder,
            untuned,
            circuit: alone.as_ref(),
        };
        let mut figures = test.evaluate(&own)?;
        if !self.plugins.measure.is_empty() {
            let examples = self.measured_examples()?;
            for (name, metric) in &self.plugins.measure {
                figures.insert(format!("metric.{name}"), metric.measure(&own, examples)?);
            }
        }
        let others = self.data.others(self.plugins, &self.setting())?;
        for ((name, _), dataset) in self.plugins.evaluate.iter().zip(others) {
            let folder = folder.map(|folder| folder.join(name));
            let alone = in_force(&**dataset)?;
            let evaluation =
                Evaluation { folder: folder.as_deref(), circuit: alone.as_ref(), ..own };
            let others = dataset.evaluate(&evaluation)?;
            figures.extend(others.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
        }
        Ok(figures)
    }

    /// What scores and circuits found on some of these examples are of.
    pub fn provenance(&self, examples: &[Example]) -> Provenance {
        let Experiment { model, task, metric, discovery, seed, .. } = self.experiment;
        let default = || self.plugins.task.default_metric().to_owned();
        Provenance {
            model: Geometry::of(self.model),
            model_path: model.path.display().to_string(),
            bos: self.tokenizer.and_then(Tokenizer::prefix_text),
            task: task.name.clone(),
            metric: metric.as_ref().map_or_else(default, |metric| metric.name.clone()),
            method: discovery.method.name.clone(),
            ablation: discovery.ablation,
            positions: discovery.positions,
            nodes: discovery.nodes.clone(),
            seed: *seed,
            examples: discovery.examples.unwrap_or(examples.len()).min(examples.len()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Scores all edges and cuts the circuit.
    ///
    /// # Errors
    /// As [`discover`]'s, if the pruning's settings don't fit the graph, and if the metric or a score
    /// isn't a finite number.
    pub fn discover(&self, examples: &[Example]) -> Result<(Discovered, Circuit)> {
        let Experiment { discovery, pruning, .. } = self.experiment;
        let count = discovery.examples.unwrap_or(examples.len()).min(examples.len());
        let examples: Vec<&Example> = examples[..count].iter().collect();
        // Before the work, so that a wrong setting is refused at once.
        let graph = self.model.graph().subset(&discovery.nodes);
        pruning.check(&graph)?;
        let top_n = pruning.top_n(&graph)?;
        let found = discover(self.model, &examples, &*self.plugins.metric, discovery, self.report)?;
        found.check()?;
        let circuit = pruning.prune(&found.scores, &found.scores.magnitudes(), top_n);
        Ok((found, circuit))
    }

    /// Everything, into `folder`, which must not exist.
    ///
    /// # Errors
    /// As [`Runner::prepare`]'s and [`Runner::run_prepared`]'s.
    pub fn run(&self, folder: &Path) -> Result<Summary> {
        self.run_prepared(self.prepare()?, folder)
    }

    /// Everything that comes after [`Runner::prepare`], whose examples these are, into `folder`, which
    /// must not exist. The model is left tuned, not as the control tuned it.
    ///
    /// # Errors
    /// If a file can't be written, or tuning or an evaluation fails. If tuning fails, the model and the
    /// adapters as they were reached are saved first; if an evaluation after tuning fails, the tuned
    /// model.
    pub fn run_prepared(&self, examples: &[Example], folder: &Path) -> Result<Summary> {
        let start = Instant::now();
        let tuning = &self.experiment.tuning;
        let config = self.experiment.resolved()?;
        let folder = RunFolder::create(folder)?;
        files::write_atomically(&folder.path("config.toml"), config.as_bytes())?;

        // A second copy of the weights, only where something starts from it or is compared with it.
        let compared = self.plugins.measure.iter().any(|(_, metric)| metric.needs_untuned());
        let untuned = match compared || self.plugins.control.is_some() {
            true => Some(self.model.parameters().snapshot()?),
            false => None,
        };
        let untuned = untuned.as_deref();
        let before = self.evaluate(Some(&folder.path("evaluation-before")), None)?;
        let faithfulness_before = self.circuit(&folder, "before", examples)?;
        let tuned = self.tune(&folder, &*self.plugins.selector, examples, untuned)?;
        // Before anything else can fail.
        (self.save)(&folder.path("model"), self.model)?;
        let after = self.evaluate(Some(&folder.path("evaluation-after")), untuned)?;
        let faithfulness_after = self.circuit(&folder, "after", examples)?;
        let mut control = None;
        if let (Some(selector), Some(weights)) = (&self.plugins.control, untuned) {
            let _tuned = self.model.parameters().put_back_on_drop()?;
            self.model.parameters().restore(weights)?;
            let folder = RunFolder::create(&folder.path("control"))?;
            let tuned = self.tune(&folder, &**selector, examples, untuned)?;
            let figures = self.evaluate(Some(&folder.path("evaluation-after")), untuned)?;
            control = Some((tuned, figures));
        }
        let parameters = self.model.parameters().count();
        let ratio = |tuned: &Tuned| tuned.tuned_parameters as f64 / parameters as f64;
        let seconds = |tuned: &Tuned| tuned.discovery_seconds + tuned.tuning_seconds;
        let control_tuned = control.as_ref().map(|(tuned, _)| tuned);
        let summary = Summary {
            experiment: self.experiment.name.clone(),
            task: self.experiment.task.name.clone(),
            selector: self.experiment.selector.name.clone(),
            control_selector: self.experiment.control.as_ref().map(|choice| choice.name.clone()),
            before,
            after,
            faithfulness_before,
            faithfulness_after,
            parameters,
            tuned_parameters: tuned.tuned_parameters,
            tuned_parameter_ratio: ratio(&tuned),
            control_tuned_parameters: control_tuned.map(|tuned| tuned.tuned_parameters),
            control_tuned_parameter_ratio: control_tuned.map(ratio),
            steps: tuning.total_steps(examples.len()),
            discovery_seconds: tuned.discovery_seconds,
            tuning_seconds: tuned.tuning_seconds,
            control_seconds: control_tuned.map(seconds),
            seconds: start.elapsed().as_secs_f64(),
            control: control.map(|(_, figures)| figures),
        };
        files::write_json(&folder.path("summary.json"), &summary)?;
        Ok(summary)
    }

    /// Discovers the circuit as the model is now; writes and draws it, and evaluates it where
    /// `[faithfulness]` asks for that.
    fn circuit(
        &self,
        folder: &RunFolder,
        when: &str,
        examples: &[Example],
    ) -> Result<Option<CircuitSummary>> {
        let Experiment { discovery, tuning, faithfulness, .. } = self.experiment;
        if !self.plugins.selector.needs_circuit() && faithfulness.is_none() {
            return Ok(None);
        }
        let graph = self.model.graph().subset(&discovery.nodes);
        let fixed = tuning.fixed_circuit(self.model, &graph)?.filter(|_| when == "before");
        // What a fixed circuit is held against is the ranking by scores.
        let found = match (&fixed, faithfulness) {
            (Some(_), None) => None,
            _ => match self.discover(examples) {
                Ok((found, circuit)) => Some((found.scores, circuit)),
                // The tuned model is there to be looked at; the figures say what became of it.
                Err(error @ Error::NotFinite(_)) if when == "after" => {
                    ::log::warn!("there is no circuit after tuning: {error}");
                    return Ok(None);
                }
                Err(error) => return Err(error),
            },
        };
        let (scores, found) = found.unzip();
        let Some(circuit) = fixed.or(found) else {
            return Ok(None);
        };
        let file = folder.path(&format!("circuit-{when}.json"));
        let provenance = self.provenance(examples);
        circuit.save(&file, &provenance)?;
        let title = format!("{}: circuit {when} tuning", self.experiment.name);
        let drawing = Drawing::of(&circuit.edges, &title, &provenance);
        let file = folder.path(&format!("circuit-{when}.svg"));
        files::write_atomically(&file, drawing.svg().as_bytes())?;
        match (faithfulness, scores) {
            (Some(settings), Some(scores)) => self.judge(settings, &circuit, &scores, folder, when),
            _ => Ok(None),
        }
    }
}
