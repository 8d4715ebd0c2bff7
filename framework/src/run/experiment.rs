//! An experiment as data: which model, task, metric, selector, and every setting of discovery and
//! tuning. It is read from TOML, changed by `--set`, and written back fully resolved.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::analysis::Name;
use crate::attribution::Discovery;
use crate::data::tokenizer::Bos;
use crate::evaluation::Faithfulness;
use crate::evaluation::metric::{MeasuringMetric, PatchingMetric};
use crate::evaluation::task::Task;
use crate::graph::pruning::Pruning;
use crate::model::{Place, Precision};
use crate::plugin::misfit::Misfit;
use crate::plugin::registry::{self, Kind, Origin, Plugin, Registration};
pub use crate::run::choice::Choice;
use crate::run::controls::Controls;
use crate::run::observed::Observing;
use crate::run::place::place;
use crate::run::tracking::Tracking;
use crate::tuning::Tuning;
use crate::tuning::selector::ParamSelector;
use crate::{Error, Result, refuse};

/// Which model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ModelChoice {
    /// A Hugging Face folder, a model in Hugging Face's local cache by its name, `ORG/NAME`, a GGUF
    /// file, or `embedded`.
    pub path: PathBuf,
    /// Draw the weights with this seed instead of reading them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_init: Option<u64>,
    /// Merge the LoRA adapter in this folder, as PEFT or a run saved it, into the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// What to compute in.
    #[serde(default)]
    pub dtype: Precision,
    /// What to compute on: `cpu`, `cuda`, `cuda:N` or `auto`.
    #[serde(default)]
    pub device: Place,
    /// Whether texts begin with the beginning-of-sequence token. A chat template writes its own.
    #[serde(default)]
    pub bos: Bos,
    /// The architecture's options.
    #[serde(flatten)]
    #[schemars(skip)]
    pub options: toml::Table,
}

impl Default for ModelChoice {
    fn default() -> Self {
        Self {
            path: PathBuf::from("embedded"),
            random_init: None,
            adapter: None,
            dtype: Precision::default(),
            device: Place::default(),
            bos: Bos::default(),
            options: toml::Table::new(),
        }
    }
}

/// The version of the settings' meaning. 2: ablation `mean` is over all tokens; what it was at all
/// positions in 1 is `mean-positional`.
const FORMAT: u32 = 2;

/// An experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Experiment {
    /// The version of these settings' meaning, which every run writes into its config.toml.
    pub format: u32,
    /// What the experiment is called; its run folders are named after it.
    pub name: String,
    /// One line on what it is for, which `list experiments` and `run` show.
    pub description: String,
    /// The seed of everything random: generated data, shuffling, random controls.
    pub seed: u64,
    /// Sequences a forward pass in evaluation.
    pub evaluation_batch_size: usize,
    /// Run-time plugins to load first, as `plugin build` made them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<PathBuf>,
    pub model: ModelChoice,
    /// The task; its options stand beside its name and are what `list tasks` shows.
    pub task: Choice,
    /// The metric that edges are scored by, one of `list metrics`; without it, the task's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Choice>,
    /// Metrics that only measure, each a `name` with its options: taken on the task's test examples
    /// before and after tuning.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub measure: Vec<Choice>,
    /// Other tasks to evaluate on too, each a `name` with its options: what tuning costs elsewhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evaluate: Vec<Choice>,
    /// The figures that a finished run shows, in this order (`right_share`, `ioi.right_share`); without
    /// it, all. `summary.json` has all in any case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub figures: Vec<String>,
    /// What of the circuit is tuned, one of `list selectors`.
    pub selector: Choice,
    /// What is tuned from the same start in the same way, to hold the circuit against, and with how many
    /// seeds.
    pub controls: Controls,
    pub discovery: Discovery,
    pub pruning: Pruning,
    pub tuning: Tuning,
    /// Analyses of the model before and after tuning, which leave their results in folders
    /// `analysis-before` and `analysis-after`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub analyses: Vec<Name>,
    /// How many of the task's test examples, the first ones, analyses look at.
    pub analysis_examples: usize,
    /// How the circuits before and after tuning are evaluated; without it, they aren't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faithfulness: Option<Faithfulness>,
    /// What is looked at before and after tuning for the run's page, report.html.
    pub report: Observing,
    /// What other programs are told as the run goes on.
    pub tracking: Tracking,
}

