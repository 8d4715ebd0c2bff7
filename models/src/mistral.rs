//! Mistral (Jiang et al., 2023, arXiv 2310.06825), as Hugging Face's `MistralForCausalLM`: Llama with attention
//! over a sliding window.

use circuit_framework::model::config;
use circuit_framework::model::decoder::rope::Rope;
use circuit_framework::model::decoder::standard::{self, StandardConfig};
use circuit_framework::{Architecture, Checkpoint, Model, Result, register};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Mistral's options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct MistralOptions {
    /// Split each MLP into heads of this many neurons; without it an MLP is one node.
    mlp_head_width: Option<usize>,
}

impl Architecture for MistralOptions {
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        config::accept(
            &checkpoint,
            &[("hidden_act", &[json!("silu")]), ("quantization_config", &[json!(null)])],
        )?;
        let config = StandardConfig::read(&checkpoint)?;
        let mut decoder = config.decoder(&Rope::read(&checkpoint)?);
        decoder.mlp_head_width = self.mlp_head_width;
        decoder.set_windows(&checkpoint, |_| true)?;
        decoder.build(checkpoint)
    }

    fn example(&self) -> Option<Value> {
        Some(standard::example("mistral", json!({ "sliding_window": 8 })))
    }
}

register!(dyn Architecture, MistralOptions, "mistral", "Mistral: sliding windows");
