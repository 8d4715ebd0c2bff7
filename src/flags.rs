//! Flags as a table. Each is another way to write `--set KEY=VALUE`: it names the setting of the
//! experiment that it changes, so that flags, `--set` and TOML files can't drift apart.

use anyhow::{Context, Result, bail};
use circuit_framework::plugin::description::Description;
use circuit_framework::run::experiment::Experiment;
use circuit_framework::run::settings;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::{Table, Value};

use crate::plugins;

/// A flag that takes a value.
pub(crate) struct Flag {
    name: &'static str,
    /// The setting it changes, dotted.
    key: &'static str,
    /// What help calls the value.
    value: &'static str,
    reading: Reading,
    /// What help says; the setting's own description where this is empty.
    help: &'static str,
}

/// How a flag's value is read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reading {
    /// As TOML reads it, or else as text.
    Toml,
    /// A path or a name, whatever TOML would make of it.
    Text,
    /// Names or numbers with commas between.
    List,
}

const fn flag(name: &'static str, key: &'static str, value: &'static str) -> Flag {
    Flag { name, key, value, reading: Reading::Toml, help: "" }
}

const fn text(name: &'static str, key: &'static str, value: &'static str) -> Flag {
    Flag { name, key, value, reading: Reading::Text, help: "" }
}

/// Which model.
pub(crate) const MODEL: &[Flag] = &[
    text("model", "model.path", "MODEL"),
    flag("random-init", "model.random_init", "SEED"),
    Flag {
        help: "Split each MLP into heads of this many neurons; without it an MLP is one node.",
        ..flag("mlp-head-width", "model.mlp_head_width", "W")
    },
    flag("seed", "seed", "N"),
];

/// What to compute in, and on.
pub(crate) const COMPUTING: &[Flag] =
    &[flag("dtype", "model.dtype", "TYPE"), text("device", "model.device", "cpu|cuda[:N]|auto")];

/// Which task.
pub(crate) const TASK: &[Flag] = &[
    text("task", "task.name", "TASK"),
    Flag { help: "The task's data.", ..text("data", "task.data", "FILE") },
];

/// How edges are scored and a circuit is cut from them.
pub(crate) const DISCOVERY: &[Flag] = &[
    text("metric", "metric.name", "METRIC"),
    Flag {
        help: "The attribution method: its name, or with options a table, {name=\"relp\",attention=\"gradient\"}.",
        ..flag("method", "discovery.method", "METHOD")
    },
    flag("ig-steps", "discovery.ig_steps", "N"),
    flag("ablation", "discovery.ablation", "ABLATION"),
    flag("positions", "discovery.positions", "POSITIONS"),
    Flag { reading: Reading::List, ..flag("nodes", "discovery.nodes", "KIND,…") },
    flag("top-n", "pruning.top_n", "N"),
    flag("prune", "pruning.rule", "RULE"),
];

/// How sure scores and circuit are.
pub(crate) const BOOTSTRAP: &[Flag] = &[flag("bootstrap", "discovery.bootstrap", "N")];

/// Sequences a forward pass, where nothing is tuned.
pub(crate) const DISCOVERY_BATCH: &[Flag] = &[flag("batch-size", "discovery.batch_size", "N")];

/// What edges outside a circuit read.
pub(crate) const ABLATION: &[Flag] = &[Flag {
    help: "What is read along the edges outside a circuit, at all positions.",
    ..flag("ablation", "faithfulness.ablation", "ABLATION")
}];

/// How circuits are evaluated, beside the ablation.
pub(crate) const FAITHFULNESS: &[Flag] = &[
    text("metric", "metric.name", "METRIC"),
    Flag {
        reading: Reading::List,
        help: "The kinds of nodes in the graph; without it, those that the scores or the circuit were \
               found with.",
        ..flag("nodes", "discovery.nodes", "KIND,…")
    },
    flag("ranking", "faithfulness.ranking", "RANKING"),
    Flag { reading: Reading::List, ..flag("fractions", "faithfulness.fractions", "X,…") },
    flag("batch-size", "evaluation_batch_size", "N"),
];

/// How nodes are analysed.
pub(crate) const ANALYSIS: &[Flag] = &[
    text("metric", "metric.name", "METRIC"),
    flag("examples", "analysis_examples", "N"),
    flag("batch-size", "evaluation_batch_size", "N"),
];

