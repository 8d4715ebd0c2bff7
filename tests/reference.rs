//! The reference cases: numbers computed in float64 by a slow, explicit implementation that agrees
//! with Hugging Face, with the published circuit-tuning code and with EAP-IG. Their definition is
//! in tests/reference/README.md.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::DType;
use circuit_framework::attribution::{Discovered, Discovery, discover};
use circuit_framework::model::Precision;
use circuit_framework::ops::composed::everywhere;
use circuit_framework::peers::Alone;
use circuit_framework::run::experiment::ModelChoice;
use circuit_framework::tuning::{Event, Step, Tuner, Tuning};
use circuit_framework::{
    Device, Example, Model, ParamSelector, Pass, PatchingMetric, Pruning, Setting, Split, Task,
    Tensor, plugin::registry,
};
use serde_json::Value;

use crate::support::{at, load, weights};

/// A case's files.
pub struct Case {
    folder: PathBuf,
    settings: Value,
    expected: Value,
    tensors: std::collections::HashMap<String, Tensor>,
}

impl Case {
    pub fn open(folder: PathBuf) -> Self {
        let json = |name: &str| -> Value {
            serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
        };
        let file = folder.join("expected.safetensors");
        Self {
            settings: json("settings.json"),
            expected: json("expected.json"),
            tensors: candle_core::safetensors::load(file, &Device::Cpu).unwrap(),
            folder,
        }
    }

    /// A tensor of what is expected.
    pub fn tensor(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    /// The examples as they stand in the file.
    pub fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.join("examples.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn small(name: &str) -> Self {
        Self::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(name))
    }

    fn model(&self, dtype: Precision) -> Box<dyn Model> {
        let width = self.settings["mlp_head_width"].as_i64();
        let width = width.map(|width| ("mlp_head_width".to_owned(), width.into()));
        let options = toml::Table::from_iter(width);
        load(ModelChoice { dtype, options, ..at(&self.folder.join("model")) }).model
    }

    pub fn examples(&self) -> Vec<Example> {
        let options = toml::Table::from_iter([(
            "data".to_owned(),
            self.folder.join("examples.jsonl").to_string_lossy().into_owned().into(),
        )]);
        let task = registry::find::<dyn Task>("tokens").unwrap().build(&options).unwrap();
        let setting = Setting { tokenizer: None, context: 32, seed: 0, counterfactuals: false };
        task.load(Split::Train, &setting).unwrap().examples().to_vec()
    }

    pub fn metric(&self) -> Box<dyn PatchingMetric> {
        let name = self.settings["metric"].as_str().unwrap();
        registry::find::<dyn PatchingMetric>(name).unwrap().build(&toml::Table::new()).unwrap()
    }

    /// The settings that a serde struct knows, under its own names.
    fn options<T: serde::de::DeserializeOwned>(&self, names: &[&str]) -> T {
        let settings = self.settings.as_object().unwrap();
        let known = settings.iter().filter(|(name, _)| names.contains(&name.as_str()));
        serde_json::from_value(Value::Object(known.map(|(k, v)| (k.clone(), v.clone())).collect()))
            .unwrap()
    }

    pub fn discovery(&self, batch_size: usize) -> Discovery {
        Discovery {
            batch_size,
            ..self.options(&["method", "ig_steps", "ablation", "positions", "nodes"])
        }
    }

    pub fn check_scores(&self, found: &Discovered, tolerance: f64) {
        let metric = self.expected["metric"].as_f64().unwrap();
        assert!(
            (found.metric - metric).abs() <= tolerance * metric.abs().max(1.0),
            "metric {} for {metric}",
            found.metric
        );
        let graph = &found.scores.graph;
        if let Some(edges) = self.expected["n_edges"].as_u64() {
            assert_eq!(graph.edge_count() as u64, edges);
        }
        let names = |key: &str| -> Vec<String> {
            (self.expected[key].as_array().unwrap().iter())
                .map(|name| name.as_str().unwrap().to_owned())
                .collect()
        };
        let (upstream, downstream) = (names("upstream"), names("downstream"));
        assert_eq!(graph.writers().len(), upstream.len());
        assert_eq!(graph.readers().len(), downstream.len());
        let expected = self.tensors["scores"].to_vec2::<f32>().unwrap();
        let largest = expected.iter().flatten().fold(0f32, |a, b| a.max(b.abs()));
        let mut worst = 0f32;
        for (u, writer) in upstream.iter().enumerate() {
            for (d, reader) in downstream.iter().enumerate() {
                let score =
                    found.scores.of(graph.writer(writer).unwrap(), graph.reader(reader).unwrap());
                worst = worst.max((score - expected[u][d]).abs());
            }
        }
        assert!(
            f64::from(worst) <= tolerance * f64::from(largest),
            "scores differ by {:e} of the largest",
            worst / largest
        );
    }