impl Default for Experiment {
    fn default() -> Self {
        Self {
            format: FORMAT,
            name: "experiment".to_owned(),
            description: String::new(),
            seed: 0,
            evaluation_batch_size: 32,
            plugins: Vec::new(),
            model: ModelChoice::default(),
            task: Choice::named("agreement"),
            metric: None,
            measure: Vec::new(),
            evaluate: Vec::new(),
            figures: Vec::new(),
            selector: Choice::named("nodes"),
            controls: Controls::default(),
            discovery: Discovery::default(),
            pruning: Pruning::default(),
            tuning: Tuning::default(),
            analyses: Vec::new(),
            analysis_examples: 100,
            faithfulness: None,
            report: Observing::default(),
            tracking: Tracking::default(),
        }
    }
}

/// Refuses settings whose meaning was another. What is written by hand need not say its format; what a
/// run of a former version wrote has every setting of discovery, and none.
fn check_format(table: &toml::Table, origin: &str) -> Result<()> {
    let format = table.get("format").map(|format| format.to_string());
    let written = || {
        let all = toml::Table::try_from(Discovery::default()).unwrap_or_default();
        let discovery = table.get("discovery").and_then(toml::Value::as_table);
        // There was no bootstrap then.
        let mut former = all.keys().filter(|&key| key != "bootstrap");
        discovery.is_some_and(|discovery| former.all(|key| discovery.contains_key(key)))
    };
    let format = format.or_else(|| written().then(|| "1".to_owned()));
    match format {
        Some(format) if format != FORMAT.to_string() => refuse!(
            "{origin}: format {format}, but this version reads format {FORMAT}; in format 1 ablation \
             `mean` at positions `all` was what `mean-positional` is now: change it where that is \
             meant, and write format = {FORMAT}"
        ),
        _ => Ok(()),
    }
}

/// Refuses a name that run folders can't be named after: it must not lead out of theirs.
fn check_name(name: &str, origin: &str) -> Result<()> {
    let leads_out = name.contains(['/', '\\']) || name.contains("..") || name == ".";
    if leads_out || name.trim().is_empty() || name.contains(char::is_control) {
        refuse!(
            "{origin}: name = {name:?}: run folders are named after it, so it must have a letter or a digit, \
             and no /, \\, .. or control character"
        );
    }
    Ok(())
}

/// Reads what was called `[control]` once, a single selector, as a list of one kind of control.
fn rename_control(table: &mut toml::Table, origin: &str) -> Result<()> {
    let Some(former) = table.remove("control") else {
        return Ok(());
    };
    let name = former.get("name").and_then(toml::Value::as_str).unwrap_or("random").to_owned();
    if table.contains_key("controls") {
        refuse!(
            "{origin}: [controls] and its former name [control] are both there; write controls.kinds = \
             [\"{name}\"] and leave [control] out"
        );
    }
    log::warn!("{origin}: [control] is now controls.kinds = [\"{name}\"]; it is read as that");
    let kinds = toml::Table::from_iter([("kinds".to_owned(), vec![former].into())]);
    table.insert("controls".to_owned(), kinds.into());
    Ok(())
}

/// An experiment that `run NAME` knows: its configuration as TOML, with a `description`.
///
/// ```
/// use circuit_framework::run::experiment::Registered;
/// use circuit_framework::{inventory, origin};
///
/// inventory::submit! {
///     Registered { name: "mine", toml: "description = 'agreement, all defaults'", origin: origin!() }
/// }
/// assert!(Registered::all()?.iter().any(|experiment| experiment.name == "mine"));
/// # Ok::<(), circuit_framework::Error>(())
/// ```
pub struct Registered {
    pub name: &'static str,
    pub toml: &'static str,
    pub origin: Origin,
}

inventory::collect!(Registered);

impl Registered {
    /// All registered experiments, sorted by name.
    ///
    /// # Errors
    /// If two have one name, naming both crates.
    pub fn all() -> Result<Vec<&'static Registered>> {
        let mut all: Vec<&Registered> = inventory::iter::<Registered>().collect();
        all.sort_by_key(|experiment| (experiment.name, experiment.origin.location));
        registry::refuse_twins(all.iter().map(|experiment| (experiment.name, experiment.origin)))?;
        Ok(all)
    }
}

/// Everything registered: plugins, kind by kind, and experiments.
///
/// # Errors
/// If two of one kind have one name, naming both crates.
pub fn registrations() -> Result<Vec<Registration>> {
    let mut all = registry::registrations()?;
    all.extend(Registered::all()?.into_iter().map(|experiment| Registration {
        kind: "experiment",
        name: experiment.name,
        origin: experiment.origin,
    }));
    Ok(all)
}

