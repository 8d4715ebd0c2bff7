//! Qwen2 and Qwen2.5 (Yang et al., 2024, arXiv 2407.10671), as Hugging Face's `Qwen2ForCausalLM`: Llama
//! with biases on queries, keys and values, which belong to the head that reads through them.

use circuit_framework::model::config;
use circuit_framework::model::decoder::Decoder;
use circuit_framework::model::decoder::rope::Rope;
use circuit_framework::model::decoder::standard::{self, StandardConfig};
use circuit_framework::{Architecture, Checkpoint, Model, Result, register};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Qwen2's options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Qwen2Options {
    /// Split each MLP into heads of this many neurons; without it an MLP is one node.
    mlp_head_width: Option<usize>,
}

impl Architecture for Qwen2Options {
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        config::accept(
            &checkpoint,
            &[("hidden_act", &[json!("silu")]), ("quantization_config", &[json!(null)])],
        )?;
        let config = StandardConfig::read(&checkpoint)?;
        let mut decoder = config.decoder(&Rope::read(&checkpoint)?);
        set_windows(&mut decoder, &checkpoint)?;
        decoder.mlp_head_width = self.mlp_head_width;
        for layer in &mut decoder.layers {
            let modules = layer.query_key_value.modules_mut();
            modules.iter_mut().for_each(|module| module.has_bias = true);
        }
        decoder.build(checkpoint)
    }

    fn example(&self) -> Option<Value> {
        Some(standard::example(
            "qwen2",
            json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1 }),
        ))
    }
}

/// Sliding windows are there where `use_sliding_window` says so, from layer `max_window_layers` on.
pub(crate) fn set_windows(decoder: &mut Decoder, checkpoint: &Checkpoint) -> Result<()> {
    if checkpoint.config["use_sliding_window"] != json!(true) {
        return Ok(());
    }
    let first = checkpoint.config["max_window_layers"].as_u64().unwrap_or(0) as usize;
    decoder.set_windows(checkpoint, |layer| layer >= first)
}

register!(dyn Architecture, Qwen2Options, "qwen2", "Qwen2 and Qwen2.5");
