//! Gemma 3 (Gemma Team, 2025, arXiv 2503.19786), text alone, as Hugging Face's `Gemma3ForCausalLM`: Gemma 2 with
//! an RMS norm on each head's queries and keys in place of the caps, and sliding windows, with rotary
//! frequencies of their own, in all but every sixth layer.

use std::sync::Arc;

use circuit_framework::model::config;
use circuit_framework::model::decoder::HeadNormNames;
use circuit_framework::model::decoder::rope::Rope;
use circuit_framework::model::decoder::standard::{self, StandardConfig};
use circuit_framework::{Architecture, Checkpoint, Model, Result, register};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::gemma2::gemma;

/// Gemma 3's options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Gemma3Options {
    /// Split each MLP into heads of this many neurons; without it an MLP is one node.
    mlp_head_width: Option<usize>,
}

/// What Gemma 3's config.json has beyond Gemma 2's.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    /// Every so many layers there is one without a window.
    #[serde(alias = "_sliding_window_pattern")]
    sliding_window_pattern: Option<usize>,
    rope_local_base_freq: Option<f64>,
}

impl Architecture for Gemma3Options {
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        let standard = StandardConfig::read(&checkpoint)?;
        let config: Config = config::parse(&checkpoint)?;
        let mut decoder = gemma(&checkpoint, &standard, &Rope::read(&checkpoint)?)?;
        decoder.mlp_head_width = self.mlp_head_width;
        let pattern = config.sliding_window_pattern.unwrap_or(6).max(1);
        decoder.set_windows(&checkpoint, |layer| !(layer + 1).is_multiple_of(pattern))?;
        let theta = config.rope_local_base_freq.unwrap_or(10_000.0);
        let local = Rope { theta, scaling: None, share: 1.0 };
        let local = Arc::new(local.rotary(standard.d_head(), decoder.context));
        for (index, layer) in decoder.layers.iter_mut().enumerate() {
            if layer.attention.window.is_some() {
                layer.attention.rotary = Some(local.clone());
            }
            layer.head_norms = Some(HeadNormNames {
                query: format!("model.layers.{index}.self_attn.q_norm"),
                key: format!("model.layers.{index}.self_attn.k_norm"),
                is_per_head: true,
            });
        }
        decoder.build(checkpoint)
    }

    fn example(&self) -> Option<Value> {
        let own = json!({
            "query_pre_attn_scalar": 4, "sliding_window": 8, "sliding_window_pattern": 2,
            "rope_theta": 1e6,
        });
        Some(standard::example("gemma3_text", own))
    }
}

register!(
    dyn Architecture,
    Gemma3Options,
    "gemma3_text",
    "Gemma 3, text alone: norms on queries and keys too, two kinds of rotary positions"
);
