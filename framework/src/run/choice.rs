//! A plugin as an experiment names it, with its options.

use serde::{Deserialize, Serialize};

use crate::evaluation::metric::{MeasuringMetric, PatchingMetric};
use crate::plugin::misfit::Misfit;
use crate::plugin::registry::{self, Kind, Plugin};
use crate::{Result, refuse};

/// A plugin by name, with its options beside the name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Choice {
    pub name: String,
    #[serde(flatten)]
    #[schemars(skip)]
    pub options: toml::Table,
}

impl Choice {
    /// This plugin, its options left at their defaults.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), options: toml::Table::new() }
    }

    pub(super) fn build<T: Kind + ?Sized>(&self) -> Result<Box<T>>
    where
        Plugin<T>: inventory::Collect,
    {
        registry::find::<T>(&self.name)?.build(&self.options)
    }

    /// Options that don't fit, as they stand in a section of an experiment.
    pub(super) fn misfits<T: Kind + ?Sized>(&self, section: &str) -> Vec<Misfit>
    where
        Plugin<T>: inventory::Collect,
    {
        let built = registry::find::<T>(&self.name).and_then(|plugin| plugin.fit(&self.options));
        Vec::from_iter(
            built.ok().and_then(Result::err).map(|misfit| misfit.of_plugin(&self.name, section)),
        )
    }

    /// A patching metric; one that only measures is answered with where it belongs.
    pub(super) fn build_metric(&self) -> Result<Box<dyn PatchingMetric>> {
        let measuring = registry::all::<dyn MeasuringMetric>()?;
        if measuring.iter().any(|plugin| plugin.name == self.name) {
            refuse!(
                "metric `{0}` only measures, nothing can be discovered with it; write measure = [{{ name = \"{0}\" }}]",
                self.name
            );
        }
        self.build()
    }

    /// The same choice with every option spelt out.
    pub(super) fn resolved<T: Kind + ?Sized>(&self) -> Result<Self>
    where
        Plugin<T>: inventory::Collect,
    {
        let mut options = toml::Table::new();
        for option in registry::find::<T>(&self.name)?.options() {
            // An option left open has no TOML value and is left out.
            if let Ok(default) = toml::Value::try_from(option.default) {
                options.insert(option.name, default);
            }
        }
        options.extend(self.options.clone());
        Ok(Self { name: self.name.clone(), options })
    }
}
