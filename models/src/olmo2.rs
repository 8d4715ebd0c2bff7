//! OLMo 2 (Team OLMo, 2025, arXiv 2501.00656), as Hugging Face's `Olmo2ForCausalLM`: norms stand after attention
//! and the MLP instead of before, and on the queries and keys of all heads together.

use circuit_framework::model::config;
use circuit_framework::model::decoder::rope::Rope;
use circuit_framework::model::decoder::standard::{self, StandardConfig};
use circuit_framework::model::decoder::{HeadNormNames, Norms};
use circuit_framework::{Architecture, Checkpoint, Model, Result, register};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// OLMo 2's options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Olmo2Options {
    /// Split each MLP into heads of this many neurons; without it an MLP is one node.
    mlp_head_width: Option<usize>,
}

impl Architecture for Olmo2Options {
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
        for (index, layer) in decoder.layers.iter_mut().enumerate() {
            let of = |part: &str| format!("model.layers.{index}.{part}");
            layer.attention_norms = Norms::after(of("post_attention_layernorm"));
            layer.head_norms = Some(HeadNormNames {
                query: of("self_attn.q_norm"),
                key: of("self_attn.k_norm"),
                is_per_head: false,
            });
            if let Some(mlp) = &mut layer.mlp {
                mlp.norms = Norms::after(of("post_feedforward_layernorm"));
            }
        }
        decoder.build(checkpoint)
    }

    fn example(&self) -> Option<Value> {
        Some(standard::example("olmo2", json!({})))
    }
}

register!(
    dyn Architecture,
    Olmo2Options,
    "olmo2",
    "OLMo 2: norms after sub-layers, and on all heads' queries and keys together"
);
