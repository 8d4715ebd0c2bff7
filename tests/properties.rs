//! What must hold for every model, circuit and setting, tried on random ones.

use std::collections::BTreeSet;

use circuit_framework::attribution::{Ablation, Discovery, MethodChoice, Positions, discover};
use circuit_framework::graph::pruning::Pruning;
use circuit_framework::peers::Alone;
use circuit_framework::tuning::{Algorithm, Objective, Tuner, Tuning};
use circuit_framework::{
    Batch, Device, Example, Model, ParamSelector, Pass, PatchingMetric, Result, Scores, progress,
};
use proptest::prelude::*;

use crate::support::{Geometry, examples, few, geometries, plugin, weights};

fn discovery(
    method: &str,
    ablation: Ablation,
    positions: Positions,
    batch_size: usize,
) -> Discovery {
    let method = MethodChoice::named(method);
    Discovery { method, ablation, positions, batch_size, ig_steps: 3, ..Discovery::default() }
}

fn ways() -> impl Strategy<Value = (&'static str, Ablation, Positions, &'static str)> {
    (
        prop::sample::select(vec![
            "eap",
            "eap-ig",
            "clean-corrupted",
            "eap-ig-activations",
            "relp",
        ]),
        prop::sample::select(vec![
            Ablation::Mean,
            Ablation::MeanPositional,
            Ablation::Zero,
            Ablation::Corrupt,
        ]),
        prop::sample::select(vec![Positions::Key, Positions::All]),
        prop::sample::select(vec!["logit_diff", "log_prob_diff", "loss"]),
    )
}

