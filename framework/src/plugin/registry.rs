//! What is registered: every plugin of every kind, by name. A plugin is its options, a serde struct
//! with a doc comment a field, that builds the running object; one [`register!`](crate::register) line
//! next to it makes every command know it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::attribution::AttributionMethod;
use crate::evaluation::metric::{MeasuringMetric, PatchingMetric};
use crate::evaluation::task::Task;
use crate::model::Architecture;
use crate::panics::{caught, named};
use crate::plugin::description::{self, Description};
use crate::plugin::misfit::Misfit;
use crate::tuning::selector::ParamSelector;
use crate::{Error, Result, refuse, suggestion};

/// A kind of plugin: `dyn Task`, `dyn PatchingMetric`, …
pub trait Kind: 'static {
    /// What messages call one.
    const NAME: &'static str;

    /// The plugin, its panics turned into errors that name it.
    fn guard(name: &str, inner: Box<Self>) -> Box<Self>;
}

/// Options of a plugin of kind `T` (`dyn Task`, `dyn PatchingMetric`, …); [`register!`](crate::register)
/// implements it.
pub trait Options<T: ?Sized>:
    Serialize + DeserializeOwned + Default + schemars::JsonSchema
{
    /// # Errors
    /// If the options contradict each other.
    fn build(self) -> Result<Box<T>>;
}

/// Where a plugin was registered; made by [`origin!`](crate::origin).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub crate_name: &'static str,
    pub version: &'static str,
    /// "file:line"
    pub location: &'static str,
}

/// The [`Origin`](crate::plugin::registry::Origin) of the line it stands on.
#[macro_export]
macro_rules! origin {
    () => {
        $crate::plugin::registry::Origin {
            crate_name: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            location: concat!(file!(), ":", line!()),
        }
    };
}

/// Registers a plugin: its kind, its options' type (which implements the kind's trait), its name, and one
/// line that says what it is. `check`, where given, is a `fn(&self) -> Result<()>` that refuses options
/// which contradict each other.
///
/// ```text
/// register!(dyn Task, Repeat, "repeat", "copy a token");
/// register!(dyn PatchingMetric, Margin, "margin", "right less the k best", check = Margin::check);
/// ```
#[macro_export]
macro_rules! register {
    (dyn $kind:path, $options:ty, $name:literal, $summary:literal $(, check = $check:expr)? $(,)?) => {
        impl $crate::plugin::registry::Options<dyn $kind> for $options {
            fn build(self) -> $crate::Result<Box<dyn $kind>> {
                $($check(&self)?;)?
                Ok(Box::new(self))
            }
        }

        $crate::inventory::submit! {
            $crate::Plugin::<dyn $kind>::new::<$options>($name, $summary, $crate::origin!())
        }
    };
}

type Deserializer<'a> = &'a mut dyn erased_serde::Deserializer<'static>;

/// A registered plugin of kind `T`.
pub struct Plugin<T: ?Sized + 'static> {
    pub name: &'static str,
    /// One line that says what it is.
    pub summary: &'static str,
    pub origin: Origin,
    schema: fn() -> schemars::Schema,
    defaults: fn() -> serde_json::Result<serde_json::Value>,
    build: fn(Deserializer<'_>) -> Result<Result<Box<T>>, erased_serde::Error>,
}

impl<T: Kind + ?Sized> Plugin<T> {
    pub const fn new<O: Options<T>>(
        name: &'static str,
        summary: &'static str,
        origin: Origin,
    ) -> Self {
        Self {
            name,
            summary,
            origin,
            schema: || schemars::schema_for!(O),
            defaults: || serde_json::to_value(O::default()),
            build: |deserializer| Ok(erased_serde::deserialize::<O>(deserializer)?.build()),
        }
    }

    /// The options in the order they are declared.
    pub fn options(&self) -> Vec<Description> {
        let what = || format!("`default` of {} `{}`", T::NAME, self.name);
        named(what, || {
            description::fields(&(self.schema)(), &(self.defaults)().unwrap_or_default())
        })
    }

    /// Builds the plugin from a table of options.
    ///
    /// # Errors
    /// If an option is unknown or its value doesn't fit; the message names the plugin, the option
    /// and the known ones.
    pub fn build(&self, options: &toml::Table) -> Result<Box<T>> {
        self.fit(options)?.map_err(|misfit| Error::input(format!("{}: {misfit}", self.name)))
    }

