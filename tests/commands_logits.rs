//! `logits`: the numbers are the reference's, and what can't be run is refused.

use circuit_framework::Device;
use serde_json::{Value, json};

use crate::command_line::{json as read_json, refuses, succeeds, words};
use crate::support::repository;

#[test]
fn logits_and_loss_are_those_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let case = repository("tests/reference/gpt2-key-mean");
    let examples = std::fs::read_to_string(case.join("examples.jsonl")).unwrap();
    let example: Value = serde_json::from_str(examples.lines().next().unwrap()).unwrap();
    let tokens: Vec<usize> = serde_json::from_value(example["tokens"].clone()).unwrap();
    let file = candle_core::safetensors::load(case.join("expected.safetensors"), &Device::Cpu);
    let expected = file.unwrap()["logits"].get(0).unwrap().to_dtype(candle_core::DType::F64);
    let expected: Vec<Vec<f64>> = expected.unwrap().to_vec2().unwrap();
    let ids: Vec<String> = tokens.iter().map(usize::to_string).collect();
    let model = case.join("model");
    let line = format!("logits --model {} --tokens {}", model.display(), ids.join(","));
    let all = format!("{line} --top 1000 --json");
    let shown: Value = serde_json::from_str(&succeeds(folder.path(), &words(&all))).unwrap();
    assert_eq!(shown["tokens"], example["tokens"]);
    let mut loss = 0.0;
    for (position, expected) in expected.iter().enumerate() {
        let top: Vec<(usize, f64)> =
            serde_json::from_value(shown["top"][position].clone()).unwrap();
        assert_eq!(top.len(), expected.len());
        assert!(top.is_sorted_by(|a, b| a.1 >= b.1), "{top:?}");
        for (id, logit) in top {
            assert!((logit - expected[id]).abs() < 1e-5, "{logit} {}", expected[id]);
        }
        if let Some(&next) = tokens.get(position + 1) {
            let sum: f64 = expected.iter().map(|logit| logit.exp()).sum();
            loss += (sum.ln() - expected[next]) / (tokens.len() - 1) as f64;
        }
    }
    assert!((shown["loss"].as_f64().unwrap() - loss).abs() < 1e-5, "{} {loss}", shown["loss"]);
    succeeds(folder.path(), &words(&format!("{line} --json out.json")));
    let written = read_json(&folder.path().join("out.json"));
    assert_eq!(written["top"][0].as_array().unwrap().len(), 20);
}

#[test]
fn a_text_is_its_tokens_and_the_likeliest_are_shown_as_text() {
    let folder = tempfile::tempdir().unwrap();
    let text = ["logits", "--text", "the keys to the", "--top", "2"];
    let shown = succeeds(folder.path(), &text);
    assert_eq!(shown, succeeds(folder.path(), &words("logits --tokens 1,3,119,1 --top 2")));
    assert!(shown.contains("\"keys\"") && shown.starts_with("loss "), "{shown}");
    // A token, its likeliest successors, and a line of heads.
    assert_eq!(shown.lines().count(), 2 + 4 * 3, "{shown}");
    let one = succeeds(folder.path(), &words("logits --tokens 1 --top 1 --json"));
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!((&one["loss"], &one["tokens"]), (&Value::Null, &json!([1])));
}

#[test]
fn sequences_that_cannot_be_run_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let too_long = format!("logits --tokens {}1", "1,".repeat(32));
    refuses(folder.path(), &words(&too_long), &["33 tokens", "1 to 32"]);
    refuses(folder.path(), &words("logits --tokens 1,302"), &["token id 302", "0 to 301"]);
    refuses(folder.path(), &["logits", "--text", ""], &["0 tokens"]);
    let model = repository("tests/reference/gpt2-key-mean/model");
    let untokenised = ["logits", "--model", model.to_str().unwrap(), "--text", "the"];
    refuses(folder.path(), &untokenised, &["no tokenizer", "--tokens"]);
}
