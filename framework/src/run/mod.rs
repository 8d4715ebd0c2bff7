//! One experiment from start to end, and the folder it leaves: configuration, logs, circuits,
//! drawings, summary, tuned model. Files appear whole: each is written under another name first. A run that
//! was ended goes on from the last step that was kept and the stages that were finished.

mod analyses;
mod check;
mod choice;
pub mod controls;
mod discovery;
pub mod experiment;
mod faithfulness;
mod folder;
mod inputs;
mod log;
mod movement;
mod observed;
mod place;
mod relearn;
mod resume;
pub mod settings;
pub mod splits;
mod stages;
mod summary;
pub mod sweep;
mod together;
mod tracking;
mod tune;

use std::path::Path;

use candle_core::Tensor;
pub use controls::Controls;
pub use discovery::Found;
pub use faithfulness::{CircuitSummary, RankingSummary};
pub use inputs::Inputs;
pub use movement::{Movement, movements};
pub use observed::Observing;
pub use relearn::Relearned;
pub use resume::{finished, is_finished, last_kept_step};
pub use summary::{SUMMARY, Summary};
pub use together::check_alike;
pub use tracking::Tracking;

use crate::Result;
use crate::attribution::Ablation;
use crate::data::example::Example;
use crate::data::tokenizer::Tokenizer;
use crate::evaluation::task::{Dataset, Figures, Setting, Split};
use crate::evaluation::{CircuitEvaluation, CircuitInForce, Evaluation};
use crate::graph::circuit::Circuit;
use crate::graph::edge_set::EdgeSet;
use crate::model::Model;
use crate::peers::{self, Peers};
use crate::progress::Report;
use crate::results::provenance::{Geometry, Provenance};
use crate::run::experiment::{Experiment, Plugins};
use crate::run::splits::Data;
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
    /// The processes that share the run's work.
    pub peers: &'a dyn Peers,
    /// What the tasks have loaded so far.
    pub data: Data,
}

impl Runner<'_> {
    fn setting(&self) -> Setting<'_> {
        Setting {
            tokenizer: self.tokenizer,
            context: self.model.context(),
            seed: self.experiment.seed,
            counterfactuals: self.experiment.discovery.needs_counterfactuals(),
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

    /// Evaluates like [`Runner::evaluate`], but with every edge outside the circuit in a file ablated, in the graph of discovery's kinds of nodes,
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
                CircuitInForce::new(
                    self.model,
                    (all, kept),
                    ablation,
                    examples,
                    batch_size,
                    self.peers,
                )
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
            peers: self.peers,
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

    /// The provenance that score and circuit files get: the model, task, metric and settings they were found
    /// with.
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

    /// Everything, into `folder`, which must not exist.
    ///
    /// # Errors
    /// As [`Runner::prepare`]'s and [`Runner::run_prepared`]'s.
    pub fn run(&self, folder: &Path) -> Result<Summary> {
        self.run_prepared(self.prepare()?, folder)
    }

    /// Everything, into the first of `parent/NAME-1`, `NAME-2`, … that isn't there. `begun` is called with
    /// the folder once it is there.
    ///
    /// # Errors
    /// As [`Runner::run`]'s.
    pub fn run_in_next(&self, parent: &Path, begun: impl FnOnce(&Path)) -> Result<Summary> {
        let (examples, config) = (self.prepare()?, self.experiment.resolved()?);
        let inputs = Inputs::of(self.experiment)?;
        self.check_room(examples, parent)?;
        let mut made = None;
        let path = peers::by_the_first(self.peers, || {
            let name = &self.experiment.name;
            let folder = made.insert(RunFolder::create_next(parent, name, &config, &inputs)?);
            Ok(folder.root().display().to_string().into_bytes())
        })?;
        let another = || RunFolder::of_another(Path::new(&*String::from_utf8_lossy(&path)));
        let folder = made.unwrap_or_else(another);
        begun(folder.root());
        self.go_on(examples, &folder)
    }

    /// Everything that comes after [`Runner::prepare`], whose examples these are, into `folder`, which
    /// must not exist. The model is left tuned, not as a control tuned it.
    ///
    /// # Errors
    /// If a file can't be written, or tuning or an evaluation fails. If tuning fails, the model and the
    /// adapters as they were reached are saved first; if an evaluation after tuning fails, the tuned
    /// model.
    pub fn run_prepared(&self, examples: &[Example], folder: &Path) -> Result<Summary> {
        let inputs = Inputs::of(self.experiment)?;
        self.check_room(examples, folder)?;
        let folder = RunFolder::create(folder, &self.experiment.resolved()?, &inputs)?;
        self.go_on(examples, &folder)
    }

    /// Goes on with the run of a folder, whose config.toml the experiment is, from where it was ended. What
    /// it leaves is what it would have left. A finished run is left as it is.
    ///
    /// # Errors
    /// As [`Runner::run_prepared`]'s.
    pub fn resume(&self, folder: &Path) -> Result<Summary> {
        self.resume_prepared(self.prepare()?, folder)
    }

    /// As [`Runner::resume`], after [`Runner::prepare`], whose examples these are.
    ///
    /// # Errors
    /// As [`Runner::run_prepared`]'s.
    pub fn resume_prepared(&self, examples: &[Example], folder: &Path) -> Result<Summary> {
        let folder = RunFolder::open(folder)?;
        if let Some(summary) = finished(folder.root())? {
            return Ok(summary);
        }
        Inputs::of(self.experiment)?.check(folder.root())?;
        self.go_on(examples, &folder)
    }
}
