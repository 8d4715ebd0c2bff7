//! The experiments that are shipped, by name: the files in experiments/, built in.

use std::path::Path;

use anyhow::{Context, Result, bail};
use circuit_framework::{files, suggestion};
use toml::Table;

/// Name and TOML of every shipped experiment.
pub(crate) const SHIPPED: &[(&str, &str)] = &[
    ("embedded", include_str!("../experiments/embedded.toml")),
    ("embedded-model", include_str!("../experiments/embedded-model.toml")),
    ("smollm2-bias", include_str!("../experiments/smollm2-bias.toml")),
    ("smollm2-disagreement", include_str!("../experiments/smollm2-disagreement.toml")),
    ("smollm2-logic", include_str!("../experiments/smollm2-logic.toml")),
    ("smollm2-math", include_str!("../experiments/smollm2-math.toml")),
    ("smollm2-reading", include_str!("../experiments/smollm2-reading.toml")),
];

/// The experiment that `run` takes without an argument.
pub(crate) const DEFAULT: &str = "embedded";

/// A shipped experiment by name, or one from a TOML file.
pub(crate) fn find(name: &str) -> Result<Table> {
    if let Some((_, text)) = SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
        return parse(text, name);
    }
    if name.ends_with(".toml") {
        return parse(&files::read_text(Path::new(name))?, name);
    }
    let known = SHIPPED.iter().map(|(name, _)| *name);
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