/// Plugins by name; of two of one name the second is NAME-2.
fn named<T: Kind + ?Sized>(choices: &[Choice]) -> Result<Vec<(String, Box<T>)>>
where
    Plugin<T>: inventory::Collect,
{
    let names = registry::distinct(choices.iter().map(|choice| &choice.name[..]));
    choices.iter().zip(names).map(|(choice, name)| Ok((name, choice.build::<T>()?))).collect()
}

/// The plugins an experiment is made of.
pub struct Plugins {
    pub task: Box<dyn Task>,
    pub metric: Box<dyn PatchingMetric>,
    /// By name.
    pub measure: Vec<(String, Box<dyn MeasuringMetric>)>,
    /// By name; of two of one name the second is NAME-2.
    pub evaluate: Vec<(String, Box<dyn Task>)>,
    pub selector: Box<dyn ParamSelector>,
    /// By name; of two of one name the second is NAME-2.
    pub controls: Vec<(String, Box<dyn ParamSelector>)>,
}

impl Experiment {
    /// An experiment from a table; `origin` is what messages call it.
    ///
    /// # Errors
    /// If a key is unknown or a value doesn't fit.
    pub fn from_table(mut table: toml::Table, origin: &str) -> Result<Self> {
        check_format(&table, origin)?;
        if table.get("report").is_some_and(|report| !report.is_table()) {
            refuse!(
                "{origin}: `report` is a table of what a run stores for its page; metrics that only measure \
                 are listed under `measure`"
            );
        }
        rename_control(&mut table, origin)?;
        let place = |misfit: &Misfit| place(origin, &misfit.key, &table);
        let experiment: Self = table.clone().try_into().map_err(|error: toml::de::Error| {
            let misfit = Misfit::of(&error.to_string());
            Error::input(format!("{}: {misfit}", place(&misfit)))
        })?;
        check_name(&experiment.name, origin)?;
        if let Some(misfit) = experiment.misfits().first() {
            refuse!("{}: {misfit}", place(misfit));
        }
        Ok(experiment)
    }

    /// Options that don't fit the plugins that are known by now; others are loaded later.
    fn misfits(&self) -> Vec<Misfit> {
        let mut all = self.task.misfits::<dyn Task>("task");
        all.extend(self.selector.misfits::<dyn ParamSelector>("selector"));
        all.extend(self.metric.iter().flat_map(|m| m.misfits::<dyn PatchingMetric>("metric")));
        all
    }

    /// Builds the plugins, refusing unknown names and options.
    ///
    /// # Errors
    /// Naming what is unknown, and the nearest known.
    pub fn plugins(&self) -> Result<Plugins> {
        let task: Box<dyn Task> = self.task.build()?;
        let metric = match &self.metric {
            Some(metric) => metric.build_metric()?,
            None => Choice::named(task.default_metric()).build()?,
        };
        let measure = self
            .measure
            .iter()
            .map(|choice| Ok((choice.name.clone(), choice.build::<dyn MeasuringMetric>()?)));
        if self.evaluation_batch_size == 0 {
            refuse!("evaluation_batch_size must be at least 1");
        }
        self.controls.check()?;
        Ok(Plugins {
            metric,
            measure: measure.collect::<Result<_>>()?,
            evaluate: named(&self.evaluate)?,
            selector: self.selector.build()?,
            controls: named(&self.controls.kinds)?,
            task,
        })
    }

    /// The same experiment with every default spelt out, as TOML.
    ///
    /// # Errors
    /// If a plugin is unknown.
    pub fn resolved(&self) -> Result<String> {
        let task: Box<dyn Task> = self.task.build()?;
        let default_metric = Choice::named(task.default_metric());
        let metric = self.metric.as_ref().unwrap_or(&default_metric);
        let kinds = self.controls.kinds.iter().map(|c| c.resolved::<dyn ParamSelector>());
        let measure = self.measure.iter().map(|c| c.resolved::<dyn MeasuringMetric>());
        let evaluate = self.evaluate.iter().map(|choice| choice.resolved::<dyn Task>());
        let resolved = Self {
            measure: measure.collect::<Result<_>>()?,
            evaluate: evaluate.collect::<Result<_>>()?,
            task: self.task.resolved::<dyn Task>()?,
            metric: Some(metric.resolved::<dyn PatchingMetric>()?),
            selector: self.selector.resolved::<dyn ParamSelector>()?,
            controls: Controls { kinds: kinds.collect::<Result<_>>()?, ..self.controls.clone() },
            ..self.clone()
        };
        toml::to_string(&resolved).map_err(|error| Error::input(format!("{}: {error}", self.name)))
    }
}
