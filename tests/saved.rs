//! Folders that are saved, as other programs load them: transformers' logits of tuned models of every family, and
//! configurations that both versions 4 and 5 of it go by.

use std::path::Path;

use serde_json::{Value, json};

use crate::command_line::{succeeds, words};
use crate::models::{json_of, logits, refuses, with_config};
use crate::support::{at, load, repository};

/// The logits of a model after the last of some tokens, by token.
fn last_logits(folder: &Path, model: &Path, tokens: &Value) -> Vec<f64> {
    let ids: Vec<u64> = serde_json::from_value(tokens.clone()).unwrap();
    let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
    let model = model.display();
    let line = format!("logits --model {model} --tokens {} --top 1000 --json", ids.join(","));
    let shown: Value = serde_json::from_str(&succeeds(folder, &words(&line))).unwrap();
    let top = shown["top"].as_array().unwrap().last().unwrap().clone();
    let top: Vec<(usize, f64)> = serde_json::from_value(top).unwrap();
    let mut logits = vec![f64::NAN; top.len()];
    top.into_iter().for_each(|(id, logit)| logits[id] = logit);
    logits
}

/// The largest difference, as a share of the largest of `expected`.
fn difference(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let most = |values: &mut dyn Iterator<Item = f64>| values.map(f64::abs).fold(0.0, f64::max);
    let differences = &mut got.iter().zip(expected).map(|(got, expected)| got - expected);
    most(differences) / most(&mut expected.iter().copied())
}

/// The fixture was made by transformers 5.24.0, which loaded the folders that the same command left:
/// `python tests/tools/round_trips.py --program … --fixture tests/fixtures/saved_logits.json`.
#[test]
fn tuned_models_of_every_family_have_transformers_logits() {
    let fixture = json_of(&repository("tests/fixtures/saved_logits.json"));
    let fixture = fixture.as_object().unwrap();
    assert_eq!(fixture.len(), crate::support::Family::ALL.len());
    let folder = tempfile::tempdir().unwrap();
    for (case, of) in fixture {
        let base = repository("tests/reference").join(case);
        let (model, data) = (base.join("model"), base.join("examples.jsonl"));
        let line = format!(
            "tune --model {} --task tokens --data {} --steps 5 --set tuning.optimizer=sgd --lr 0.1 --top-n 30 --out {case}",
            model.display(),
            data.display()
        );
        succeeds(folder.path(), &words(&line));
        let expected: Vec<f64> = serde_json::from_value(of["logits"].clone()).unwrap();
        let tuned =
            last_logits(folder.path(), &folder.path().join(case).join("model"), &of["tokens"]);
        let untuned = last_logits(folder.path(), &model, &of["tokens"]);
        assert!(difference(&tuned, &expected) < 1e-4, "{case}");
        assert!(difference(&untuned, &expected) > 1e-3, "{case}: tuning changed nothing");
    }
}

/// The configuration that a folder has when it is loaded and saved.
fn saved(folder: &Path) -> Value {
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("saved");
    let model = load(at(folder)).model;
    circuit_models::save(&out, &*model, None).unwrap();
    assert_eq!(logits(&*load(at(&out)).model), logits(&*model));
    json_of(&out.join("config.json"))
}

/// Version 4 reads none of `rope_parameters` and `layer_types`, and says nothing.
#[test]
fn what_transformers_5_saved_is_saved_for_4_too() {
    let spelled = |case: &str, rope: Value, old: &[&str]| {
        let folder = with_config(case, |config| {
            old.iter().for_each(|key| drop(config.as_object_mut().unwrap().remove(*key)));
            config["rope_parameters"] = rope;
        });
        let original = load(at(&repository("tests/reference").join(case).join("model"))).model;
        assert_eq!(logits(&*load(at(folder.path())).model), logits(&*original), "{case}");
        saved(folder.path())
    };
    let plain = |theta: f64| json!({ "rope_type": "default", "rope_theta": theta });
    let qwen2 = spelled("qwen2-tune-sgd", plain(1e6), &["rope_theta"]);
    assert_eq!((&qwen2["rope_theta"], &qwen2["rope_scaling"]), (&json!(1e6), &Value::Null));
    let mut partial = plain(1e4);
    partial["partial_rotary_factor"] = json!(0.25);
    let old = ["rope_theta", "partial_rotary_factor", "rotary_emb_base", "rotary_pct"];
    let gpt_neox = spelled("gpt-neox-all-mean-positional", partial, &old);
    assert_eq!(
        (&gpt_neox["rotary_pct"], &gpt_neox["rotary_emb_base"]),
        (&json!(0.25), &json!(1e4))
    );
    let both = json!({ "full_attention": plain(1e6), "sliding_attention": plain(1e4) });
    let old = ["rope_theta", "rope_local_base_freq"];
    let gemma3 = spelled("gemma3-key-corrupt", both, &old);
    assert_eq!(
        (&gemma3["rope_theta"], &gemma3["rope_local_base_freq"]),
        (&json!(1e6), &json!(1e4))
    );
    // Sliding, sliding, full, sliding.
    assert_eq!(gemma3["sliding_window_pattern"], 3);
    assert_eq!(gemma3["architectures"], json!(["Gemma3ForCausalLM"]));
}

#[test]
fn scaled_frequencies_of_layers_with_a_window_are_refused() {
    let folder = with_config("gemma3-key-corrupt", |config| {
        let linear = json!({ "rope_type": "linear", "factor": 8.0, "rope_theta": 1e4 });
        config["rope_parameters"] = json!({ "full_attention": {}, "sliding_attention": linear });
    });
    refuses(folder.path(), &["config.json", "sliding_attention.rope_type", "linear"]);
}

/// llama.cpp's converter reads GPT-2's context under its older name.
#[test]
fn gpt2_says_its_context_under_both_names() {
    let gpt2 = saved(&repository("tests/reference/gpt2-key-mean/model"));
    assert_eq!(gpt2["n_ctx"], gpt2["n_positions"]);
}
