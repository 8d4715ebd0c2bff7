//! Flags as a table. Each is another way to write `--set KEY=VALUE`: it names the setting of the
//! experiment that it changes, so that flags, `--set` and TOML files can't drift apart.

use anyhow::{Context, Result, bail};
use circuit_framework::experiment::Experiment;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::{Table, Value};

use crate::plugins;

/// A flag that takes a value.
pub(crate) struct Flag {
    name: &'static str,
    /// The setting it changes, dotted.
    key: &'static str,
    value: &'static str,
    help: &'static str,
}

const fn flag(
    name: &'static str,
    key: &'static str,
    value: &'static str,
    help: &'static str,
) -> Flag {
    Flag { name, key, value, help }
}

/// Which model.
pub(crate) const MODEL: &[Flag] = &[
    flag(
        "model",
        "model.path",
        "DIR|FILE.gguf|embedded",
        "The model: a Hugging Face folder, a GGUF file, or the built-in one",
    ),
    flag(
        "random-init",
        "model.random_init",
        "SEED",
        "Draw the weights; the model's folder needs no more than config.json",
    ),
    flag("mlp-head-width", "model.mlp_head_width", "W", "Split each MLP into heads of W neurons"),
    flag("seed", "seed", "N", "The seed of everything random"),
];

/// What to compute in, and on.
pub(crate) const COMPUTING: &[Flag] = &[
    flag(
        "dtype",
        "model.dtype",
        "float32|float64|bfloat16|auto",
        "What to compute in; bfloat16 is float32 with weights kept in bfloat16",
    ),
    flag("device", "model.device", "cpu|cuda[:N]|auto", "What to compute on"),
];

/// Which task.
pub(crate) const TASK: &[Flag] = &[
    flag("task", "task.name", "TASK", "The task; see `list`"),
    flag("data", "task.data", "FILE", "The task's data"),
];

/// How edges are scored and a circuit is cut from them.
pub(crate) const DISCOVERY: &[Flag] = &[
    flag("metric", "metric.name", "METRIC", "What an edge's worth is measured by; see `list`"),
    flag("method", "discovery.method", "eap|eap-ig", "Where the gradient is taken"),
    flag("ig-steps", "discovery.ig_steps", "N", "Inputs that eap-ig averages over"),
    flag(
        "ablation",
        "discovery.ablation",
        "mean|zero|corrupt",
        "What a writer's output is compared with",
    ),
    flag("positions", "discovery.positions", "key|all", "At which positions the graph is read"),
    flag("top-n", "pruning.top_n", "N", "Edges to keep"),
    flag("prune", "pruning.rule", "top_edges|top_nodes", "How edges are ranked"),
];

/// Sequences a forward pass, where nothing is tuned.
pub(crate) const DISCOVERY_BATCH: &[Flag] = &[flag(
    "batch-size",
    "discovery.batch_size",
    "N",
    "Sequences a forward pass; changes no score",
)];

/// How a circuit is tuned.
pub(crate) const TUNING: &[Flag] = &[
    flag("selector", "selector.name", "SELECTOR", "What of the circuit is tuned; see `list`"),
    flag("steps", "tuning.steps", "N", "Update steps"),
    flag("epochs", "tuning.epochs", "N", "Passes over the data, where no steps are given"),
    flag("batch-size", "tuning.batch_size", "N", "Examples a step"),
    flag("micro-batch-size", "tuning.micro_batch_size", "N", "Examples a forward pass"),
    flag("optimizer", "tuning.optimizer", "sgd|adam|adamw", "The update rule"),
    flag("lr", "tuning.lr", "X", "The learning rate"),
    flag("momentum", "tuning.momentum", "X", "Of sgd"),
    flag("beta1", "tuning.beta1", "X", "Of adam and adamw"),
    flag("beta2", "tuning.beta2", "X", "Of adam and adamw"),
    flag("eps", "tuning.eps", "X", "Of adam and adamw"),
    flag("weight-decay", "tuning.weight_decay", "X", "Weight decay"),
    flag("warmup-steps", "tuning.warmup_steps", "N", "Steps of linear warm-up"),
    flag("max-grad-norm", "tuning.max_grad_norm", "X", "Clip the gradients' joint norm to this"),
    flag(
        "objective",
        "tuning.objective",
        "standard|weighted|alone",
        "Which tokens the loss counts, and how much",
    ),
    flag(
        "key-weight-p",
        "tuning.key_weight_p",
        "P",
        "Objective weighted: the key tokens' terms times 1/P",
    ),
    flag(
        "circuit",
        "tuning.circuit",
        "FILE",
        "Tune the circuit in this file instead of discovering one",
    ),
];

