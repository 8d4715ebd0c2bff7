//! Numbers that aren't finite: refused as settings, caught in tuning and in results, and where they are
//! a result's own value, shown as such.

use std::path::Path;

use circuit_framework::Model;
use circuit_framework::peers::Alone;
use circuit_framework::tuning::{Algorithm, Event, Tuner, Tuning};
use circuit_framework::{ParamSelector, PatchingMetric};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::command_line::{json, program, refuses, succeeds, words};
use crate::properties::geometry_with_edges;
use crate::support::{at, examples, few, load, plugin};

/// Saves the embedded model with all values of one parameter, or of all, multiplied.
fn save_scaled(to: &Path, parameter: Option<&str>, factor: f64) {
    let loaded = load(at(Path::new("embedded")));
    let parameters = loaded.model.parameters();
    let mut found = false;
    for (_, tensor) in parameters.iter() {
        if parameter.is_none_or(|name| tensor.name == name) {
            let scaled = tensor.tensor.affine(factor, 0.0).unwrap();
            tensor.tensor.slice_set(&scaled, 0, 0).unwrap();
            found = true;
        }
    }
    assert!(found, "{parameter:?}");
    circuit_models::save(to, &*loaded.model, loaded.tokenizer.as_ref()).unwrap();
}

/// Every weight of a saved model is a finite number.
fn is_finite(folder: &Path) -> bool {
    let model = load(at(folder)).model;
    crate::support::weights(&*model).values().flatten().all(|weight| weight.is_finite())
}

#[test]
fn settings_that_are_not_finite_or_out_of_range_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let shown = |value: &str| format!(" is {};", value.replace("nan", "NaN"));
    let refused = |setting: &str, value: &str, right: &str| {
        let set = format!("{setting}={value}");
        let arguments = [&words("tune --steps 1 --out out --set")[..], &[&set]].concat();
        refuses(here, &arguments, &[setting, &shown(value), right]);
        assert!(!here.join("out").exists(), "{set}: something was written");
    };
    let from_zero = "a finite number from 0 up";
    for name in ["lr", "eps", "weight_decay", "metric_penalty"] {
        for value in ["nan", "inf", "-0.5"] {
            refused(&format!("tuning.{name}"), value, from_zero);
        }
    }
    for name in ["lr_decay", "key_weight_p", "max_grad_norm"] {
        for value in ["nan", "inf", "0", "-0.5"] {
            refused(&format!("tuning.{name}"), value, "a finite number above 0");
        }
    }
    for name in ["momentum", "beta1", "beta2"] {
        for value in ["nan", "inf", "1", "-0.5"] {
            refused(&format!("tuning.{name}"), value, "from 0 to below 1");
        }
    }
    for value in ["nan", "inf", "-0.5"] {
        refused("pruning.threshold", value, from_zero);
        let set = format!("pruning.threshold={value}");
        let discover = ["discover", "--circuit", "c.json", "--set", &set];
        refuses(here, &discover, &["pruning.threshold", &shown(value), from_zero]);
        assert!(!here.join("c.json").exists());
    }
    for (smoothing, name) in
        [("beta1 = nan, beta2 = 0.5", "beta1"), ("beta1 = 0.5, beta2 = 1.0", "beta2")]
    {
        let set = format!("tuning.smoothing={{ {smoothing} }}");
        refuses(
            here,
            &["tune", "--out", "out", "--set", &set],
            &[&format!("tuning.smoothing.{name}"), "from 0 to below 1"],
        );
    }
    let schedule = "tuning.top_n_schedule={ start = 0, steps = 2 }";
    refuses(here, &["tune", "--out", "out", "--set", schedule], &["top_n_schedule.start is 0"]);
    assert!(!here.join("out").exists());
}

#[test]
fn an_update_that_would_leave_no_numbers_is_undone_at_the_last_step_too() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let parts = ["no finite number after the update at step 0", "lower lr"];
    for optimizer in ["sgd", "adam", "adamw"] {
        for selector in ["nodes", "lora"] {
            let out = format!("{optimizer}-{selector}");
            let line = format!(
                "tune --steps 1 --lr 1e300 --optimizer {optimizer} --selector {selector} --out {out}"
            );
            refuses(here, &words(&line), &parts);
            let saved = load(at(&here.join(&out).join("model"))).model;
            let before = load(at(Path::new("embedded"))).model;
            let weights = crate::support::weights;
            assert_eq!(weights(&*saved), weights(&*before), "{out}");
            assert_eq!(here.join(&out).join("adapter").exists(), selector == "lora");
        }
    }
}

