//! What is kept when a run fails on its way: in an evaluation, in a metric, by an error or a panic.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Device;
use circuit_framework::lora::Adapters;
use circuit_framework::peers::Alone;
use circuit_framework::run::experiment::Experiment;
use circuit_framework::run::{Runner, Summary};
use circuit_framework::{
    Dataset, Error, Evaluation, Example, Figures, Lora, MeasuringMetric, Model, Result, Selection,
    Setting, Split, Task, panics, progress,
};
use circuit_models::Loaded;

use crate::command_line::{case, refuses, words};
use crate::support::{at, load, weights};

/// A task whose evaluation fails when it is asked for the given time.
struct FailsAt {
    task: Box<dyn Task>,
    fails_at: usize,
}

impl Task for FailsAt {
    fn default_metric(&self) -> &str {
        self.task.default_metric()
    }

    fn load(&self, split: Split, setting: &Setting) -> Result<Box<dyn Dataset>> {
        let (data, calls) = (self.task.load(split, setting)?, AtomicUsize::new(0));
        Ok(Box::new(FailingData { data, fails_at: self.fails_at, calls }))
    }
}

/// Its data.
struct FailingData {
    data: Box<dyn Dataset>,
    fails_at: usize,
    calls: AtomicUsize,
}

impl Dataset for FailingData {
    fn examples(&self) -> &[Example] {
        self.data.examples()
    }

    fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures> {
        match self.calls.fetch_add(1, Ordering::Relaxed) + 1 {
            call if call == self.fails_at => Err(Error::input("the evaluation fails")),
            _ => self.data.evaluate(evaluation),
        }
    }
}

/// A metric that panics while the untuned weights are in place.
struct PanicsOnUntuned;

impl MeasuringMetric for PanicsOnUntuned {
    fn measure(&self, evaluation: &Evaluation, _examples: &[Example]) -> Result<f64> {
        match evaluation.untuned {
            Some(_) => evaluation.untuned(|| panic!("on the untuned weights")),
            None => Ok(0.0),
        }
    }

    fn needs_untuned(&self) -> bool {
        true
    }
}

/// The embedded model.
fn embedded() -> Loaded {
    load(at(Path::new("embedded")))
}

/// A short run on it.
fn experiment(settings: &str) -> Experiment {
    let base = "
        [task]
        name = 'agreement'
        direction = 'disagreement'
        train_examples = 32
        test_examples = 16
        [pruning]
        top_n = 20
        [tuning]
        batch_size = 8
        lr = 1e-2
    ";
    let mut table: toml::Table = base.parse().unwrap();
    for (section, value) in settings.parse::<toml::Table>().unwrap() {
        match (table.get_mut(&section), value) {
            (Some(toml::Value::Table(known)), toml::Value::Table(new)) => known.extend(new),
            (_, value) => {
                table.insert(section, value);
            }
        }
    }
    Experiment::from_table(table, "here").unwrap()
}

/// Runs an experiment on a model, its task failing at an evaluation (0: at none); what is begun goes on.
fn run(model: &Loaded, settings: &str, folder: &Path, fails_at: usize) -> Result<Summary> {
    run_with(model, settings, folder, fails_at, None)
}

fn run_with(
    Loaded { model, tokenizer }: &Loaded,
    settings: &str,
    folder: &Path,
    fails_at: usize,
    metric: Option<Box<dyn MeasuringMetric>>,
) -> Result<Summary> {
    let experiment = experiment(settings);
    let mut plugins = experiment.plugins().unwrap();
    plugins.task = Box::new(FailsAt { task: plugins.task, fails_at });
    plugins.measure.extend(metric.map(|metric| ("own".to_owned(), metric)));
    let runner = Runner {
        experiment: &experiment,
        plugins: &plugins,
        model: &**model,
        tokenizer: tokenizer.as_ref(),
        save: &|folder, model| circuit_models::save(folder, model, tokenizer.as_ref()),
        report: &progress::silent,
        peers: &Alone,
        data: Default::default(),
    };
    if folder.exists() { runner.resume(folder) } else { runner.run(folder) }
}

