//! One experiment from start to end, and the folder it leaves: configuration, logs, circuits,
//! drawings, summary, tuned model. Files appear whole: each is written under another name first.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::circuit::Circuit;
use crate::discovery::{Discovered, discover};
use crate::drawing;
use crate::evaluation::Evaluation;
use crate::example::Example;
use crate::experiment::{Experiment, Plugins};
use crate::files;
use crate::guard::caught;
use crate::lora::Adapters;
use crate::metric::PatchingMetric;
use crate::model::Model;
use crate::progress::{Progress, Report};
use crate::registry;
use crate::selector::ParamSelector;
use crate::task::{Figures, Setting, Split};
use crate::tokenizer::Tokenizer;
use crate::tuning::{Event, Tuned, Tuner};
use crate::{Error, Result, refuse};

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
}

/// A run's outcome: `summary.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    pub experiment: String,
    /// The task's figures before tuning.
    pub before: Figures,
    /// The same after tuning.
    pub after: Figures,
    /// The same after tuning with the control's selector instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<Figures>,
    /// The task's registered name.
    pub task: String,
    /// The selector's registered name.
    pub selector: String,
    /// The control's selector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_selector: Option<String>,
    pub parameters: usize,
    /// Parameters that any step tuned.
    pub tuned_parameters: usize,
    pub tuned_parameter_ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_tuned_parameter_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_tuned_parameters: Option<usize>,
    pub steps: usize,
    pub discovery_seconds: f64,
    pub tuning_seconds: f64,
    /// The control's discovery and tuning together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_seconds: Option<f64>,
    /// From start to end, evaluations and the control included.
    pub seconds: f64,
}

