//! A run loads each split of each task once, however often it evaluates on it; and what is loaded is
//! guarded like the task it comes from.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use circuit_framework::peers::Alone;
use circuit_framework::run::Runner;
use circuit_framework::run::experiment::{Experiment, ModelChoice, Plugins};
use circuit_framework::{
    Dataset, Evaluation, Example, Figures, Key, Options, Plugin, Result, Setting, Split, Task,
    origin, schemars,
};

use crate::support::{load, plugin};

/// How often each split was loaded: the training split, the test split.
type Loads = Arc<[AtomicUsize; 2]>;

/// A task that counts.
struct Counting(Loads);

impl Task for Counting {
    fn default_metric(&self) -> &str {
        "logit_diff"
    }

    fn load(&self, split: Split, _: &Setting) -> Result<Box<dyn Dataset>> {
        self.0[split as usize].fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(examples()))
    }
}

fn examples() -> Vec<Example> {
    let example = |token: u32| Example {
        tokens: vec![token, 9, token],
        predicted: 1..3,
        keys: vec![Key { position: 2, correct: vec![token], wrong: vec![9] }],
        origin: format!("repeat {token}"),
        ..Example::default()
    };
    (1..5).map(example).collect()
}

#[test]
fn a_run_loads_each_split_once() {
    let (own, other) = (Loads::default(), Loads::default());
    let mut experiment = Experiment::default();
    experiment.pruning.top_n = Some(20);
    experiment.tuning.steps = Some(2);
    experiment.tuning.evaluate_every = 1;
    let plugins = Plugins {
        task: Box::new(Counting(own.clone())),
        metric: plugin("logit_diff", ""),
        measure: vec![("accuracy".to_owned(), plugin("accuracy", ""))],
        evaluate: vec![("other".to_owned(), Box::new(Counting(other.clone())))],
        selector: plugin("nodes", ""),
        controls: vec![("random".to_owned(), plugin("random", ""))],
    };
    let loaded = load(ModelChoice::default());
    let runner = Runner {
        experiment: &experiment,
        plugins: &plugins,
        model: &*loaded.model,
        tokenizer: loaded.tokenizer.as_ref(),
        save: &|_, _| Ok(()),
        report: &|_| (),
        peers: &Alone,
        data: Default::default(),
    };
    let folder = tempfile::tempdir().unwrap();
    let summary = runner.run(&folder.path().join("run")).unwrap();
    for name in ["metric.accuracy", "other.logit_diff", "logit_diff"] {
        assert!(summary.after.contains_key(name), "{name}: {:?}", summary.after);
    }
    let counts = |loads: &Loads| [0, 1].map(|split| loads[split].load(Ordering::Relaxed));
    assert_eq!((counts(&own), counts(&other)), ([1, 1], [0, 1]));
}

/// A task whose data can't be evaluated on.
#[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[schemars(crate = "schemars")]
struct Careless {}

struct Broken;

impl Task for Careless {
    fn default_metric(&self) -> &str {
        "loss"
    }

    fn load(&self, split: Split, _: &Setting) -> Result<Box<dyn Dataset>> {
        match split {
            Split::Train => panic!("no training data"),
            Split::Test => Ok(Box::new(Broken)),
        }
    }
}

impl Dataset for Broken {
    fn examples(&self) -> &[Example] {
        &[]
    }

    fn evaluate(&self, _: &Evaluation) -> Result<Figures> {
        panic!("no figures")
    }
}

impl Options<dyn Task> for Careless {
    fn build(self) -> Result<Box<dyn Task>> {
        Ok(Box::new(self))
    }
}

#[test]
fn a_task_whose_data_panics_is_named() {
    let careless = Plugin::<dyn Task>::new::<Careless>("careless", "panics", origin!());
    let task = careless.build(&toml::Table::new()).unwrap();
    let loaded = load(ModelChoice::default());
    let setting = Setting { tokenizer: None, context: 8, seed: 0, counterfactuals: false };
    let evaluation = Evaluation {
        model: &*loaded.model,
        setting,
        batch_size: 1,
        report: &|_| (),
        peers: &Alone,
        folder: None,
        untuned: None,
        circuit: None,
    };
    let figures = task.load(Split::Test, &setting).unwrap().evaluate(&evaluation);
    for (outcome, why) in [
        (task.load(Split::Train, &setting).map(drop), "no training data"),
        (figures.map(drop), "no figures"),
    ] {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("task `careless` panicked") && error.contains(why), "{error}");
    }
}
