//! Qwen3 (Yang et al., 2025, arXiv 2505.09388), as Hugging Face's `Qwen3ForCausalLM`: Llama with an RMS norm
//! on each head's queries and keys.

use circuit_framework::model::config;
use circuit_framework::model::decoder::HeadNormNames;
use circuit_framework::model::decoder::rope::Rope;
use circuit_framework::model::decoder::standard::{self, StandardConfig};
use circuit_framework::{Architecture, Checkpoint, Model, Result, register};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::qwen2::set_windows;

/// Qwen3's options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Qwen3Options {
    /// Split each MLP into heads of this many neurons; without it an MLP is one node.
    mlp_head_width: Option<usize>,
}

impl Architecture for Qwen3Options {
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        let no = [json!(false), json!(null)];
        config::accept(
            &checkpoint,
            &[
                ("attention_bias", &no),
                ("hidden_act", &[json!("silu")]),
                ("quantization_config", &[json!(null)]),
            ],
        )?;
        let config = StandardConfig::read(&checkpoint)?;
        let mut decoder = config.decoder(&Rope::read(&checkpoint)?);
        decoder.mlp_head_width = self.mlp_head_width;
        set_windows(&mut decoder, &checkpoint)?;
        for (index, layer) in decoder.layers.iter_mut().enumerate() {
            layer.head_norms = Some(HeadNormNames {
                query: format!("model.layers.{index}.self_attn.q_norm"),
                key: format!("model.layers.{index}.self_attn.k_norm"),
                is_per_head: true,
            });
        }
        decoder.build(checkpoint)
    }

    fn example(&self) -> Option<Value> {
        Some(standard::example(
            "qwen3",
            json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1 }),
        ))
    }
}

register!(dyn Architecture, Qwen3Options, "qwen3", "Qwen3: norms on queries and keys");
