//! Every built-in plugin passes the conformance suite, and plugins that are broken don't.

use std::sync::atomic::{AtomicUsize, Ordering};

use circuit_framework::{
    Architecture, Batch, Circuit, Dataset, Example, Model, ParamSelector, PatchingMetric, Readout,
    Result, Selection, Setting, Split, Task, Tensor, plugin::conformance, plugin::registry,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::support::{Geometry, examples, few, geometries, plugin, repository};

proptest! {
    #![proptest_config(few(16))]

    #[test]
    fn architectures_conform(geometry in geometries(), seed in any::<u64>()) {
        let outcome = conformance::architecture(&*architecture(&geometry), &geometry.config(), seed);
        prop_assert_eq!(outcome.map_err(|error| error.to_string()), Ok(()));
    }

    #[test]
    fn metrics_conform(geometry in geometries(), seed in any::<u64>(), examples in examples(2..4)) {
        let model = geometry.model_in_float64(seed);
        for plugin in registry::all::<dyn PatchingMetric>().unwrap() {
            let metric = plugin.build(&toml::Table::new()).unwrap();
            assert_eq!(metric.task(), None, "{}: it needs its own task's examples here", plugin.name);
            let outcome = conformance::metric(&*metric, &*model, &examples);
            prop_assert_eq!(outcome.map_err(|error| format!("{}: {error}", plugin.name)), Ok(()));
        }
    }

    #[test]
    fn selectors_conform(geometry in geometries(), seed in any::<u64>()) {
        let model = geometry.model_in_float64(seed);
        for plugin in registry::all::<dyn ParamSelector>().unwrap() {
            let selector = plugin.build(&toml::Table::new()).unwrap();
            let outcome = conformance::selector(&*selector, &*model, seed);
            prop_assert_eq!(outcome.map_err(|error| format!("{}: {error}", plugin.name)), Ok(()));
        }
    }
}

/// The configuration that an architecture is shown by has all that conformance asks for.
#[test]
fn examples_conform() {
    for plugin in registry::all::<dyn Architecture>().unwrap() {
        let architecture = plugin.build(&toml::Table::new()).unwrap();
        // The laboratory's, which other tests register, has none.
        let Some(example) = architecture.example() else { continue };
        assert_eq!(example["model_type"], plugin.name);
        let outcome = conformance::architecture(&*architecture, &example, 3);
        assert!(outcome.is_ok(), "{}: {}", plugin.name, outcome.unwrap_err());
    }
}

/// What builds models of a geometry.
pub fn architecture(geometry: &Geometry) -> Box<dyn Architecture> {
    let name = geometry.config()["model_type"].as_str().unwrap().to_owned();
    registry::find::<dyn Architecture>(&name).unwrap().build(&geometry.options()).unwrap()
}

/// Every registered task on its fixture.
#[test]
fn tasks_conform() {
    let tokenizer = conformance::byte_tokenizer().unwrap();
    let setting =
        Setting { tokenizer: Some(&tokenizer), context: 4096, seed: 5, counterfactuals: false };
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.jsonl");
    std::fs::write(&tokens, "{\"tokens\": [1, 2, 3], \"key_positions\": [2], \"wrong\": [4]}\n")
        .unwrap();
    for registered in registry::all::<dyn Task>().unwrap() {
        let fixture = |file: &str| repository("tasks/fixtures").join(file);
        let data = match registered.name {
            "agreement" | "arithmetic" | "greater_than" | "ioi" | "mcqa" | "mixture" => None,
            "bias" => Some(fixture("bug.csv")),
            "logic" => Some(fixture("logic")),
            "math" => Some(fixture("math.jsonl")),
            "multiple_choice" => Some(fixture("multiple_choice.jsonl")),
            "perplexity" => Some(repository("README.md")),
            "reading" => Some(fixture("squad.json")),
            "tokens" => Some(tokens.clone()),
            other => panic!("task {other} has no fixture here"),
        };
        let mut options = data.map_or(String::new(), |data| format!("data = {data:?}\n"));
        if registered.options().iter().any(|option| option.name == "bad_rows") {
            options += "bad_rows = \"skip\"\n";
        }
        options += match registered.name {
            "logic" => "test_share = 0.5\n",
            // The tokenizer has a token a digit.
            "arithmetic" => "largest = 9\n",
            "mixture" => "tasks = [{ name = \"ioi\" }, { name = \"mcqa\", weight = 2 }]\n",
            _ => "",
        };
        let task: Box<dyn Task> = plugin(registered.name, &options);
        let outcome = conformance::task(&*task, &setting, 256);
        assert!(outcome.is_ok(), "{}: {}", registered.name, outcome.unwrap_err());
    }
}

/// A metric whose gradient is cut off for half its value.
struct Detached;

impl PatchingMetric for Detached {
    fn sum(&self, readout: &Readout, batch: &Batch) -> Result<Tensor> {
        let rows: Vec<u32> = batch.keys().map(|(_, _, row)| row).collect();
        let logits = readout.logits(&rows)?;
        Ok((logits.sum_all()? + logits.detach().sqr()?.sum_all()?)?)
    }
}

/// A metric that sees the padding.
struct Padded;

impl PatchingMetric for Padded {
    fn sum(&self, readout: &Readout, batch: &Batch) -> Result<Tensor> {
        let rows: Vec<u32> = (0..(batch.examples.len() * batch.seq) as u32).collect();
        Ok(readout.logits(&rows)?.sum_all()?)
    }
}

/// A selector that counts its calls.
struct Changing(AtomicUsize);

impl ParamSelector for Changing {
    fn select(&self, _: &Circuit, model: &dyn Model, _: u64) -> Result<Selection> {
        let calls = self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Selection::blocks(model.parameters(), |id, _| id.0 == calls))
    }
}

