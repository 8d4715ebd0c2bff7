//! Work that is done once: data prepared for a run, weights exchanged for a metric, gradients of rows
//! that occur.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use circuit_framework::peers::Alone;
use circuit_framework::run::Runner;
use circuit_framework::run::experiment::Experiment;
use circuit_framework::tuning::gradients::Gradients;
use circuit_framework::{
    Batch, Dataset, Evaluation, MeasuringMetric, Model, Pass, PatchingMetric, Result, Selection,
    Setting, Split, Task, progress,
};
use proptest::prelude::*;

use crate::support::{at, examples, few, geometries, load, plugin};

/// A task that counts how often its training examples are asked for.
struct Counting {
    task: Box<dyn Task>,
    asked: Arc<AtomicUsize>,
}

impl Task for Counting {
    fn default_metric(&self) -> &str {
        self.task.default_metric()
    }

    fn load(&self, split: Split, setting: &Setting) -> Result<Box<dyn Dataset>> {
        if split == Split::Train {
            self.asked.fetch_add(1, Ordering::Relaxed);
        }
        self.task.load(split, setting)
    }
}

/// As a sweep does it: whether the experiment fits is asked first, and the run goes on from there.
#[test]
fn an_experiment_is_prepared_once() {
    let text =
        "[task]\nname = 'agreement'\ntrain_examples = 16\ntest_examples = 8\n[tuning]\nsteps = 1";
    let experiment = Experiment::from_table(text.parse().unwrap(), "here").unwrap();
    let loaded = load(at(Path::new("embedded")));
    let mut plugins = experiment.plugins().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    plugins.task = Box::new(Counting { task: plugins.task, asked: asked.clone() });
    let runner = Runner {
        experiment: &experiment,
        plugins: &plugins,
        model: &*loaded.model,
        tokenizer: loaded.tokenizer.as_ref(),
        save: &|folder, model| circuit_models::save(folder, model, None),
        report: &progress::silent,
        peers: &Alone,
        data: Default::default(),
    };
    let folder = tempfile::tempdir().unwrap();
    let prepared = runner.prepare().unwrap();
    runner.run_prepared(prepared, &folder.path().join("out")).unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

/// A value of the model that every change below moves.
fn first_weight(model: &dyn Model) -> f64 {
    let (_, parameter) = model.parameters().iter().next().unwrap();
    parameter.tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap()[0]
}

proptest! {
    #![proptest_config(few(24))]

    /// One sweep over all batches with the untuned weights, one with the tuned.
    #[test]
    fn kl_divergence_exchanges_the_weights_once(
        geometry in geometries(),
        examples in examples(5..8),
        positions in prop::sample::select(vec!["key", "all"]),
    ) {
        let model = geometry.model_in_float64(0);
        let untuned = model.parameters().snapshot().unwrap();
        let before = first_weight(&*model);
        for (_, parameter) in model.parameters().iter() {
            let doubled = parameter.tensor.affine(2.0, 0.0).unwrap();
            parameter.tensor.slice_set(&doubled, 0, 0).unwrap();
        }
        let after = first_weight(&*model);
        let seen = RefCell::new(Vec::new());
        let evaluation = Evaluation {
            model: &*model,
            setting: Setting { tokenizer: None, context: model.context(), seed: 0, counterfactuals: false },
            batch_size: 2,
            report: &|_| seen.borrow_mut().push(first_weight(&*model)),
            peers: &Alone,
            folder: None,
            untuned: Some(&untuned),
            circuit: None,
        };
        let metric: Box<dyn MeasuringMetric> =
            plugin("kl_divergence", &format!("positions = '{positions}'"));
        metric.measure(&evaluation, &examples).unwrap();
        let batches = examples.len().div_ceil(2);
        prop_assert_eq!(seen.take(), [vec![before; batches], vec![after; batches]].concat());
        prop_assert_eq!(first_weight(&*model), after);
    }

    /// Of an embedding, too, whose rows occur several times or never, in several batches.
    #[test]
    fn gradients_of_some_rows_are_those_of_all(
        geometry in geometries(),
        examples in examples(2..6),
        metric in prop::sample::select(vec!["loss", "logit_diff"]),
        seed in any::<u64>(),
    ) {
        let model = geometry.model(5);
        let metric: Box<dyn PatchingMetric> = plugin(metric, "");
        let parameters = model.parameters();
        let picked = |id: usize, row: usize| (seed >> ((7 * id + row) % 60)) & 1 == 1;
        let gradients = |selection: Selection| {
            let mut gradients = Gradients::new(parameters, selection);
            for examples in examples.chunks(2) {
                let batch = Batch::new(examples.iter().collect(), &model.device()).unwrap();
                let pass = Pass::with_gradients(&model.device()).unwrap();
                let readout = model.forward(&pass, &batch.tokens).unwrap();
                let sum = metric.sum(&readout, &batch).unwrap();
                pass.backward(&sum, &mut |left| gradients.accumulate(&left)).unwrap();
            }
            gradients
        };
        let all = gradients(Selection::rows_where(parameters, |_, _| true));
        let some = gradients(Selection::rows_where(parameters, |id, row| picked(id.0, row)));
        for (id, parameter) in parameters.iter() {
            let rows = |gradients: &Gradients| -> Option<Vec<Vec<f64>>> {
                let rows = gradients.get(id)?.to_dtype(circuit_framework::candle_core::DType::F64);
                Some(rows.unwrap().to_vec2().unwrap())
            };
            let expected = rows(&all).map(|rows| {
                let rows = rows.into_iter().enumerate();
                rows.filter(|(row, _)| picked(id.0, *row)).map(|(_, row)| row).collect::<Vec<_>>()
            });
            let got = rows(&some).unwrap_or_default();
            let expected = expected.unwrap_or_default();
            let none = || expected.iter().flatten().all(|&entry| entry == 0.0);
            prop_assert!(got == expected || (got.is_empty() && none()), "{}", parameter.name);
        }
    }
}
