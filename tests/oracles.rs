//! Logits of the families against candle-transformers' own implementations, which were written by others, on
//! the same random weights.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{gemma2, llama, mistral, olmo2, qwen2, qwen3};
use circuit_framework::Pass;
use circuit_framework::model::Precision;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::{Family, Geometry, VOCABULARY, few, geometries};

/// The families that candle-transformers has too. Its Gemma 3 is left out: on the CPU it ends in an error of
/// its key/value cache.
const FAMILIES: [Family; 6] =
    [Family::Llama, Family::Qwen2, Family::Qwen3, Family::Mistral, Family::Gemma2, Family::Olmo2];

/// A geometry's config with what candle-transformers asks for. Gemma 2's windows are as long as the
/// context, and its queries are scaled by the width of a head: candle-transformers has no others.
fn config(geometry: &Geometry) -> Value {
    let mut config = geometry.config();
    let more = json!({
        "hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh", "attention_bias": false,
        "head_dim": geometry.d_head, "rope_theta": 1e4,
        "max_window_layers": 99, "use_sliding_window": false,
        "sliding_window": if geometry.family == Family::Mistral { 3 } else { 16 },
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    if geometry.family == Family::Gemma2 {
        config["tie_word_embeddings"] = true.into();
        config["query_pre_attn_scalar"] = geometry.d_head.into();
    }
    config
}

/// Logits after the last token of `tokens` [1, seq], by candle-transformers.
fn theirs(family: Family, config: &Value, weights: VarBuilder, tokens: &Tensor) -> Result<Tensor> {
    fn read<T: DeserializeOwned>(config: &Value) -> T {
        serde_json::from_value(config.clone()).unwrap()
    }
    let logits = match family {
        Family::Llama => {
            let config = read::<llama::LlamaConfig>(config).into_config(false);
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
            llama::Llama::load(weights, &config)?.forward(tokens, 0, &mut cache)
        }
        Family::Qwen2 => qwen2::ModelForCausalLM::new(&read(config), weights)?.forward(tokens, 0),
        Family::Qwen3 => qwen3::ModelForCausalLM::new(&read(config), weights)?.forward(tokens, 0),
        Family::Mistral => {
            let mut config: mistral::Config = read(config);
            // Its queries see a token more than transformers'.
            config.sliding_window = config.sliding_window.map(|window| window - 1);
            mistral::Model::new(&config, weights)?.forward(tokens, 0)
        }
        Family::Gemma2 => gemma2::Model::new(false, &read(config), weights)?.forward(tokens, 0),
        Family::Olmo2 => olmo2::Model::new(&read(config), weights)?.forward(tokens, 0),
        Family::Gpt2 | Family::GptNeox | Family::Gemma3 => {
            unreachable!("candle-transformers has none")
        }
    };
    logits?.flatten_all()
}

proptest! {
    #![proptest_config(few(48))]

    #[test]
    fn logits_are_those_of_candle_transformers(
        geometry in geometries(), family in prop::sample::select(FAMILIES.to_vec()), seed in 0..100u64,
        tokens in prop::collection::vec(0..VOCABULARY as u32, 1..12),
    ) {
        let geometry = Geometry { family, ..geometry };
        let config = config(&geometry);
        let model = geometry.model_of(&config, seed, Precision::Float32);
        let seq = tokens.len();
        let tokens = Tensor::from_vec(tokens, (1, seq), &Device::Cpu).unwrap();
        let readout = model.forward(&Pass::forward_only(), &tokens).unwrap();
        let ours = readout.logits(&[(seq - 1) as u32]).unwrap().flatten_all().unwrap();
        let mut weights: HashMap<String, Tensor> = model.state_dict().unwrap().into_iter().collect();
        // Not all of them know embeddings that are tied.
        let embedding = weights["model.embed_tokens.weight"].clone();
        weights.entry("lm_head.weight".to_owned()).or_insert(embedding);
        let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        let theirs = theirs(family, &config, weights, &tokens).unwrap();
        let largest = theirs.abs().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        let difference = (ours - theirs).unwrap().abs().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        prop_assert!(difference <= 1e-4 * largest, "{:?}: {} of {}", family, difference, largest);
    }
}