/// Adds flags to a command, and `--set`.
pub(crate) fn add(command: Command, tables: &[&[Flag]]) -> Command {
    let value_flag = |flag: &Flag| {
        Arg::new(flag.name)
            .long(flag.name)
            .value_name(flag.value)
            .help(flag.help)
            .allow_negative_numbers(true)
    };
    let set = Arg::new("set")
        .long("set")
        .value_name("KEY=VALUE")
        .action(ArgAction::Append)
        .help("Change any setting, as named in a run's config.toml: --set tuning.lr=1e-4");
    command.args(tables.iter().copied().flatten().map(value_flag)).arg(set)
}

/// Writes what the flags and `--set` say into an experiment's table. Flags go first.
pub(crate) fn apply(
    matches: &ArgMatches,
    tables: &[&[Flag]],
    experiment: &mut Table,
) -> Result<()> {
    for flag in tables.iter().copied().flatten() {
        if let Some(value) = matches.get_one::<String>(flag.name) {
            set(experiment, flag.key, parse(value)).with_context(|| format!("--{}", flag.name))?;
        }
    }
    for path in matches.get_many::<String>("plugins").into_iter().flatten() {
        let plugins = experiment.entry("plugins").or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(plugins) = plugins {
            plugins.push(path.clone().into());
        }
    }
    for assignment in matches.get_many::<String>("set").into_iter().flatten() {
        let Some((key, value)) = assignment.split_once('=') else {
            bail!("--set {assignment}: write it as KEY=VALUE, as in --set tuning.lr=1e-4");
        };
        set(experiment, key.trim(), parse(value.trim()))
            .with_context(|| format!("--set {assignment}"))?;
    }
    Ok(())
}

/// A value as TOML reads it, or else a string.
fn parse(text: &str) -> Value {
    let table: Result<Table, _> = toml::from_str(&format!("value = {text}"));
    match table.ok().and_then(|mut table| table.remove("value")) {
        Some(value) => value,
        None => Value::String(text.to_owned()),
    }
}

/// Puts a value at a dotted key. A plugin named anew starts with its own defaults.
fn set(table: &mut Table, key: &str, value: Value) -> Result<()> {
    let (path, last) = match key.rsplit_once('.') {
        Some((path, last)) => (path.split('.').collect(), last),
        None => (Vec::new(), key),
    };
    let mut at = table;
    for part in path {
        let next = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        at = match next {
            Value::Table(table) => table,
            _ => bail!("`{part}` has no settings of its own"),
        };
    }
    if last == "name" && at.get(last).is_some_and(|name| *name != value) {
        at.clear();
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

/// The experiment that the flags describe, from the defaults up.
pub(crate) fn experiment(matches: &ArgMatches, tables: &[&[Flag]]) -> Result<Experiment> {
    let mut table = Table::new();
    apply(matches, tables, &mut table)?;
    from_table(table, "settings")
}

/// The experiment of a table, missing names of plugins and paths filled in, its run-time plugins
/// loaded.
pub(crate) fn from_table(mut table: Table, origin: &str) -> Result<Experiment> {
    let defaults = Table::try_from(Experiment::default())?;
    for (section, key) in [("model", "path"), ("task", "name"), ("selector", "name")] {
        let given = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        if let (Some(given), Some(default)) = (given.as_table_mut(), defaults[section].get(key)) {
            given.entry(key).or_insert_with(|| default.clone());
        }
    }
    let mut experiment = Experiment::from_table(table, origin)?;
    for path in &mut experiment.plugins {
        plugins::load(path)?;
        // A run folder's config.toml serves from any folder.
        *path = path.canonicalize()?;
    }
    Ok(experiment)
}
