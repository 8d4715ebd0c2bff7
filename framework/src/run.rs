//! One experiment from start to end, and the folder it leaves: configuration, logs, circuits,
//! drawings, summary, tuned model. Files appear whole: each is written under another name first.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use crate::circuit::Circuit;
use crate::discovery::{Discovered, discover};
use crate::drawing;
use crate::evaluation::Evaluation;
use crate::example::Example;
use crate::experiment::{Experiment, Plugins};
use crate::files;
use crate::model::Model;
use crate::progress::{Progress, Report};
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
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub experiment: String,
    /// The task's figures before tuning.
    pub before: Figures,
    /// The same after tuning.
    pub after: Figures,
    /// The same after tuning with the control's selector instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<Figures>,
    pub parameters: usize,
    /// Parameters that any step tuned.
    pub tuned_parameters: usize,
    pub tuned_parameter_ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_tuned_parameter_ratio: Option<f64>,
    pub steps: usize,
    pub discovery_seconds: f64,
    pub tuning_seconds: f64,
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
        let Plugins { task, metric, .. } = self.plugins;
        let examples = task.examples(Split::Train, &self.setting())?;
        let discovery = &self.experiment.discovery;
        discovery.check(self.model, &examples, &**metric, task.why_no_counterfactual())?;
        Ok(examples)
    }

    /// The task's own evaluation.
    ///
    /// # Errors
    /// As the task's.
    pub fn evaluate(&self) -> Result<Figures> {
        self.plugins.task.evaluate(&Evaluation {
            model: self.model,
            setting: self.setting(),
            batch_size: self.experiment.evaluation_batch_size,
            report: self.report,
            folder: None,
            untuned: None,
        })
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
    /// If the experiment doesn't fit the model or a file can't be written. If the loss stops being
    /// a number, what was reached is saved first.
    pub fn run(&self, folder: &Path) -> Result<Summary> {
        let Experiment { tuning, pruning, .. } = self.experiment;
        tuning.check()?;
        let examples = self.examples()?;
        let graph = self.model.graph().subset(&self.experiment.discovery.nodes);
        pruning.top_n(&graph)?;
        let config = self.experiment.resolved()?;
        let folder = RunFolder::create(folder)?;
        files::write_atomically(&folder.path("config.toml"), config.as_bytes())?;

        // A second copy of the weights, only where a control starts from it.
        let control_start = match &self.plugins.control {
            Some(selector) => Some((selector, self.model.parameters().snapshot()?)),
            None => None,
        };
        let before = self.evaluate()?;
        self.circuit(&folder, "before", &examples)?;
        let tuned = self.tune(&folder, &*self.plugins.selector, &examples)?;
        let after = self.evaluate()?;
        (self.save)(&folder.path("model"), self.model)?;
        self.circuit(&folder, "after", &examples)?;
        let (mut control, mut control_tuned) = (None, None);
        if let Some((selector, untuned)) = control_start {
            self.model.parameters().restore(&untuned)?;
            let folder = RunFolder::create(&folder.path("control"))?;
            control_tuned = Some(self.tune(&folder, &**selector, &examples)?);
            control = Some(self.evaluate()?);
        }
        let parameters = self.model.parameters().count();
        let count = |tuned: &Tuned| tuned.tuned.count(self.model.parameters());
        let ratio = |tuned: &Tuned| count(tuned) as f64 / parameters as f64;
        let summary = Summary {
            experiment: self.experiment.name.clone(),
            before,
            after,
            control,
            parameters,
            tuned_parameters: count(&tuned),
            tuned_parameter_ratio: ratio(&tuned),
            control_tuned_parameter_ratio: control_tuned.as_ref().map(ratio),
            steps: tuning.total_steps(examples.len()),
            discovery_seconds: tuned.discovery_seconds,
            tuning_seconds: tuned.tuning_seconds,
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

    /// Tunes, writing down every step.
    fn tune(
        &self,
        folder: &RunFolder,
        selector: &dyn ParamSelector,
        examples: &[Example],
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
        let tuned = tuner.run(examples, &mut |event| match event {
            Event::Circuit { step, circuit, graph } => {
                circuits.write(&CircuitLine { step, edges: circuit.indices(graph) })
            }
            Event::Step { step, total } => {
                log.write(step)?;
                (self.report)(Progress {
                    stage: "tune",
                    done: step.step + 1,
                    total,
                    figure: Some(("loss", step.loss)),
                });
                if due(tuning.evaluate_every, step.step) {
                    let figures = self.evaluate()?;
                    evaluations.write(&json!({ "step": step.step, "figures": figures }))?;
                }
                if due(tuning.checkpoint_every, step.step) {
                    let name = format!("checkpoint-{}", step.step + 1);
                    (self.save)(&folder.path(&name), self.model)?;
                }
                Ok(())
            }
        });
        log.finish()?;
        circuits.finish()?;
        evaluations.finish()?;
        if let Err(Error::Diverged { .. }) = &tuned {
            (self.save)(&folder.path("model"), self.model)?;
        }
        tuned
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