/// B of 1e30 and α of 1e10 are numbers, and what they amount to is none in float32.
#[test]
fn an_adapter_too_large_to_be_merged_is_saved_and_leaves_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let line = "tune --selector lora --set selector.alpha=1e10 --lr 1e30 --steps 2 --dtype float32 \
                --out out";
    refuses(here, &words(line), &["is as step"]);
    let adapter = here.join("out/adapter/adapter_model.safetensors");
    let tensors =
        circuit_framework::candle_core::safetensors::load(adapter, &circuit_framework::Device::Cpu)
            .unwrap();
    for tensor in tensors.values() {
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        assert!(values.iter().all(|value| value.is_finite()));
    }
    assert!(!here.join("out/model").exists());
    refuses(here, &words("eval --set model.adapter='out/adapter'"), &["not finite"]);
}

proptest! {
    #![proptest_config(few(48))]

    /// Whatever the settings: every step leaves finite numbers, and a failed one what it found.
    #[test]
    fn tuning_leaves_finite_numbers(
        geometry in geometry_with_edges(),
        examples in examples(2..4),
        optimizer in prop::sample::select(vec![Algorithm::Sgd, Algorithm::Adam, Algorithm::AdamW]),
        (lr, weight_decay, eps) in (-3..45i32, -5..45i32, -60..3i32),
        (momentum, beta2) in (prop::sample::select(vec![0.0, 0.9]), prop::sample::select(vec![0.0, 0.999])),
        float64 in any::<bool>(),
    ) {
        let model: Box<dyn Model> = match float64 {
            true => geometry.model_in_float64(4),
            false => geometry.model_in(4, circuit_framework::model::Precision::Float32),
        };
        let metric: Box<dyn PatchingMetric> = plugin("logit_diff", "");
        let selector: Box<dyn ParamSelector> = plugin("all", "");
        let power = |exponent: i32| 10f64.powi(exponent);
        let tuning = Tuning {
            steps: Some(4), batch_size: 2, optimizer, momentum, beta1: momentum, beta2,
            lr: power(lr), weight_decay: power(weight_decay), eps: if eps < -50 { 0.0 } else { power(eps) },
            ..Tuning::default()
        };
        let tuner = Tuner {
            model: &*model, metric: &*metric, selector: &*selector, discovery: &Default::default(),
            pruning: &Default::default(), tuning: &tuning, matched: None, seed: 0, peers: &Alone,
        };
        let values = || crate::support::weights(&*model);
        let mut found = values();
        let tuned = tuner.run(&examples, &mut |event| {
            if let Event::Step { .. } = event {
                found = values();
            }
            Ok(())
        });
        prop_assert!(found.values().flatten().all(|weight| weight.is_finite()));
        prop_assert_eq!(&values(), &found);
        if let Err(error) = tuned {
            prop_assert!(error.to_string().contains("is as step"), "{error}");
        }
    }
}

#[test]
fn results_that_are_no_numbers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    save_scaled(&here.join("huge"), None, 1e30);
    let evaluated = words("eval --model huge --dtype float32 --set task.test_examples=8 --json");
    refuses(here, &evaluated, &["`logit_diff` is NaN"]);
    let output = program(here, &evaluated);
    assert!(output.stdout.is_empty(), "{output:?}");
    refuses(
        here,
        &words("discover --model huge --dtype float32 --scores s.safetensors --circuit c.json"),
        &["the metric is NaN"],
    );
    assert!(!here.join("s.safetensors").exists() && !here.join("c.json").exists());
}