    /// Builds it like [`Plugin::build`], but tells what doesn't fit apart from options that contradict each other.
    pub(crate) fn fit(&self, options: &toml::Table) -> Result<Result<Box<T>, Misfit>> {
        let known = self.options();
        if let Some(unknown) = options.keys().find(|key| known.iter().all(|o| o.name != **key)) {
            let names = known.iter().map(|option| option.name.as_str());
            return Ok(Err(Misfit::unknown(unknown, names)));
        }
        let mut erased = <dyn erased_serde::Deserializer>::erase(options.clone());
        let what = format!("`build` of {} `{}`", T::NAME, self.name);
        match caught(&what, || Ok((self.build)(&mut erased)))? {
            Ok(built) => Ok(Ok(T::guard(self.name, built?))),
            Err(error) => Ok(Err(Misfit::of(&error.to_string()))),
        }
    }
}

/// All plugins of one kind, sorted by name. Two of one name are an error that names both crates.
pub fn all<T: Kind + ?Sized>() -> Result<Vec<&'static Plugin<T>>>
where
    Plugin<T>: inventory::Collect,
{
    let mut plugins: Vec<&'static Plugin<T>> = inventory::iter::<Plugin<T>>().collect();
    plugins.sort_by_key(|plugin| (plugin.name, plugin.origin.location));
    refuse_twins(plugins.iter().map(|plugin| (plugin.name, plugin.origin)))?;
    Ok(plugins)
}

/// Something registered, whatever its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    pub kind: &'static str,
    pub name: &'static str,
    pub origin: Origin,
}

/// Every plugin, kind by kind.
///
/// # Errors
/// If two of one kind have one name, naming both crates.
pub fn registrations() -> Result<Vec<Registration>> {
    fn of<T: Kind + ?Sized>() -> Result<Vec<Registration>>
    where
        Plugin<T>: inventory::Collect,
    {
        let registration = |plugin: &'static Plugin<T>| Registration {
            kind: T::NAME,
            name: plugin.name,
            origin: plugin.origin,
        };
        Ok(all::<T>()?.into_iter().map(registration).collect())
    }
    Ok([
        of::<dyn Architecture>()?,
        of::<dyn Task>()?,
        of::<dyn PatchingMetric>()?,
        of::<dyn MeasuringMetric>()?,
        of::<dyn AttributionMethod>()?,
        of::<dyn ParamSelector>()?,
    ]
    .concat())
}

/// Refuses two of one name, of a list that is sorted by name.
pub(crate) fn refuse_twins(mut sorted: impl Iterator<Item = (&'static str, Origin)>) -> Result<()> {
    let mut before = sorted.next();
    for (name, origin) in sorted {
        if let Some((other, first)) = before.filter(|(other, _)| *other == name) {
            refuse!(
                "`{other}` is registered twice: by {} ({}) and by {} ({}); rename one",
                first.crate_name,
                first.location,
                origin.crate_name,
                origin.location
            );
        }
        before = Some((name, origin));
    }
    Ok(())
}

/// Names of which each stands once: of two alike the second is NAME-2.
pub fn distinct<'n>(names: impl IntoIterator<Item = &'n str>) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let distinct = |name: &'n str| {
        let count = counts.entry(name).or_default();
        *count += 1;
        if *count == 1 { name.to_owned() } else { format!("{name}-{count}") }
    };
    names.into_iter().map(distinct).collect()
}

/// The plugin of this name; an unknown one is answered with the nearest known, and with how one that was
/// built to be opened at run time becomes known.
pub fn find<T: Kind + ?Sized>(name: &str) -> Result<&'static Plugin<T>>
where
    Plugin<T>: inventory::Collect,
{
    let plugins = all::<T>()?;
    match plugins.iter().find(|plugin| plugin.name == name) {
        Some(plugin) => Ok(plugin),
        None => {
            let known = plugins.iter().map(|plugin| plugin.name);
            refuse!(
                "there is no {} `{name}`{} (what a plugin file registers is known with --plugin FILE)",
                T::NAME,
                suggestion(name, known)
            )
        }
    }
}

inventory::collect!(Plugin<dyn Architecture>);
inventory::collect!(Plugin<dyn Task>);
inventory::collect!(Plugin<dyn PatchingMetric>);
inventory::collect!(Plugin<dyn MeasuringMetric>);
inventory::collect!(Plugin<dyn AttributionMethod>);
inventory::collect!(Plugin<dyn ParamSelector>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_plugin_is_answered_with_how_a_plugin_file_is_opened() {
        fn refusal<T: Kind + ?Sized>() -> String
        where
            Plugin<T>: inventory::Collect,
        {
            find::<T>("absent").err().unwrap().to_string()
        }
        for (kind, error) in [
            ("model architecture", refusal::<dyn Architecture>()),
            ("task", refusal::<dyn Task>()),
            ("metric", refusal::<dyn PatchingMetric>()),
            ("measuring metric", refusal::<dyn MeasuringMetric>()),
            ("selector", refusal::<dyn ParamSelector>()),
        ] {
            assert!(error.starts_with(&format!("there is no {kind} `absent`")), "{error}");
            assert!(error.contains("--plugin FILE"), "{error}");
        }
    }
}