/// The largest difference between the weights of two models.
fn distance(a: &dyn Model, b: &dyn Model) -> f32 {
    let (a, b) = (weights(a), weights(b));
    assert!(a.keys().eq(b.keys()));
    let pairs = a.values().flatten().zip(b.values().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn the_tuned_model_is_saved_though_the_evaluation_after_tuning_fails() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let model = embedded();
    // The first evaluation is the one before tuning.
    let error = run(&model, "tuning.steps = 2", &out, 2).unwrap_err();
    assert!(error.to_string().contains("the evaluation fails"), "{error}");
    let saved = load(at(&out.join("model"))).model;
    assert_eq!(distance(&*saved, &*model.model), 0.0);
    assert!(distance(&*saved, &*embedded().model) > 1e-4);
}

/// Two steps of three are made: both adapter and model are as those two left them.
#[test]
fn a_lora_run_that_fails_saves_the_adapter_as_reached() {
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    let settings = |steps: usize, every: usize| {
        format!(
            "selector = {{ name = 'lora', rank = 2 }}
            tuning.steps = {steps}
            tuning.evaluate_every = {every}"
        )
    };
    run(&embedded(), &settings(3, 2), &here("failed"), 2).unwrap_err();
    run(&embedded(), &settings(2, 0), &here("whole"), 0).unwrap();
    let saved = |name: &str| load(at(&here(name).join("model"))).model;
    assert_eq!(distance(&*saved("failed"), &*saved("whole")), 0.0);
    assert!(distance(&*saved("failed"), &*embedded().model) > 1e-4);
    let base = embedded().model;
    Adapters::load(&here("failed/adapter"), base.parameters(), base.projections())
        .unwrap()
        .merge(base.parameters())
        .unwrap();
    assert!(distance(&*base, &*saved("failed")) < 1e-6);
}

#[test]
fn a_panic_while_untuned_weights_are_in_place_saves_the_tuned_ones() {
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    panics::note_panics();
    let steps = |steps: usize, every: usize| {
        format!("tuning.steps = {steps}\ntuning.evaluate_every = {every}")
    };
    let panics: Option<Box<dyn MeasuringMetric>> = Some(Box::new(PanicsOnUntuned));
    let error = run_with(&embedded(), &steps(3, 2), &here("failed"), 0, panics).unwrap_err();
    assert!(error.to_string().contains("on the untuned weights"), "{error}");
    run(&embedded(), &steps(2, 0), &here("whole"), 0).unwrap();
    let saved = |name: &str| load(at(&here(name).join("model"))).model;
    assert_eq!(distance(&*saved("failed"), &*saved("whole")), 0.0);
}

#[test]
fn a_panic_while_adapters_are_merged_puts_the_weights_back() {
    panics::note_panics();
    let model = embedded().model;
    let everything = Selection::blocks(model.parameters(), |_, _| true);
    let lora = Lora { rank: 2, alpha: 4.0, dropout: 0.0, layers: Vec::new() };
    let adapters = Arc::new(
        Adapters::new(model.parameters(), model.projections(), &everything, lora, 0).unwrap(),
    );
    for (_, parameter) in adapters.parameters().iter() {
        let values = parameter.tensor.ones_like().unwrap().affine(0.25, 0.0).unwrap();
        parameter.tensor.slice_set(&values, 0, 0).unwrap();
    }
    let merged =
        || adapters.while_merged(model.parameters(), || -> Result<()> { panic!("while merged") });
    panics::caught("here", merged).unwrap_err();
    assert_eq!(distance(&*model, &*embedded().model), 0.0);
}

#[test]
fn after_a_run_with_a_control_the_model_is_the_tuned_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let model = embedded();
    run(&model, "controls = { kinds = ['random'] }\ntuning.steps = 2", &out, 0).unwrap();
    let saved = load(at(&out.join("model"))).model;
    assert_eq!(distance(&*saved, &*model.model), 0.0);
}

/// Each control is a stage of its own.
#[test]
fn a_finished_control_is_not_repeated_when_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    let settings = "controls = { kinds = ['random', 'complement'] }\ntuning.steps = 2";
    let whole = run(&embedded(), settings, &here("whole"), 0).unwrap();
    // Before, after, `random`, and then `complement`, which fails.
    run(&embedded(), settings, &here("resumed"), 4).unwrap_err();
    let log = here("resumed/controls/seed-0/random/log.jsonl");
    let written = |path: &Path| std::fs::metadata(path).unwrap().modified().unwrap();
    let before = written(&log);
    // A second evaluation would fail.
    let resumed = run(&embedded(), settings, &here("resumed"), 2).unwrap();
    assert_eq!(written(&log), before);
    assert!(!here("resumed/controls/seed-0/random/state").exists());
    let figures = |summary: Summary| {
        let controls = serde_json::to_value(summary.controls.unwrap()).unwrap();
        let estimates = ["after", "difference"].map(|of| controls["kinds"][1][of].clone());
        (controls["circuit"]["after"].clone(), estimates)
    };
    assert_eq!(figures(resumed), figures(whole));
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = case("gpt2-tune-sgd");
    refuses(
        folder.path(),
        &words(&format!(
            "tune --model {model} --task tokens --data {data} --steps 9 --batch-size 4 \
             --optimizer sgd --lr 1e30 --set model.dtype=float32 --top-n 20 --out out"
        )),
        &["at step 1", "lr"],
    );
    let saved = candle_core::safetensors::load(
        folder.path().join("out/model/model.safetensors"),
        &Device::Cpu,
    )
    .unwrap();
    assert!(saved.values().all(|tensor| {
        tensor
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
            .iter()
            .all(|value| value.is_finite())
    }));
}