/// A selector that trains norms with every circuit.
struct Shared;

impl ParamSelector for Shared {
    fn select(&self, circuit: &Circuit, model: &dyn Model, _: u64) -> Result<Selection> {
        Ok(Selection::blocks(model.parameters(), |_, _| !circuit.edges.is_empty()))
    }
}

/// A task whose examples change, or whose key is not predicted.
struct Wrong {
    calls: AtomicUsize,
    predicted: std::ops::Range<usize>,
}

impl Task for Wrong {
    fn default_metric(&self) -> &str {
        "loss"
    }

    fn load(&self, _: Split, _: &Setting) -> Result<Box<dyn Dataset>> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed) as u32;
        Ok(Box::new(vec![Example {
            tokens: vec![1, 2, calls],
            predicted: self.predicted.clone(),
            keys: vec![circuit_framework::Key { position: 2, correct: vec![2], wrong: Vec::new() }],
            origin: "made".to_owned(),
            ..Example::default()
        }]))
    }
}

#[test]
fn what_is_broken_does_not_conform() {
    let fails = |outcome: Result<()>, part: &str| {
        let error = outcome.expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut draw = || {
        let geometry = geometries().new_tree(&mut runner).unwrap().current();
        let examples = examples(3..4).new_tree(&mut runner).unwrap().current();
        (geometry.model_in_float64(1), examples)
    };
    let (model, examples) = std::iter::repeat_with(&mut draw)
        .find(|(model, examples)| {
            let length = |example: &Example| example.tokens.len();
            model.graph().edge_count() > 2
                && examples.iter().any(|e| length(e) != length(&examples[0]))
        })
        .unwrap();
    fails(conformance::metric(&Detached, &*model, &examples), "central differences");
    fails(conformance::metric(&Padded, &*model, &examples), "padding");
    fails(conformance::selector(&Changing(AtomicUsize::new(0)), &*model, 0), "another selection");
    fails(conformance::selector(&Shared, &*model, 0), "that no node owns");
    let setting = Setting { tokenizer: None, context: 8, seed: 0, counterfactuals: false };
    let task = |predicted| Wrong { calls: AtomicUsize::new(0), predicted };
    fails(conformance::task(&task(1..3), &setting, 100), "gives other examples");
    fails(conformance::task(&task(1..2), &setting, 100), "not among the predicted");
    fails(conformance::task(&task(1..3), &setting, 2), "token id");
}
