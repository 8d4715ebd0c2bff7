//! Sizes: what a file or a setting asks for is held against the file and the memory before anything is built.

use std::path::Path;

use circuit_framework::run::experiment::ModelChoice;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::refuses_within;
use crate::models::case;
use crate::support::{Family, Geometry, at, few};

/// Room for the program and a small model, in kilobytes.
const LITTLE: u64 = 4_000_000;

fn geometry(family: Family) -> Geometry {
    Geometry {
        family,
        layers: 2,
        heads: 2,
        kv_heads: 2,
        d_head: 4,
        mlp_heads: 2,
        split_mlp: false,
        tied: true,
    }
}

/// The sizes in a family's config.json.
fn keys(family: Family) -> Vec<String> {
    let is_size = |key: &&String| {
        let other = ["sliding_window", "sliding_window_pattern", "query_pre_attn_scalar"];
        !other.contains(&key.as_str())
    };
    let config = geometry(family).config();
    let keys = config.as_object().unwrap().iter().filter(|(_, value)| value.is_u64());
    keys.map(|(key, _)| key).filter(is_size).cloned().collect()
}

/// What a model of the family with one size changed is refused with.
fn refusal(family: Family, key: &str, size: u64) -> String {
    let mut config = geometry(family).config();
    config[key] = size.into();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let choice = ModelChoice { random_init: Some(1), ..at(folder.path()) };
    circuit_models::load(&choice).err().unwrap_or_else(|| panic!("{key} = {size}")).to_string()
}

proptest! {
    #![proptest_config(few(200))]

    /// Whatever the family and whichever size is changed: more than any computer has, and nothing.
    #[test]
    fn a_size_that_no_model_has_is_refused_by_its_key(
        family in prop::sample::select(Family::ALL.to_vec()),
        key in any::<prop::sample::Index>(),
        size in prop_oneof![Just(0), 1 << 45..u64::MAX],
    ) {
        let keys = keys(family);
        let key = &keys[key.index(keys.len())];
        let error = refusal(family, key, size);
        prop_assert!(error.contains(&key[..]) && error.contains("config.json"), "{}: {}", key, error);
        prop_assert_eq!(error.lines().count(), 1);
    }
}

#[test]
fn sizes_are_held_against_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = case("llama-key-mean");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(model.join(file), folder.path().join(file)).unwrap();
    }
    let config = folder.path().join("config.json");
    let mut changed: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    changed["num_hidden_layers"] = json!(1000);
    std::fs::write(&config, changed.to_string()).unwrap();
    let error = circuit_models::load(&at(folder.path())).err().unwrap().to_string();
    assert!(error.contains("`num_hidden_layers` is 1000, but there are only"), "{error}");
}

#[test]
fn an_mlp_of_a_million_nodes_is_refused() {
    let mut config = geometry(Family::Gpt2).config();
    config["n_inner"] = json!(1_000_000);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let options = toml::Table::from_iter([("mlp_head_width".to_owned(), 1.into())]);
    let choice = ModelChoice { random_init: Some(1), options, ..at(folder.path()) };
    let error = circuit_models::load(&choice).err().unwrap().to_string();
    assert!(error.contains("mlp_head_width = 1: a graph of 2000005 writers"), "{error}");
}

/// Sizes that some computer has room for, in a process that hasn't.
#[test]
fn a_model_that_memory_has_no_room_for_is_refused_with_the_figures() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let discover = "discover --model . --random-init 1 --task tokens --data absent";
    let refused = |config: &Value, key: &str| {
        std::fs::write(here.join("config.json"), config.to_string()).unwrap();
        refuses_within(here, LITTLE, discover, &[key, "takes", "GB", "of memory are free"]);
    };
    for family in [Family::Gpt2, Family::Llama, Family::GptNeox] {
        for key in keys(family) {
            let mut config = geometry(family).config();
            let size = 2_000_000_000u64;
            config[&key] = size.into();
            if key.ends_with("heads") || key == "n_head" {
                // Else they don't divide the stream's width.
                continue;
            }
            refused(&config, &key);
        }
    }
    // Llama 3's 70 billion parameters, its unembedding perhaps tied: nothing wrong with them.
    let large = json!({
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 128_256,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
    });
    refused(&large, "such sizes takes 278");
}

