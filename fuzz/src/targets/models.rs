//! Models: configurations, weights, their index, adapters. One that is read is run on a few tokens.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::safetensors;
use circuit_framework::lora::Adapters;
use circuit_framework::run::experiment::ModelChoice;
use circuit_framework::{Device, Lora, Model, Pass, Selection, Tensor};
use serde_json::{Value, json};

use super::{Reader, Target, at, checked, file, reference};
use crate::mutate;

pub fn targets() -> Vec<Target> {
    vec![
        Target::new("config", mutate::json::mutate, configs, config),
        Target::new("safetensors", mutate::safetensors::mutate, weights, safetensors),
        Target::new("safetensors-index", mutate::json::mutate, indices, index),
        Target::new("adapter", mutate::safetensors::mutate, adapters, adapter),
        Target::new("adapter-config", mutate::json::mutate, adapter_configs, adapter_config),
    ]
}

/// Loads a model and, where that succeeds, runs it.
pub(super) fn load_and_run(choice: &ModelChoice) -> Result<()> {
    let loaded = checked(circuit_models::load(choice))?;
    run(&*loaded.model)
}

fn run(model: &dyn Model) -> Result<()> {
    let length = model.context().min(5);
    let tokens: Vec<u32> = (0..length).map(|id| (id % model.vocabulary()) as u32).collect();
    let tokens = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
    let readout = checked(model.forward(&Pass::forward_only(), &tokens))?;
    checked(readout.logits(&[0]))?;
    Ok(())
}

/// A configuration of each architecture.
fn configs() -> Result<Vec<Vec<u8>>> {
    let cases = [
        "gpt2-all-mean",
        "llama-key-mean",
        "mistral-all-zero-loss",
        "qwen2-key-mean",
        "qwen3-all-corrupt",
        "gemma2-all-mean",
        "gemma3-key-corrupt",
        "gpt-neox-all-mean-positional",
        "olmo2-eap-ig",
    ];
    cases.iter().map(|case| file(&format!("tests/reference/{case}/model/config.json"))).collect()
}

fn config(folder: &Path) -> Result<Reader> {
    let file = folder.join("config.json");
    let (drawn, read) = (ModelChoice { random_init: Some(0), ..at(folder) }, at(folder));
    Ok(Box::new(move |input| {
        std::fs::write(&file, input)?;
        load_and_run(if is_large(input) { &read } else { &drawn })
    }))
}

/// Whether a configuration has sizes that some computer has room for: drawing such a model's weights takes as
/// long and as much as they are many, so it is read to where its weights are looked for.
fn is_large(config: &[u8]) -> bool {
    let config: Value = serde_json::from_slice(config).unwrap_or_default();
    let is_size = |key: &str| !["token_id", "rope", "rotary"].iter().any(|part| key.contains(part));
    config.as_object().is_some_and(|config| {
        let mut sizes = config.iter().filter(|(key, _)| is_size(key));
        sizes.any(|(_, size)| size.as_u64().is_some_and(|size| (1025..1 << 33).contains(&size)))
    })
}

/// A model as small as can be.
pub(super) fn small() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "vocab_size": 5,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 16, "tie_word_embeddings": false,
    })
}

fn write_small(folder: &Path) -> Result<()> {
    Ok(std::fs::write(folder.join("config.json"), small().to_string())?)
}

/// The small model's tensors, drawn at random.
fn small_tensors() -> Result<HashMap<String, Tensor>> {
    let folder = tempfile::tempdir()?;
    write_small(folder.path())?;
    let choice = ModelChoice { random_init: Some(0), ..at(folder.path()) };
    let model = circuit_models::load(&choice)?.model;
    Ok(model.state_dict()?.into_iter().collect())
}

fn saved(tensors: &HashMap<String, Tensor>) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("tensors.safetensors");
    safetensors::save(tensors, &path)?;
    Ok(std::fs::read(path)?)
}

fn weights() -> Result<Vec<Vec<u8>>> {
    let own = small_tensors()?;
    let half = |(name, tensor): (&String, &Tensor)| -> Result<_> {
        Ok((name.clone(), tensor.to_dtype(candle_core::DType::BF16)?))
    };
    let half = own.iter().map(half).collect::<Result<_>>()?;
    Ok(vec![saved(&own)?, saved(&half)?])
}

fn safetensors(folder: &Path) -> Result<Reader> {
    write_small(folder)?;
    let (file, choice) = (folder.join("model.safetensors"), at(folder));
    Ok(Box::new(move |input| {
        std::fs::write(&file, input)?;
        load_and_run(&choice)
    }))
}

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// The name of the shard that has a tensor.
fn shard(name: &str) -> &'static str {
    SHARDS[usize::from(name.contains("mlp"))]
}

fn indices() -> Result<Vec<Vec<u8>>> {
    let mut names: Vec<String> = small_tensors()?.into_keys().collect();
    names.sort();
    let map: serde_json::Map<String, Value> =
        names.into_iter().map(|name| (name.clone(), shard(&name).into())).collect();
    let index = json!({ "metadata": { "total_size": 3000 }, "weight_map": map });
    Ok(vec![index.to_string().into_bytes()])
}

fn index(folder: &Path) -> Result<Reader> {
    write_small(folder)?;
    let tensors = small_tensors()?;
    for own in SHARDS {
        let part = tensors.iter().filter(|(name, _)| shard(name) == own);
        let part = part.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        std::fs::write(folder.join(own), saved(&part)?)?;
    }
    let (file, choice) = (folder.join("model.safetensors.index.json"), at(folder));
    Ok(Box::new(move |input| {
        std::fs::write(&file, input)?;
        load_and_run(&choice)
    }))
}

const ADAPTER: &str = "adapter_model.safetensors";
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// What adapters are of.
const ADAPTED: &str = "llama-key-mean";

/// A folder with an adapter of every projection.
fn adapter_folder(folder: &Path) -> Result<()> {
    let model = reference(ADAPTED)?;
    let everything = Selection::blocks(model.parameters(), |_, _| true);
    let lora = Lora { rank: 1, alpha: 2.0, dropout: 0.0, layers: Vec::new() };
    let adapters = Adapters::new(model.parameters(), model.projections(), &everything, lora, 0)?;
    Ok(adapters.save(folder, None)?)
}

fn of_adapter(name: &str) -> Result<Vec<Vec<u8>>> {
    let folder = tempfile::tempdir()?;
    let adapter = folder.path().join("adapter");
    adapter_folder(&adapter)?;
    Ok(vec![std::fs::read(adapter.join(name)).with_context(|| name.to_owned())?])
}

fn adapters() -> Result<Vec<Vec<u8>>> {
    of_adapter(ADAPTER)
}

fn adapter_configs() -> Result<Vec<Vec<u8>>> {
    of_adapter(ADAPTER_CONFIG)
}

fn read_adapter(folder: &Path, name: &'static str) -> Result<Reader> {
    let folder = folder.join("adapter");
    adapter_folder(&folder)?;
    let model = reference(ADAPTED)?;
    Ok(Box::new(move |input| {
        std::fs::write(folder.join(name), input)?;
        checked(Adapters::load(&folder, model.parameters(), model.projections()))?;
        Ok(())
    }))
}

fn adapter(folder: &Path) -> Result<Reader> {
    read_adapter(folder, ADAPTER)
}

fn adapter_config(folder: &Path) -> Result<Reader> {
    read_adapter(folder, ADAPTER_CONFIG)
}
