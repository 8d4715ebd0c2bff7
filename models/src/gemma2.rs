//! Gemma 2 (Gemma Team, 2024, arXiv 2408.00118), as Hugging Face's `Gemma2ForCausalLM`: scaled embeddings, norms
//! before and after each sub-layer that multiply by 1 + w, GEGLU, soft caps on scores and logits, and
//! sliding windows in every other layer.

use circuit_framework::model::config;
use circuit_framework::model::decoder::rope::Rope;
use circuit_framework::model::decoder::standard::{self, StandardConfig};
use circuit_framework::model::decoder::{Decoder, NormKind, Norms};
use circuit_framework::ops::activation::Activation;
use circuit_framework::{Architecture, Checkpoint, Model, Result, register};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Gemma 2's options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Gemma2Options {
    /// Split each MLP into heads of this many neurons; without it an MLP is one node.
    mlp_head_width: Option<usize>,
}

/// What Gemma's config.json has beyond the standard keys.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    query_pre_attn_scalar: f64,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
}

/// What Gemma 2 and 3 have in common.
pub(crate) fn gemma(
    checkpoint: &Checkpoint,
    standard: &StandardConfig,
    rope: &Rope,
) -> Result<Decoder> {
    let no = [json!(false), json!(null)];
    config::accept(
        checkpoint,
        &[
            ("attention_bias", &no),
            ("hidden_activation", &[json!("gelu_pytorch_tanh")]),
            ("use_bidirectional_attention", &no),
            ("quantization_config", &[json!(null)]),
        ],
    )?;
    let config: Config = config::parse(checkpoint)?;
    let mut decoder = standard.decoder(rope);
    decoder.norm = NormKind::RmsFromOne;
    // √d_model, as a float32.
    decoder.embedding_scale = f64::from((decoder.d_model as f64).sqrt() as f32);
    decoder.is_tied = standard.tie_word_embeddings != Some(false);
    decoder.cap = config.final_logit_softcapping;
    for (index, layer) in decoder.layers.iter_mut().enumerate() {
        let norms = |before: &str, after: &str| Norms {
            before: Some(format!("model.layers.{index}.{before}_layernorm")),
            after: Some(format!("model.layers.{index}.{after}_layernorm")),
        };
        layer.attention.scale = config.query_pre_attn_scalar.powf(-0.5);
        layer.attention.cap = config.attn_logit_softcapping;
        layer.attention_norms = norms("input", "post_attention");
        if let Some(mlp) = &mut layer.mlp {
            mlp.activation = Activation::GegluTanh;
            mlp.norms = norms("pre_feedforward", "post_feedforward");
        }
    }
    Ok(decoder)
}

impl Architecture for Gemma2Options {
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        let standard = StandardConfig::read(&checkpoint)?;
        let mut decoder = gemma(&checkpoint, &standard, &Rope::read(&checkpoint)?)?;
        decoder.mlp_head_width = self.mlp_head_width;
        decoder.set_windows(&checkpoint, |layer| layer.is_multiple_of(2))?;
        decoder.build(checkpoint)
    }

    fn example(&self) -> Option<Value> {
        let own = json!({
            "query_pre_attn_scalar": 4, "sliding_window": 8, "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        });
        Some(standard::example("gemma2", own))
    }
}

register!(
    dyn Architecture,
    Gemma2Options,
    "gemma2",
    "Gemma 2: norms after sub-layers too, soft caps, sliding windows"
);