/// A perplexity is infinite where the loss is above 709.
#[test]
fn an_infinite_figure_is_shown_as_such_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    save_scaled(&here.join("sure"), Some("transformer.ln_f.weight"), 1e4);
    let shown = succeeds(here, &words("eval --model sure --json"));
    let figures: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(figures["perplexity"], "Infinity");
    assert!(figures["loss"].as_f64().unwrap() > 709.0);
    let experiment = "
        [model]
        path = 'sure'
        [task]
        name = 'agreement'
        train_examples = 16
        test_examples = 8
        [tuning]
        steps = 2
        evaluate_every = 1
    ";
    std::fs::write(here.join("mine.toml"), experiment).unwrap();
    let shown = succeeds(here, &words("run mine.toml --out out --set controls.kinds=['random']"));
    let line = shown.lines().find(|line| line.starts_with("perplexity")).unwrap();
    assert_eq!(words(line)[1..], ["inf", "inf", "inf"], "{shown}");
    let summary = json(&here.join("out/summary.json"));
    let control = &summary["controls"]["kinds"][0];
    for figures in [&summary["before"], &summary["after"], &control["after"]["mean"]] {
        assert_eq!(figures["perplexity"], "Infinity");
    }
    assert_eq!(control["difference"]["mean"]["perplexity"], "NaN");
    let evaluations = std::fs::read_to_string(here.join("out/evaluations.jsonl")).unwrap();
    assert_eq!(evaluations.matches("\"perplexity\":\"Infinity\"").count(), 2, "{evaluations}");
    let table = succeeds(here, &words("compare out --json rows.json"));
    assert_eq!(table.matches(" inf ").count(), 3, "{table}");
    assert_eq!(json(&here.join("rows.json"))[0]["figures"]["perplexity"], "Infinity");

    std::fs::write(here.join("many.toml"), format!("{experiment}\n[sweep]\nseeds = [0, 1]\n"))
        .unwrap();
    for _ in ["run", "read what was run"] {
        let shown = succeeds(here, &words("run many.toml --out many"));
        assert!(shown.contains("2/2 seed1") && shown.contains(" inf "), "{shown}");
    }
    // A figure of an older summary, where null stood for what isn't finite.
    let mut summary = json(&here.join("out/summary.json"));
    summary["after"]["perplexity"] = json!(null);
    summary.as_object_mut().unwrap().remove("controls");
    std::fs::write(here.join("out/summary.json"), summary.to_string()).unwrap();
    assert!(succeeds(here, &words("compare out")).contains("NaN"));
}

/// The first of three runs diverges.
#[test]
fn a_run_of_a_sweep_that_fails_is_shown_as_failed_and_the_others_are_run() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    save_scaled(&here.join("huge"), None, 1e30);
    let experiment = "
        [model]
        dtype = 'float32'
        [task]
        name = 'agreement'
        train_examples = 16
        test_examples = 8
        [tuning]
        steps = 1
        [sweep]
        models = [{ path = 'huge', dtype = 'float32' }, 'embedded']
        selectors = ['all', 'random']
    ";
    std::fs::write(here.join("many.toml"), experiment).unwrap();
    let arguments = words("run many.toml --out many");
    refuses(here, &arguments, &["2 of 4 runs failed: huge-all, huge-random", "many/failed.json"]);
    let failed = json(&here.join("many/failed.json"));
    assert_eq!(failed[0]["name"], "huge-all");
    assert!(failed[0]["reason"].as_str().unwrap().contains("NaN at step 0"), "{failed}");
    let rows = json(&here.join("many/compare.json"));
    let names: Vec<&str> =
        rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["huge-all", "huge-random", "untuned", "embedded-all", "embedded-random"]);
    assert_eq!(rows[0]["error"], failed[0]["reason"]);
    let table = std::fs::read_to_string(here.join("many/compare.md")).unwrap();
    let line = table.lines().find(|line| line.contains("huge-all ")).unwrap();
    assert!(words(line).contains(&"failed"), "{table}");
    assert!(table.contains("huge-all failed: the loss is NaN at step 0"), "{table}");
    // Run again, what failed is tried again, and what is done stays.
    let shown = String::from_utf8(program(here, &arguments).stdout).unwrap();
    assert_eq!(shown.matches("done before").count(), 2, "{shown}");
    assert_eq!(shown.matches("    failed: ").count(), 2, "{shown}");
    assert!(is_finite(&here.join("many/embedded-all/model")));
}
