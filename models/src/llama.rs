//! Llama (Touvron et al., 2023) and its successors, as Hugging Face's `LlamaForCausalLM`: rotary
//! positions, RMS norm, grouped-query attention, a gated MLP, tied or separate embeddings.

use circuit_framework::model::config;
use circuit_framework::model::decoder::rope::Rope;
use circuit_framework::model::decoder::standard::{self, StandardConfig, refuse_windows};
use circuit_framework::{Architecture, Checkpoint, Model, Result, register};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Llama's options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct LlamaOptions {
    /// Split each MLP into heads of this many neurons; without it an MLP is one node.
    mlp_head_width: Option<usize>,
}

impl Architecture for LlamaOptions {
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        let no = [json!(false), json!(null)];
        config::accept(
            &checkpoint,
            &[
                ("attention_bias", &no),
                ("mlp_bias", &no),
                ("hidden_act", &[json!("silu"), json!("swish")]),
                ("quantization_config", &[json!(null)]),
            ],
        )?;
        let config = StandardConfig::read(&checkpoint)?;
        refuse_windows(&checkpoint)?;
        let mut decoder = config.decoder(&Rope::read(&checkpoint)?);
        decoder.mlp_head_width = self.mlp_head_width;
        decoder.build(checkpoint)
    }

    fn example(&self) -> Option<Value> {
        Some(standard::example("llama", json!({})))
    }
}

register!(
    dyn Architecture,
    LlamaOptions,
    "llama",
    "Llama, SmolLM2 and models of their architecture"
);