/// The largest difference as a share of the largest score. Where all scores are nothing but rounding, as
/// when a mean is over one example, they are no different.
pub fn distance(a: &Scores, b: &Scores) -> f32 {
    let largest = a.values.iter().fold(1e-9f32, |largest, score| largest.max(score.abs()));
    let difference = a.values.iter().zip(&b.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    difference / largest
}

pub fn find(model: &dyn Model, examples: &[Example], metric: &str, options: &Discovery) -> Scores {
    let metric: Box<dyn PatchingMetric> = plugin(metric, "");
    let all: Vec<&Example> = examples.iter().collect();
    discover(model, &all, &*metric, options, &Alone, &progress::silent).unwrap().scores
}

proptest! {
    #![proptest_config(few(24))]

    /// A score is in the metric's unit: examples that are there twice change nothing.
    #[test]
    fn doubling_the_examples_changes_no_score(
        geometry in geometries(),
        examples in examples(1..4),
        (method, ablation, positions, metric) in ways(),
    ) {
        let model = geometry.model_in_float64(1);
        let options = discovery(method, ablation, positions, 16);
        let once = find(&*model, &examples, metric, &options);
        let twice = find(&*model, &[&examples[..], &examples].concat(), metric, &options);
        prop_assert!(distance(&once, &twice) < 1e-5, "{}", distance(&once, &twice));
    }

    /// How the examples are split into batches, and so how they are padded, changes no score.
    #[test]
    fn batches_and_padding_change_nothing(
        geometry in geometries(),
        examples in examples(2..6),
        (method, ablation, positions, metric) in ways(),
        extra in 0..5usize,
    ) {
        let model = geometry.model(1);
        let one = find(&*model, &examples, metric, &discovery(method, ablation, positions, 1));
        let all = find(&*model, &examples, metric, &discovery(method, ablation, positions, 100));
        let some = find(&*model, &examples, metric, &discovery(method, ablation, positions, 2));
        prop_assert!(distance(&one, &all) < 1e-3, "{}", distance(&one, &all));
        prop_assert!(distance(&one, &some) < 1e-3, "{}", distance(&one, &some));
        // Logits at real tokens are the same behind whatever padding.
        let batch = Batch::new(examples.iter().collect(), &Device::Cpu).unwrap();
        let mut longer = examples[0].clone();
        longer.tokens.resize(batch.seq + extra, 1);
        let padded = Batch::new(examples.iter().chain([&longer]).collect(), &Device::Cpu).unwrap();
        let logits = |batch: &Batch| {
            let readout = model.forward(&Pass::forward_only(), &batch.tokens).unwrap();
            let rows: Vec<u32> = (examples.iter().enumerate())
                .flat_map(|(index, example)| (0..example.tokens.len()).map(move |position| (index, position)))
                .map(|(index, position)| batch.row(index, position))
                .collect();
            readout.logits(&rows).unwrap()
        };
        let difference = (logits(&batch) - logits(&padded)).unwrap().abs().unwrap();
        let worst = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
        prop_assert!(worst < 1e-3, "{worst}");
    }
}

pub fn tune(
    model: &dyn Model,
    examples: &[Example],
    selector: &str,
    metric: &str,
    tuning: &Tuning,
) -> Result<BTreeSet<String>> {
    let metric: Box<dyn PatchingMetric> = plugin(metric, "");
    let selector: Box<dyn ParamSelector> = plugin(selector, "");
    let tuner = Tuner {
        model,
        metric: &*metric,
        selector: &*selector,
        discovery: &Discovery {
            activation_checkpointing: tuning.activation_checkpointing,
            ..Discovery::default()
        },
        pruning: &Pruning { top_n: Some(2.min(model.graph().edge_count())), ..Pruning::default() },
        tuning,
        matched: None,
        seed: 7,
        peers: &Alone,
    };
    let tuned = tuner.run(examples, &mut |_| Ok(()))?;
    let mut entries = BTreeSet::new();
    for (id, parameter) in model.parameters().iter() {
        for row in tuned.tuned.ranges(id).iter().cloned().flatten() {
            entries.insert(format!("{}#{row}", parameter.name));
        }
    }
    Ok(entries)
}

pub fn geometry_with_edges() -> impl Strategy<Value = Geometry> {
    geometries()
        .prop_filter("tuning needs two edges", |geometry| geometry.layers > 1 || geometry.heads > 1)
}

proptest! {
    #![proptest_config(few(24))]

    /// What no step selected is bit for bit what it was; of what was selected, something moved.
    #[test]
    fn entries_outside_the_selection_stay(
        geometry in geometry_with_edges(),
        examples in examples(3..6),
        selector in prop::sample::select(vec!["nodes", "modules", "all", "random", "random_parameters"]),
        optimizer in prop::sample::select(vec![Algorithm::Sgd, Algorithm::Adam, Algorithm::AdamW]),
    ) {
        let model = geometry.model(2);
        let before = model.parameters().snapshot().unwrap();
        let tuning = Tuning { steps: Some(3), batch_size: 2, optimizer, weight_decay: 0.1, lr: 0.01, ..Tuning::default() };
        let selected = tune(&*model, &examples, selector, "logit_diff", &tuning).unwrap();
        let mut moved = 0;
        for ((_, parameter), before) in model.parameters().iter().zip(&before) {
            let rows = |tensor: &circuit_framework::Tensor| tensor.to_vec2::<f32>().unwrap();
            for (row, (before, after)) in rows(before).iter().zip(rows(&parameter.tensor)).enumerate() {
                let same = before.iter().zip(&after).all(|(a, b)| a.to_bits() == b.to_bits());
                if selected.contains(&format!("{}#{row}", parameter.name)) {
                    moved += usize::from(!same);
                } else {
                    prop_assert!(same, "{} row {row} is not selected", parameter.name);
                }
            }
        }
        prop_assert!(moved > 0);
    }

    /// Micro-batches add up to the batch: loss, regulariser and clipping included.
    #[test]
    fn micro_batches_equal_the_batch(
        geometry in geometry_with_edges(),
        examples in examples(4..5),
        objective in prop::sample::select(vec![
            Objective::Standard, Objective::Weighted, Objective::Alone, Objective::Set,
        ]),
        metric in prop::sample::select(vec!["logit_diff", "loss"]),
    ) {
        // SGD, because Adam makes whole steps of rounding differences in vanishing gradients.
        let tuning = |micro_batch_size| Tuning {
            steps: Some(2), batch_size: 4, micro_batch_size, objective, key_weight_p: 0.5,
            metric_penalty: 0.3, max_grad_norm: Some(0.5), optimizer: Algorithm::Sgd, lr: 0.1, ..Tuning::default()
        };
        let run = |micro_batch_size| {
            let model = geometry.model(3);
            // All rows, so that no near tie between edges decides what is tuned.
            tune(&*model, &examples, "all", metric, &tuning(micro_batch_size)).unwrap();
            weights(&*model)
        };
        let start = weights(&*geometry.model(3));
        let (whole, parts) = (run(None), run(Some(1)));
        let (mut largest, mut worst) = (0f32, 0f32);
        for (name, whole) in &whole {
            for ((a, b), start) in whole.iter().zip(&parts[name]).zip(&start[name]) {
                largest = largest.max((a - start).abs());
                worst = worst.max((a - b).abs());
            }
        }
        prop_assert!(worst <= 2e-3 * largest, "{worst} of {largest}");
    }
}

proptest! {
    #![proptest_config(few(24))]

    /// Activations that are formed again are the same bits, and so is all that comes of them.
    #[test]
    fn activation_checkpointing_changes_no_bit(
        geometry in geometry_with_edges(),
        examples in examples(2..6),
        (method, ablation, positions, metric) in ways(),
        selector in prop::sample::select(vec!["nodes", "all"]),
    ) {
        let scores = |activation_checkpointing| {
            let options = Discovery {
                activation_checkpointing,
                ..discovery(method, ablation, positions, 4)
            };
            let found = find(&*geometry.model(1), &examples, metric, &options);
            found.values.iter().map(|score| score.to_bits()).collect::<Vec<_>>()
        };
        prop_assert_eq!(scores(false), scores(true));
        let tuned = |activation_checkpointing| {
            let model = geometry.model(1);
            let tuning = Tuning {
                steps: Some(2), batch_size: 4, activation_checkpointing, ..Tuning::default()
            };
            tune(&*model, &examples, selector, metric, &tuning).unwrap();
            let weights = weights(&*model);
            let bits = |values: &Vec<f32>| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            weights.iter().map(|(name, values)| (name.clone(), bits(values))).collect::<Vec<_>>()
        };
        prop_assert_eq!(tuned(false), tuned(true));
    }
}

/// Rerunning gives the same bits, on one thread or two.
#[test]
fn results_are_the_same_bits_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let run = |threads: &str, arguments: &[&str], out: &str| {
        let out = folder.path().join(format!("{threads} {out}"));
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_circuit-tuning"))
            .args(arguments)
            .arg(&out)
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        out
    };
    let scores = |threads| {
        let discover = [
            "discover",
            "--force",
            "--set",
            "task.train_examples=64",
            "--positions",
            "all",
            "--scores",
        ];
        std::fs::read(run(threads, &discover, "scores.safetensors")).unwrap()
    };
    let one = scores("1");
    assert!(one == scores("2") && one == scores("2"), "the scores' files differ");
    let weights = |threads| {
        let tune = ["tune", "--steps", "3", "--batch-size", "64", "--out"];
        std::fs::read(run(threads, &tune, "run").join("model/model.safetensors")).unwrap()
    };
    assert!(weights("1") == weights("2"), "the tuned weights differ");
}