/// How a circuit is tuned.
pub(crate) const TUNING: &[Flag] = &[
    text("selector", "selector.name", "SELECTOR"),
    flag("steps", "tuning.steps", "N"),
    flag("epochs", "tuning.epochs", "N"),
    flag("batch-size", "tuning.batch_size", "N"),
    flag("micro-batch-size", "tuning.micro_batch_size", "N"),
    flag("optimizer", "tuning.optimizer", "OPTIMIZER"),
    flag("lr", "tuning.lr", "X"),
    flag("momentum", "tuning.momentum", "X"),
    flag("beta1", "tuning.beta1", "X"),
    flag("beta2", "tuning.beta2", "X"),
    flag("eps", "tuning.eps", "X"),
    flag("weight-decay", "tuning.weight_decay", "X"),
    flag("warmup-steps", "tuning.warmup_steps", "N"),
    flag("max-grad-norm", "tuning.max_grad_norm", "X"),
    flag("objective", "tuning.objective", "OBJECTIVE"),
    flag("key-weight-p", "tuning.key_weight_p", "P"),
    text("circuit", "tuning.circuit", "FILE"),
    Flag { reading: Reading::List, ..flag("analyses", "analyses", "NAME,…") },
];

/// Adds flags to a command, and `--set`. Help shows each setting's description and default.
pub(crate) fn add(command: Command, tables: &[&[Flag]]) -> Command {
    add_over(command, tables, &Table::new())
}

/// Adds flags to a command whose defaults are those of `defaults`, where it has one.
pub(crate) fn add_over(command: Command, tables: &[&[Flag]], defaults: &Table) -> Command {
    let settings = settings::of_experiments();
    let value_flag = |flag: &Flag| {
        let setting = settings.iter().find(|setting| setting.name == flag.key);
        Arg::new(flag.name)
            .long(flag.name)
            .value_name(flag.value)
            .help(help(flag, setting, get(defaults, flag.key)))
            .allow_negative_numbers(true)
    };
    let set = Arg::new("set")
        .long("set")
        .value_name("KEY=VALUE")
        .action(ArgAction::Append)
        .help("Change any setting; `list settings` shows them all: --set tuning.lr=1e-4");
    command.args(tables.iter().copied().flatten().map(value_flag)).arg(set)
}

/// What a flag does, which values it takes, and the value where it isn't given: `default`, or else the
/// setting's.
fn help(flag: &Flag, setting: Option<&Description>, default: Option<&Value>) -> String {
    let description = setting.map_or("", |setting| &setting.description);
    let description = if flag.help.is_empty() { description } else { flag.help };
    let values: Vec<&str> = (setting.into_iter().flat_map(|setting| &setting.values))
        .map(|value| &value.name[..])
        .collect();
    let values = match values.is_empty() {
        true => String::new(),
        false => format!(": {}", values.join(", ")),
    };
    let default = match default {
        Some(default) => default.to_string(),
        None => setting.map_or_else(|| "none".to_owned(), |setting| shown(&setting.default)),
    };
    // As a flag takes it: without quotes and brackets.
    let default = default.replace(['"', '[', ']'], "");
    format!("{}{values} [default: {default}]", description.trim_end_matches('.'))
}

/// A default as TOML writes it; `none` where it is left open.
pub(crate) fn shown(default: &serde_json::Value) -> String {
    match default {
        serde_json::Value::Null => "none".to_owned(),
        value => value.to_string(),
    }
}

/// The value at a dotted key.
fn get<'t>(table: &'t Table, key: &str) -> Option<&'t Value> {
    let (first, rest) = match key.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (key, None),
    };
    match (table.get(first)?, rest) {
        (Value::Table(inner), Some(rest)) => get(inner, rest),
        (value, None) => Some(value),
        _ => None,
    }
}

