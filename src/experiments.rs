//! The experiments that are shipped: the files in experiments/, built in and registered under their
//! names.

use std::path::Path;

use anyhow::{Context, Result, bail};
use circuit_framework::run::experiment::Registered;
use circuit_framework::{files, inventory, origin, suggestion};
use toml::Table;

/// Registers the experiment in experiments/NAME.toml.
macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        $(inventory::submit! {
            Registered {
                name: $name,
                toml: include_str!(concat!("../experiments/", $name, ".toml")),
                origin: origin!(),
            }
        })*
    };
}

shipped!(
    "embedded",
    "embedded-analyses",
    "embedded-model",
    "gemma3-ioi",
    "smollm2-agreement",
    "smollm2-bias",
    "smollm2-controls",
    "smollm2-disagreement",
    "smollm2-forget",
    "smollm2-ioi",
    "smollm2-logic",
    "smollm2-math",
    "smollm2-reading",
);

/// The experiment that `run` takes without an argument.
pub(crate) const DEFAULT: &str = "embedded";

/// A registered experiment by name, or one from a TOML file.
pub(crate) fn find(name: &str) -> Result<Table> {
    let registered = Registered::all()?;
    if let Some(experiment) = registered.iter().find(|experiment| experiment.name == name) {
        return parse(experiment.toml, name);
    }
    if name.ends_with(".toml") {
        return parse(&files::read_text(Path::new(name))?, name);
    }
    let known = registered.iter().map(|experiment| experiment.name);
    bail!("there is no experiment `{name}`{}; a file's name ends in .toml", suggestion(name, known))
}

fn parse(text: &str, origin: &str) -> Result<Table> {
    let table: Result<Table, toml::de::Error> = toml::from_str(text);
    table
        .map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            anyhow::anyhow!("{origin}:{line}: {}", error.message())
        })
        .context("the experiment can't be read")
}