impl Runner<'_> {
    fn setting(&self) -> Setting<'_> {
        Setting {
            tokenizer: self.tokenizer,
            context: self.model.context(),
            seed: self.experiment.seed,
        }
    }

    /// The task's training examples, checked against the model and the settings.
    ///
    /// # Errors
    /// Naming the first example that doesn't fit.
    pub fn examples(&self) -> Result<Vec<Example>> {
        let Plugins { task, metric, selector, control, measure, .. } = self.plugins;
        let examples = task.examples(Split::Train, &self.setting())?;
        self.check_metric(&examples)?;
        let control_discovers = control.as_ref().is_some_and(|control| control.needs_circuit());
        if selector.needs_circuit() || control_discovers {
            let discovery = &self.experiment.discovery;
            discovery.check(self.model, &examples, &**metric, task.why_no_counterfactual())?;
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
    pub fn prepare(&self) -> Result<Vec<Example>> {
        let Plugins { task, selector, control, evaluate, .. } = self.plugins;
        let Experiment { tuning, pruning, discovery, .. } = self.experiment;
        tuning.check()?;
        pruning.top_n(&self.model.graph().subset(&discovery.nodes))?;
        let examples = self.examples()?;
        for selector in [Some(selector), control.as_ref()].into_iter().flatten() {
            if let Some(lora) = selector.lora() {
                let selection = selector.select(&Circuit::default(), self.model, 0)?;
                Adapters::new(self.model, &selection, lora, 0)?;
            }
        }
        for task in evaluate.iter().map(|(_, task)| task).chain([task]) {
            task.examples(Split::Test, &self.setting())?;
        }
        Ok(examples)
    }

    /// Refuses a metric that can't be computed on the examples, with those that can.
    fn check_metric(&self, examples: &[Example]) -> Result<()> {
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
    fn measured_examples(&self) -> Result<Vec<Example>> {
        let examples = self.plugins.task.examples(Split::Test, &self.setting())?;
        if examples.is_empty() {
            refuse!("there are no test examples to measure metrics on");
        }
        for (name, metric) in &self.plugins.measure {
            for example in &examples {
                metric.check(example).map_err(|error| {
                    Error::input(format!("measuring metric `{name}`: {}: {error}", example.origin))
                })?;
            }
        }
        Ok(examples)
    }

    /// The task's own evaluation, the measuring metrics as `metric.NAME`, and the other tasks'
    /// evaluations as `TASK.FIGURE`. Files that an evaluation leaves go to `folder`; `untuned` are the
    /// parameters before tuning.
    ///
    /// # Errors
    /// As the tasks'.
    pub fn evaluate(&self, folder: Option<&Path>, untuned: Option<&[Tensor]>) -> Result<Figures> {
        let own = Evaluation {
            model: self.model,
            setting: self.setting(),
            batch_size: self.experiment.evaluation_batch_size,
            report: self.report,
            folder,
            untuned,
        };
        let mut figures = self.plugins.task.evaluate(&own)?;
        if !self.plugins.measure.is_empty() {
            let examples = self.measured_examples()?;
            for (name, metric) in &self.plugins.measure {
                figures.insert(format!("metric.{name}"), metric.measure(&own, &examples)?);
            }
        }
        for (name, task) in &self.plugins.evaluate {
            let folder = folder.map(|folder| folder.join(name));
            let others = task.evaluate(&Evaluation { folder: folder.as_deref(), ..own })?;
            figures.extend(others.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
        }
        Ok(figures)
    }

    /// Scores all edges and cuts the circuit.
    ///
    /// # Errors
    /// As [`discover`]'s, and for a top-n larger than the graph.
    pub fn discover(&self, examples: &[Example]) -> Result<(Discovered, Circuit)> {
        let Experiment { discovery, pruning, .. } = self.experiment;
        let count = discovery.examples.unwrap_or(examples.len()).min(examples.len());
        let examples: Vec<&Example> = examples[..count].iter().collect();
        // Before the work, so that a wrong top-n is refused at once.
        let top_n = pruning.top_n(&self.model.graph().subset(&discovery.nodes))?;
        let found = discover(self.model, &examples, &*self.plugins.metric, discovery, self.report)?;
        let circuit = pruning.prune(&found.scores, &found.scores.magnitudes(), top_n);
        Ok((found, circuit))
    }

    /// Everything, into `folder`, which must not exist.
    ///
    /// # Errors
    /// If the experiment doesn't fit the model or a file can't be written. If tuning fails, the model
    /// as it was reached is saved first.
    pub fn run(&self, folder: &Path) -> Result<Summary> {
        let start = Instant::now();
        let tuning = &self.experiment.tuning;
        let examples = self.prepare()?;
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
        self.circuit(&folder, "before", &examples)?;
        let tuned = self.tune(&folder, &*self.plugins.selector, &examples, untuned)?;
        let after = self.evaluate(Some(&folder.path("evaluation-after")), untuned)?;
        (self.save)(&folder.path("model"), self.model)?;
        self.circuit(&folder, "after", &examples)?;
        let mut control = None;
        if let (Some(selector), Some(weights)) = (&self.plugins.control, untuned) {
            self.model.parameters().restore(weights)?;
            let folder = RunFolder::create(&folder.path("control"))?;
            let tuned = self.tune(&folder, &**selector, &examples, untuned)?;
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

    /// Discovers the circuit as the model is now; writes and draws it.
    fn circuit(&self, folder: &RunFolder, when: &str, examples: &[Example]) -> Result<()> {
        if !self.plugins.selector.needs_circuit() {
            return Ok(());
        }
        let graph = self.model.graph().subset(&self.experiment.discovery.nodes);
        let circuit = match (&self.experiment.tuning.circuit, when) {
            (Some(path), "before") => Circuit::load(path, &graph)?,
            _ => self.discover(examples)?.1,
        };
        circuit.save(&folder.path(&format!("circuit-{when}.json")))?;
        let title = format!("{}: circuit {when} tuning", self.experiment.name);
        let drawing = drawing::svg(&circuit, &graph, &title);
        files::write_atomically(&folder.path(&format!("circuit-{when}.svg")), drawing.as_bytes())
    }

    /// Tunes, writing down every step. Adapters are saved and merged into the model.
    fn tune(
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

/// A folder of its own for a run.
struct RunFolder(PathBuf);

impl RunFolder {
    fn create(path: &Path) -> Result<Self> {
        if path.exists() {
            refuse!(
                "{}: exists already; name a new folder, runs are never overwritten",
                path.display()
            );
        }
        std::fs::create_dir_all(path).map_err(Error::io(path))?;
        Ok(Self(path.to_path_buf()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// A JSON Lines file that can be followed as `NAME.part` while it grows and has its name when it is
/// whole. Without a line it doesn't come to be.
struct Lines {
    path: PathBuf,
    part: PathBuf,
    file: Option<BufWriter<File>>,
}

impl Lines {
    fn new(path: PathBuf) -> Self {
        let part = path.with_extension("jsonl.part");
        Self { path, part, file: None }
    }

    fn write(&mut self, value: &impl Serialize) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = File::create(&self.part).map_err(Error::io(&self.part))?;
                self.file.insert(BufWriter::new(file))
            }
        };
        let line = serde_json::to_string(value)
            .map_err(|error| Error::input(format!("{}: {error}", self.path.display())))?;
        (writeln!(file, "{line}").and_then(|()| file.flush())).map_err(Error::io(&self.part))
    }

    fn finish(self) -> Result<()> {
        match self.file {
            Some(_) => std::fs::rename(&self.part, &self.path).map_err(Error::io(&self.path)),
            None => Ok(()),
        }
    }
}

/// The first of `runs/EXPERIMENT-1`, `-2`, … in `parent` that doesn't exist.
pub fn next_folder(parent: &Path, experiment: &str) -> PathBuf {
    let name = |number: usize| parent.join(format!("{experiment}-{number}"));
    let mut number = 1;
    while name(number).exists() {
        number += 1;
    }
    name(number)
}