#[test]
fn settings_that_ask_for_more_than_there_is_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for size in [1_000_000_000u64, 1_000_000_000_000_000_000] {
        for (setting, more) in [
            ("tuning.batch_size", ""),
            ("selector.rank", "--selector lora"),
            ("task.train_examples", ""),
            ("task.test_examples", "--set task.train_examples=16"),
            ("controls.seeds", ""),
            ("discovery.bootstrap", ""),
        ] {
            let line = format!("tune --steps 1 --out out {more} --set {setting}={size}");
            let name = setting.trim_start_matches("task.").trim_start_matches("selector.");
            refuses_within(folder.path(), LITTLE, &line, &[name, &size.to_string()]);
        }
        let bench = format!("bench --steps 1 --batch-size {size}");
        refuses_within(folder.path(), LITTLE, &bench, &["--batch-size", "of memory are free"]);
    }
    assert!(!folder.path().join("out").exists());
}

/// The examples fit; the matrix product that is timed before the steps doesn't.
#[test]
fn a_product_to_be_timed_that_memory_has_no_room_for_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for sizes in ["--batch-size 2000000", "--batch-size 2000 --seq-len 32000"] {
        let parts =
            ["64000000 tokens in a batch", "are free", "a smaller --batch-size or --seq-len"];
        refuses_within(folder.path(), LITTLE, &format!("bench --steps 1 {sizes}"), &parts);
    }
}

/// Sizes that are no sizes of memory: there aren't more examples than there are.
#[test]
fn batches_larger_than_the_data_are_the_data() {
    let folder = tempfile::tempdir().unwrap();
    let size = 1_000_000_000_000_000_000u64;
    let line = format!(
        "tune --steps 1 --out out --set task.train_examples=16 --set task.test_examples=16 --set \
         evaluation_batch_size={size} --set discovery.batch_size={size} --set \
         tuning.micro_batch_size={size} --set discovery.examples={size}"
    );
    let output = super::limited(folder.path(), LITTLE, &line);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A batch whose tokens fit, and what the model makes of them doesn't.
#[test]
fn a_pass_that_memory_has_no_room_for_is_refused_with_the_figures() {
    let folder = tempfile::tempdir().unwrap();
    let line = "tune --steps 1 --out out --set task.train_examples=16 --set task.test_examples=16 \
                --set tuning.batch_size=1000000";
    let parts = ["a pass over ", "of memory are free", "smaller batches"];
    refuses_within(folder.path(), LITTLE, line, &parts);
}

#[test]
fn deep_nesting_ends_in_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let refuses = |line: &str, part: &str| refuses_within(here, LITTLE, line, &[part]);
    let deep = |part: &str, times: usize| part.repeat(times);
    refuses(&format!("tune --set a={}", deep("[", 50_000)), "no key `a`");
    refuses(&format!("tune --set a={}1{}", deep("{b=", 20_000), deep("}", 20_000)), "no key `a`");
    refuses(&format!("tune --set {}a=1", deep("a.", 50_000)), "the key has 50001 parts");
    for text in [
        format!("a = {}", deep("[", 100_000)),
        format!("a = {}1{}", deep("{b = ", 50_000), deep("}", 50_000)),
        format!("{}a = 1", deep("a.", 100_000)),
        format!("[{}a]", deep("a.", 100_000)),
    ] {
        std::fs::write(here.join("deep.toml"), text).unwrap();
        refuses("run deep.toml", "deep.toml:1: ");
    }
    std::fs::create_dir(here.join("model")).unwrap();
    for text in [deep("[", 1_000_000), deep("{\"a\":", 1_000_000)] {
        std::fs::write(here.join("model/config.json"), &text).unwrap();
        refuses("eval --model model", "recursion limit");
        std::fs::write(here.join("deep.jsonl"), &text).unwrap();
        refuses("eval --task tokens --data deep.jsonl", "deep.jsonl:1: ");
        refuses_circuit(here, &text);
    }
}

fn refuses_circuit(here: &Path, text: &str) {
    std::fs::write(here.join("circuit.json"), text).unwrap();
    refuses_within(here, LITTLE, "tune --circuit circuit.json --out out", &["circuit.json"]);
}
