//! A sweep: one experiment with lists in place of single choices, and every
//! combination of them as an experiment of its own. Running them is the command line's.
//!
//! ```toml
//! [sweep]
//! tasks = ["agreement", { name = "agreement", direction = "disagreement" }]
//! metrics = ["logit_diff", "loss"]
//! selectors = ["nodes", "all", { name = "lora", rank = 4 }]
//! seeds = [0, 1]
//! ```

use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use super::place::place;
use crate::plugin::misfit::Misfit;
use crate::{Error, Result, refuse};

/// The lists; one that is left out leaves the experiment's own choice. An entry is a name (of a model
/// its path), or a table of the section it stands for.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sweep {
    models: Vec<Value>,
    tasks: Vec<Value>,
    metrics: Vec<Value>,
    selectors: Vec<Value>,
    seeds: Vec<i64>,
}

/// One combination.
#[derive(Clone, Debug, PartialEq)]
pub struct Combination {
    /// What tells it from the others, fit for a folder's name.
    pub name: String,
    /// The experiment, without the sweep.
    pub experiment: Table,
}

/// Every combination of an experiment's `[sweep]`, the last list varying fastest; none where it has
/// none. It was called `[matrix]` once, and is read as such with a note.
///
/// # Errors
/// If the sweep is malformed or empty.
pub fn combinations(experiment: &Table, origin: &str) -> Result<Option<Vec<Combination>>> {
    let mut base = experiment.clone();
    let (sweep, former) = (base.remove("sweep"), base.remove("matrix"));
    if sweep.is_some() && former.is_some() {
        refuse!(
            "{origin}: [sweep] and its former name [matrix] are both there; leave [matrix] out"
        );
    }
    if former.is_some() {
        log::warn!("{origin}: [matrix] is now called [sweep]; it is read as that");
    }
    let Some(sweep) = sweep.or(former) else {
        return Ok(None);
    };
    let Sweep { models, tasks, metrics, selectors, seeds } =
        sweep.try_into().map_err(|error: toml::de::Error| {
            let misfit = Misfit::of(&error.to_string()).below("sweep");
            Error::input(format!("{}: {misfit}", place(origin, &misfit.key, experiment)))
        })?;
    let seeds: Vec<Value> = seeds.into_iter().map(Value::from).collect();
    let mut combinations = vec![Combination { name: String::new(), experiment: base }];
    let lists = [("model", models), ("task", tasks), ("metric", metrics), ("selector", selectors)];
    for (section, values) in lists.into_iter().chain([("seed", seeds)]) {
        if values.is_empty() {
            continue;
        }
        let labels = labels(section, &values);
        let mut more = Vec::with_capacity(combinations.len() * values.len());
        for combination in &combinations {
            for (value, label) in values.iter().zip(&labels) {
                more.push(combination.with(section, value, label, origin)?);
            }
        }
        combinations = more;
    }
    if combinations.len() == 1 && combinations[0].name.is_empty() {
        refuse!("{origin}: [sweep] is empty; list models, tasks, metrics, selectors or seeds");
    }
    let mut names: Vec<&str> =
        combinations.iter().map(|combination| &combination.name[..]).collect();
    names.sort_unstable();
    if let Some(twins) = names.windows(2).find(|twins| twins[0] == twins[1]) {
        refuse!("{origin}: [sweep]: two combinations are called `{}`; leave one out", twins[0]);
    }
    Ok(Some(combinations))
}

impl Combination {
    fn with(&self, section: &str, value: &Value, label: &str, origin: &str) -> Result<Self> {
        let key = if section == "model" { "path" } else { "name" };
        let value = match value {
            Value::String(name) => {
                Value::Table(Table::from_iter([(key.to_owned(), name.clone().into())]))
            }
            Value::Table(table) if table.contains_key(key) => Value::Table(table.clone()),
            Value::Integer(_) if section == "seed" => value.clone(),
            other => refuse!(
                "{origin}: [sweep]: {other} is no {section}; write its {key}, or a table with `{key}`"
            ),
        };
        let mut experiment = self.experiment.clone();
        experiment.insert(section.to_owned(), value);
        let name = match &self.name[..] {
            "" => label.to_owned(),
            before => format!("{before}-{label}"),
        };
        Ok(Self { name, experiment })
    }
}

/// Short names of a list's entries, unlike each other.
fn labels(section: &str, values: &[Value]) -> Vec<String> {
    let label = |value: &Value| match value {
        Value::Integer(seed) => format!("seed{seed}"),
        _ => {
            let text = match value {
                Value::String(text) => text,
                table => table
                    .get(if section == "model" { "path" } else { "name" })
                    .and_then(Value::as_str)
                    .unwrap_or(section),
            };
            let name = Path::new(text).file_name().map_or(text.into(), |s| s.to_string_lossy());
            // "Llama-3.1-8B" is a name to its end.
            name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
        }
    };
    let plain: Vec<String> = values.iter().map(label).collect();
    let mut labels: Vec<String> = Vec::new();
    for label in &plain {
        let numbered = (2..).map(|number| format!("{label}{number}"));
        let free = std::iter::once(label.clone())
            .chain(numbered.filter(|numbered| !plain.contains(numbered)))
            .find(|candidate| !labels.contains(candidate));
        labels.extend(free);
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Option<Vec<Combination>>> {
        combinations(&toml::from_str(text).unwrap(), "mine.toml")
    }

    #[test]
    fn every_combination_once_in_order() {
        let all = of(
            "seed = 9\n[task]\nname = 'x'\n[sweep]\ntasks = ['a', { name = 'a', n = 2 }]\nseeds = [1, 2]",
        );
        let all = all.unwrap().unwrap();
        let names: Vec<&str> = all.iter().map(|c| &c.name[..]).collect();
        assert_eq!(names, ["a-seed1", "a-seed2", "a2-seed1", "a2-seed2"]);
        assert_eq!(all[3].experiment["task"]["n"], 2.into());
        assert_eq!(all[3].experiment["seed"], 2.into());
        assert!(all.iter().all(|combination| !combination.experiment.contains_key("sweep")));
    }

    #[test]
    fn without_a_sweep_there_are_none() {
        assert_eq!(of("seed = 9").unwrap(), None);
    }

    #[test]
    fn what_is_malformed_is_named() {
        for (text, part) in [
            ("[sweep]\n", "is empty"),
            ("[sweep]\nmetric = ['loss']", "there is no key `sweep.metric`; did you mean metrics"),
            ("[sweep]\nmetrics = [3]", "3 is no metric"),
            ("[sweep]\nmodels = [{ name = 'x' }]", "with `path`"),
        ] {
            let error = of(text).unwrap_err().to_string();
            assert!(error.starts_with("mine.toml: ") && error.contains(part), "{error}");
        }
    }
}