/// Writes what the flags and `--set` say into an experiment's table. Flags go first.
pub(crate) fn apply(
    matches: &ArgMatches,
    tables: &[&[Flag]],
    experiment: &mut Table,
) -> Result<()> {
    for flag in tables.iter().copied().flatten() {
        if let Some(value) = matches.get_one::<String>(flag.name) {
            let value = match flag.reading {
                Reading::Toml => parse(value),
                Reading::Text => Value::String(value.clone()),
                Reading::List => Value::Array(value.split(',').map(|v| parse(v.trim())).collect()),
            };
            set(experiment, flag.key, value).with_context(|| format!("--{}", flag.name))?;
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
            bail!("--set {}: write it as KEY=VALUE, as in --set tuning.lr=1e-4", cut(assignment));
        };
        set(experiment, key.trim(), parse(value.trim()))
            .with_context(|| format!("--set {}", cut(assignment)))?;
    }
    Ok(())
}

/// An assignment as long as a message shows it.
fn cut(assignment: &str) -> String {
    match assignment.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &assignment[..end]),
        None => assignment.to_owned(),
    }
}

/// A value as TOML reads it, or else a string.
fn parse(text: &str) -> Value {
    let table: Result<Table, _> = toml::from_str(&format!("value = {text}"));
    match table.ok().and_then(|mut table| table.remove("value")) {
        Some(value) => value,
        None => Value::String(text.to_owned()),
    }
}

/// The tables of which each is a plugin: its name, and its options beside it.
const PLUGINS: [&str; 3] = ["task", "metric", "selector"];

/// The most parts of a key before its last: every table in a table is a call in a call for whoever reads it.
const DEEPEST: usize = 32;

/// Puts a value at a dotted key. A plugin named anew starts with its own defaults.
fn set(table: &mut Table, key: &str, value: Value) -> Result<()> {
    let (path, last): (Vec<&str>, &str) = match key.rsplit_once('.') {
        Some((path, last)) => (path.split('.').collect(), last),
        None => (Vec::new(), key),
    };
    if path.len() > DEEPEST {
        bail!("the key has {} parts; no setting has more than {DEEPEST}", path.len() + 1);
    }
    let names_plugin = last == "name" && matches!(path[..], [table] if PLUGINS.contains(&table));
    let mut at = table;
    for part in path {
        let next = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        at = match next {
            Value::Table(table) => table,
            _ => bail!("`{part}` has no settings of its own"),
        };
    }
    if names_plugin && at.get(last).is_some_and(|name| *name != value) {
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
        plugins::load_named(path, origin)?;
        // A run folder's config.toml serves from any folder.
        *path = path.canonicalize()?;
    }
    Ok(experiment)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&[Flag]; 10] = [
        MODEL,
        COMPUTING,
        TASK,
        DISCOVERY,
        BOOTSTRAP,
        DISCOVERY_BATCH,
        ABLATION,
        FAITHFULNESS,
        ANALYSIS,
        TUNING,
    ];

    /// So that `--data 123` is a file's name, and no flag is left behind when its setting is renamed.
    #[test]
    fn every_flag_names_a_setting_and_reads_it_by_its_type() {
        let settings = settings::of_experiments();
        for flag in ALL.into_iter().flatten() {
            let Some(setting) = settings.iter().find(|setting| setting.name == flag.key) else {
                assert!(!flag.help.is_empty(), "{} is no setting", flag.key);
                continue;
            };
            let expected = match &setting.kind[..] {
                "array" => Reading::List,
                // A name, or a table with options.
                _ if flag.key == "discovery.method" => Reading::Toml,
                "string" if setting.values.is_empty() => Reading::Text,
                _ => Reading::Toml,
            };
            assert_eq!(flag.reading, expected, "--{}", flag.name);
        }
    }

    #[test]
    fn only_a_plugin_named_anew_loses_its_options() {
        let experiment = "seed = 2\n[task]\nname = 'math'\ndata = 'x'\n[other]\nname = 'a'\nn = 1";
        let mut table: Table = toml::from_str(experiment).unwrap();
        set(&mut table, "name", "mine".into()).unwrap();
        set(&mut table, "other.name", "b".into()).unwrap();
        set(&mut table, "task.name", "math".into()).unwrap();
        assert_eq!(get(&table, "seed"), Some(&2.into()));
        assert_eq!(get(&table, "other.n"), Some(&1.into()));
        assert_eq!(get(&table, "task.data"), Some(&"x".into()));
        set(&mut table, "task.name", "logic".into()).unwrap();
        assert_eq!(get(&table, "task.data"), None);
    }
}
