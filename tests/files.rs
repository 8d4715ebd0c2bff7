//! Models in and out of files: what is saved loads again to the same bits, whichever of Hugging
//! Face's spellings a folder uses.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, safetensors};
use circuit_framework::run::experiment::ModelChoice;
use circuit_framework::{Device, Model, Pass, Tensor};
use serde_json::json;

use crate::support::{self, at, repository, shared, weights};

fn load(folder: &Path) -> circuit_models::Loaded {
    support::load(at(folder))
}

/// Logits of a few tokens.
fn logits(model: &dyn Model) -> Vec<Vec<f32>> {
    let tokens = Tensor::new(&[[5u32, 17, 3, 80, 41]], &Device::Cpu).unwrap();
    let readout = model.forward(&Pass::forward_only(), &tokens).unwrap();
    let logits = readout.logits(&[0, 1, 2, 3, 4]).unwrap();
    logits.to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

fn case(name: &str) -> std::path::PathBuf {
    repository("tests/reference").join(name).join("model")
}

/// A copy of a case's folder with other tensors.
fn with_tensors(case: &Path, tensors: &HashMap<String, Tensor>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(case.join("config.json"), folder.path().join("config.json")).unwrap();
    safetensors::save(tensors, folder.path().join("model.safetensors")).unwrap();
    folder
}

#[test]
fn what_is_saved_has_the_publishers_names_and_values() {
    for name in ["gpt2-key-mean", "llama-key-mean", "llama-tied-lengths"] {
        let original =
            safetensors::load(case(name).join("model.safetensors"), &Device::Cpu).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let saved = folder.path().join("saved");
        let loaded = load(&case(name));
        circuit_models::save(&saved, &*loaded.model, None).unwrap();
        let tensors = safetensors::load(saved.join("model.safetensors"), &Device::Cpu).unwrap();
        assert_eq!(tensors.len(), original.len(), "{name}");
        for (key, tensor) in &original {
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(tensors[key].dims(), tensor.dims(), "{name} {key}");
            assert_eq!(values(&tensors[key]), values(tensor), "{name} {key}");
        }
        assert_eq!(logits(&*load(&saved).model), logits(&*loaded.model));
    }
}

#[test]
fn gpt2_loads_without_the_prefix_and_with_mask_buffers() {
    let path = case("gpt2-key-mean");
    let original = safetensors::load(path.join("model.safetensors"), &Device::Cpu).unwrap();
    let mut renamed: HashMap<String, Tensor> = (original.into_iter())
        .map(|(name, tensor)| (name.trim_start_matches("transformer.").to_owned(), tensor))
        .collect();
    let mask = Tensor::ones((1, 1, 32, 32), DType::F32, &Device::Cpu).unwrap();
    renamed.insert("h.0.attn.bias".to_owned(), mask);
    let folder = with_tensors(&path, &renamed);
    assert_eq!(weights(&*load(folder.path()).model), weights(&*load(&path).model));
}

#[test]
fn bfloat16_files_load_as_float32() {
    let path = case("llama-key-mean");
    let original = safetensors::load(path.join("model.safetensors"), &Device::Cpu).unwrap();
    let halved: HashMap<String, Tensor> = (original.iter())
        .map(|(name, tensor)| (name.clone(), tensor.to_dtype(DType::BF16).unwrap()))
        .collect();
    let folder = with_tensors(&path, &halved);
    let loaded = weights(&*load(folder.path()).model);
    for (name, tensor) in &halved {
        let expected =
            tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(loaded[name], expected, "{name}");
    }
}

#[test]
fn sharded_folders_load() {
    let path = case("gpt2-key-mean");
    let original = safetensors::load(path.join("model.safetensors"), &Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(path.join("config.json"), folder.path().join("config.json")).unwrap();
    let shard = |name: &str| format!("model-0000{}-of-00002.safetensors", 1 + name.len() % 2);
    let mut shards: HashMap<String, HashMap<String, Tensor>> = HashMap::new();
    for (name, tensor) in &original {
        shards.entry(shard(name)).or_default().insert(name.clone(), tensor.clone());
    }
    assert_eq!(shards.len(), 2);
    for (file, tensors) in &shards {
        safetensors::save(tensors, folder.path().join(file)).unwrap();
    }
    let map: serde_json::Map<_, _> =
        original.keys().map(|name| (name.clone(), json!(shard(name)))).collect();
    let index = json!({ "metadata": {}, "weight_map": map });
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert_eq!(weights(&*load(folder.path()).model), weights(&*load(&path).model));
}

#[test]
fn a_tensor_too_many_is_refused() {
    let path = case("gpt2-key-mean");
    let mut tensors = safetensors::load(path.join("model.safetensors"), &Device::Cpu).unwrap();
    let extra = Tensor::ones((3, 3), DType::F32, &Device::Cpu).unwrap();
    tensors.insert("transformer.h.7.attn.c_attn.weight".to_owned(), extra);
    let folder = with_tensors(&path, &tensors);
    let error = circuit_models::load(&at(folder.path())).err().unwrap().to_string();
    assert!(error.contains("h.7.attn.c_attn.weight"), "{error}");
}

/// GPT-2's tokenizer from vocab.json and merges.txt, held against the ids stored with the sv data:
/// most sentences can be aligned, and the others are counted.
#[test]
fn agreement_aligns_the_published_sentences() {
    let (Some(vocab), Some(sentences)) = (shared("tokenizers/gpt2"), shared("data/sv")) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        std::fs::copy(vocab.join(file), folder.path().join(file)).unwrap();
    }
    let mut config: serde_json::Value = serde_json::from_str(
        &std::fs::read_to_string(case("gpt2-key-mean").join("config.json")).unwrap(),
    )
    .unwrap();
    config["vocab_size"] = json!(50257);
    config["n_positions"] = json!(1024);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let tokenizer =
        support::load(ModelChoice { random_init: Some(0), ..at(folder.path()) }).tokenizer;
    let setting = circuit_framework::Setting {
        tokenizer: tokenizer.as_ref(),
        context: 1024,
        seed: 0,
        counterfactuals: false,
    };
    for (file, expected) in [("dev_3000.jsonl", DEV), ("test_3000.jsonl", TEST)] {
        let path = sentences.join(file);
        let directions = [("agreement", "clean_text"), ("disagreement", "corr_text")];
        for ((direction, text), expected) in directions.into_iter().zip(expected) {
            let options = format!("data = {path:?}\ndirection = {direction:?}");
            let task: Box<dyn circuit_framework::Task> =
                crate::support::plugin("agreement", &options);
            let dataset = task.load(circuit_framework::Split::Train, &setting).unwrap();
            let examples = dataset.examples();
            assert_eq!(examples.len(), expected, "{file} {direction}");
            // Decoding an example's tokens gives the file's text back, byte for byte.
            let file = std::fs::read_to_string(&path).unwrap();
            for example in examples.iter().step_by(97) {
                let line: usize = example.origin.rsplit(':').next().unwrap().parse().unwrap();
                let row: serde_json::Value =
                    serde_json::from_str(file.lines().nth(line - 1).unwrap()).unwrap();
                let decoded =
                    tokenizer.as_ref().unwrap().inner.decode(&example.tokens, false).unwrap();
                assert_eq!(decoded, row[text].as_str().unwrap());
                assert!(
                    example.keys.iter().all(|key| key.correct == [example.tokens[key.position]])
                );
            }
        }
    }
}

/// Sentences that can be aligned, of 3,000 each: the grammatical ones, and the flipped ones.
const DEV: [usize; 2] = [2992, 2993];
const TEST: [usize; 2] = [2994, 2994];