    /// The best edges in order, up to swaps of edges whose scores differ by less than rounding.
    fn check_top(&self, found: &Discovered, key: &str, rule: &str) {
        let Some(expected) = self.expected[key].as_array() else { return };
        let pruning: Pruning = serde_json::from_value(serde_json::json!({ "rule": rule })).unwrap();
        let circuit = pruning.prune(&found.scores, &found.scores.magnitudes(), expected.len());
        for (edge, expected) in circuit.edges.iter().zip(expected) {
            let names = [edge.writer.to_string(), edge.reader.to_string()];
            assert_eq!(
                Value::from(names.to_vec()),
                Value::from(&expected.as_array().unwrap()[..2]),
                "{key}"
            );
        }
    }

    /// Hugging Face's logits, where the case has them.
    fn check_logits(&self, model: &dyn Model, examples: &[Example]) {
        let Some(expected) = self.tensors.get("logits") else { return };
        for (index, example) in examples.iter().enumerate() {
            let tokens =
                Tensor::new(&example.tokens[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let readout = model.forward(&Pass::forward_only(), &tokens).unwrap();
            let rows: Vec<u32> = (0..example.tokens.len() as u32).collect();
            let logits = readout.logits(&rows).unwrap().to_dtype(DType::F32).unwrap();
            let difference = (logits - expected.get(index).unwrap()).unwrap();
            let worst = difference.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(worst < 1e-4, "logits of example {index} differ by {worst}");
        }
    }
}

/// As a user runs it and in float32 to the agreement asked for; in float64 to what the expected
/// scores' float32 can hold.
fn discovers(name: &str) {
    discovers_in(name, Precision::Auto, 1e-5);
    // Differences of two metrics, each of which float32 rounds.
    let float32 = if name == "eval-gpt2-exact" { 3e-5 } else { 1e-5 };
    discovers_in(name, Precision::Float32, float32);
    discovers_in(name, Precision::Float64, 2e-7);
    // As on a GPU.
    everywhere(|| {
        discovers_in(name, Precision::Float32, float32);
        discovers_in(name, Precision::Float64, 2e-7);
    });
}

fn discovers_in(name: &str, precision: Precision, tolerance: f64) {
    let case = Case::small(name);
    let model = case.model(precision);
    let examples = case.examples();
    case.check_logits(&*model, &examples);
    let metric = case.metric();
    // The scores do not depend on how the examples are split into batches.
    for batch_size in [1, 3, 100] {
        let options = case.discovery(batch_size);
        options.check(&*model, &examples, &*metric, None).unwrap();
        let all: Vec<&Example> = examples.iter().collect();
        let found = discover(
            &*model,
            &all,
            &*metric,
            &options,
            &Alone,
            &circuit_framework::progress::silent,
        )
        .unwrap();
        case.check_scores(&found, tolerance);
        case.check_top(&found, "top_edges", "top_edges");
        case.check_top(&found, "top_nodes", "top_nodes");
    }
}

/// As a user runs it and in float32 to the agreement asked for; in float64 to a hundredth of it.
fn tunes(name: &str) {
    tunes_in(name, Precision::Auto, 1e-3);
    tunes_in(name, Precision::Float64, 1e-5);
    tunes_in(name, Precision::Float32, 2e-3);
    everywhere(|| tunes_in(name, Precision::Float64, 1e-5));
}

fn tunes_in(name: &str, precision: Precision, tolerance: f32) {
    let case = Case::small(name);
    let model = case.model(precision);
    let before = weights(&*model);
    let metric = case.metric();
    let selector = case.settings["selector"].as_str().unwrap();
    let selector = registry::find::<dyn ParamSelector>(selector).unwrap();
    let selector = selector.build(&toml::Table::new()).unwrap();
    let tuning: Tuning = Tuning {
        shuffle: false,
        ..case.options(&[
            "steps",
            "batch_size",
            "optimizer",
            "lr",
            "momentum",
            "beta1",
            "beta2",
            "eps",
            "weight_decay",
            "warmup_steps",
            "max_grad_norm",
            "objective",
            "key_weight_p",
        ])
    };
    let pruning: Pruning = serde_json::from_value(serde_json::json!({
        "rule": case.settings["prune"], "top_n": case.settings["top_n"],
    }))
    .unwrap();
    let tuner = Tuner {
        model: &*model,
        metric: &*metric,
        selector: &*selector,
        discovery: &case.discovery(16),
        pruning: &pruning,
        tuning: &tuning,
        matched: None,
        seed: 0,
        peers: &Alone,
    };
    let mut steps: Vec<Step> = Vec::new();
    (tuner.run(&case.examples(), &mut |event| {
        if let Event::Step { step, .. } = event {
            steps.push(step.clone());
        }
        Ok(())
    }))
    .unwrap();
    let expected = |key: &str| -> Vec<f64> {
        case.expected[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let close = |found: f64, expected: f64| (found - expected).abs() <= 1e-4 * expected.abs();
    for (step, loss) in steps.iter().zip(expected("losses")) {
        assert!(close(step.loss, loss), "loss {} for {loss} at step {}", step.loss, step.step);
    }
    for (step, norm) in steps.iter().zip(expected("gradient_norms")) {
        assert!(
            close(step.gradient_norm, norm),
            "norm {} for {norm} at step {}",
            step.gradient_norm,
            step.step
        );
    }
    let tuned: Vec<f64> = steps.iter().map(|step| step.tuned_parameters as f64).collect();
    assert_eq!(tuned, expected("tuned_parameters"));
    check_weights(&before, &weights(&*model), &case.tensors, tolerance);
}

/// Tuned weights within `tolerance` of the largest change of any weight; what is not tuned, bit for bit.
fn check_weights(
    before: &BTreeMap<String, Vec<f32>>,
    after: &BTreeMap<String, Vec<f32>>,
    expected: &std::collections::HashMap<String, Tensor>,
    tolerance: f32,
) {
    let (mut largest, mut worst) = (0f32, 0f32);
    for (name, before) in before {
        let expected = expected[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for ((before, after), expected) in before.iter().zip(&after[name]).zip(&expected) {
            largest = largest.max((expected - before).abs());
            worst = worst.max((expected - after).abs());
            if expected == before {
                assert_eq!(
                    after.to_bits(),
                    before.to_bits(),
                    "{name} is not tuned in the reference"
                );
            }
        }
    }
    let difference = worst / largest;
    assert!(difference <= tolerance, "weights differ by {difference:e} of the largest change");
}

macro_rules! cases {
    ($check:ident: $($test:ident = $name:literal),* $(,)?) => {
        $(#[test] fn $test() { $check($name) })*
    };
}

cases!(discovers:
    eval_gpt2_exact = "eval-gpt2-exact",
    gemma2_all_mean = "gemma2-all-mean",
    gemma3_key_corrupt = "gemma3-key-corrupt",
    gpt2_all_mean = "gpt2-all-mean",
    gpt2_all_mean_positional = "gpt2-all-mean-positional",
    gpt2_all_zero_loss = "gpt2-all-zero-loss",
    gpt2_clean_corrupted = "gpt2-clean-corrupted",
    gpt2_eap_ig = "gpt2-eap-ig",
    gpt2_eap_ig_activations = "gpt2-eap-ig-activations",
    gpt2_key_corrupt = "gpt2-key-corrupt",
    gpt2_key_mean = "gpt2-key-mean",
    gpt2_key_zero = "gpt2-key-zero",
    gpt2_lengths_all = "gpt2-lengths-all",
    gpt2_lengths_key = "gpt2-lengths-key",
    gpt2_relp = "gpt2-relp",
    gpt2_sets = "gpt2-sets",
    gpt_neox_all_mean_positional = "gpt-neox-all-mean-positional",
    llama_all_corrupt = "llama-all-corrupt",
    llama_all_mean_positional_loss = "llama-all-mean-positional-loss",
    llama_key_mean = "llama-key-mean",
    llama_key_mean_positional_lengths = "llama-key-mean-positional-lengths",
    llama_relp = "llama-relp",
    llama_sets = "llama-sets",
    llama_tied_lengths = "llama-tied-lengths",
    mistral_all_zero_loss = "mistral-all-zero-loss",
    olmo2_eap_ig = "olmo2-eap-ig",
    qwen2_key_mean = "qwen2-key-mean",
    qwen3_all_corrupt = "qwen3-all-corrupt",
);

cases!(tunes:
    gemma2_tune_sgd = "gemma2-tune-sgd",
    gpt2_tune_adamw = "gpt2-tune-adamw",
    gpt2_tune_sgd = "gpt2-tune-sgd",
    gpt2_tune_weighted = "gpt2-tune-weighted",
    llama_tune_sgd = "llama-tune-sgd",
    qwen2_tune_sgd = "qwen2-tune-sgd",
);
