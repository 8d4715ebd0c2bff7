//! `list`: everything registered, with options and defaults; and the settings of experiments.

use anyhow::{Result, bail};
use circuit_framework::plugin::description::Description;
use circuit_framework::plugin::registry::{self, Kind, Plugin};
use circuit_framework::run::experiment::Registered;
use circuit_framework::run::settings;
use circuit_framework::{
    Architecture, AttributionMethod, MeasuringMetric, ParamSelector, PatchingMetric, Task,
    inventory,
};
use circuit_models::Abilities;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::{Serialize, Serializer};

use super::{json_flag, show};
use crate::flags::shown;
use crate::outputs::Outputs;
use crate::print::say;

const KINDS: [&str; 7] =
    [MODELS, "tasks", "metrics", "methods", "selectors", "experiments", "settings"];

const MODELS: &str = "models";

/// What no architecture does for itself: passes over any model do it, in tests whose models are drawn from all families.
const EVERY_MODEL: &str = "All of them: generation with a cache, bfloat16, checkpointing, adapters in PEFT's names, \
    saving for transformers, circuit evaluation, every attribution method and ablation";

pub(crate) fn command() -> Command {
    Command::new("list")
        .about("Everything registered, with options and defaults; `list settings`: every setting")
        .arg(
            Arg::new("kind")
                .value_name("KIND")
                .value_parser(KINDS)
                .help("Only what is of one kind"),
        )
        .arg(
            Arg::new("markdown")
                .long("markdown")
                .action(ArgAction::SetTrue)
                .help("Of `list settings`: the page docs/settings.md"),
        )
        .arg(json_flag())
}

/// What is registered of one kind.
struct Group {
    /// What JSON calls the kind.
    kind: &'static str,
    title: &'static str,
    entries: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    name: &'static str,
    summary: String,
    /// What an architecture can do.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    abilities: Option<Abilities>,
    options: Vec<Description>,
}

/// Groups as one JSON object, a list a kind.
struct Listing(Vec<Group>);

impl Serialize for Listing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|group| (group.kind, &group.entries)))
    }
}

#[derive(Serialize)]
struct Settings {
    settings: Vec<Description>,
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let wanted = matches.get_one::<String>("kind").map(String::as_str);
    let markdown = matches.get_flag("markdown");
    let outputs = Outputs::new(matches, &[], Vec::new())?;
    if wanted == Some("settings") {
        let print = if markdown { super::settings::print_page } else { super::settings::print };
        let settings = Settings { settings: settings::of_experiments() };
        return show(matches, &outputs, &settings, |listed| print(&listed.settings));
    }
    if markdown {
        bail!("--markdown is for `list settings`");
    }
    let mut groups = groups()?;
    // `metrics` are the measuring ones too.
    groups.retain(|group| wanted.is_none_or(|wanted| group.kind.ends_with(wanted)));
    show(matches, &outputs, &Listing(groups), |Listing(groups)| {
        groups.iter().for_each(print);
        if wanted.is_none() {
            say!("Every setting of an experiment: `list settings`");
        }
    })
}

fn groups() -> Result<Vec<Group>> {
    let experiments = Registered::all()?.into_iter().map(|experiment| {
        let table: toml::Table = toml::from_str(experiment.toml)?;
        let description = table.get("description").and_then(|value| value.as_str());
        let summary = description.unwrap_or_default().to_owned();
        Ok(Entry { name: experiment.name, summary, abilities: None, options: Vec::new() })
    });
    Ok(vec![
        models()?,
        plugins::<dyn Task>("tasks", "Tasks", "task")?,
        plugins::<dyn PatchingMetric>("metrics", "Metrics", "metric")?,
        plugins::<dyn MeasuringMetric>(
            "measuring_metrics",
            "Metrics that only measure",
            "measure",
        )?,
        plugins::<dyn AttributionMethod>("methods", "Attribution methods", "discovery.method")?,
        plugins::<dyn ParamSelector>("selectors", "Selectors", "selector")?,
        Group {
            kind: "experiments",
            title: "Experiments, for `run NAME`",
            entries: experiments.collect::<Result<_>>()?,
        },
    ])
}

/// The architectures with what they can do.
fn models() -> Result<Group> {
    let mut group = plugins::<dyn Architecture>(MODELS, "Model architectures", "model")?;
    for entry in &mut group.entries {
        let plugin = registry::find::<dyn Architecture>(entry.name)?;
        entry.abilities = Some(circuit_models::abilities(plugin)?);
    }
    Ok(group)
}

/// The plugins of one kind, their options named as settings of `section`.
fn plugins<T: Kind + ?Sized>(
    kind: &'static str,
    title: &'static str,
    section: &str,
) -> Result<Group>
where
    Plugin<T>: inventory::Collect,
{
    let entry = |plugin: &'static Plugin<T>| Entry {
        name: plugin.name,
        summary: plugin.summary.to_owned(),
        abilities: None,
        options: (plugin.options().into_iter())
            .map(|option| Description { name: format!("{section}.{}", option.name), ..option })
            .collect(),
    };
    Ok(Group { kind, title, entries: registry::all::<T>()?.into_iter().map(entry).collect() })
}

fn print(group: &Group) {
    say!("{}", group.title);
    for entry in &group.entries {
        say!("  {:22}{}", entry.name, entry.summary);
        if let Some(abilities) = &entry.abilities {
            print_abilities(abilities);
        }
        for option in &entry.options {
            say!("    {} = {}", option.name, shown(&option.default));
            say!("        {}", option.description);
        }
    }
    if group.kind == MODELS {
        say!("{EVERY_MODEL}");
    }
    say!("");
}

fn print_abilities(abilities: &Abilities) {
    match abilities.gguf {
        Some(name) => say!("    files: Hugging Face folders, GGUF (`{name}`)"),
        None => say!("    files: Hugging Face folders"),
    }
    if !abilities.features.is_empty() {
        say!("    has: {}", abilities.features.join(", "));
    }
}
