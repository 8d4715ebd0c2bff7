//! GPT-NeoX (Black et al., 2022, arXiv 2204.06745), which Pythia is, as Hugging Face's `GPTNeoXForCausalLM`:
//! attention and MLP read side by side, a part of each head is rotated, layer norms, biases everywhere.

use std::sync::Arc;

use circuit_framework::model::config::{self, Sizes};
use circuit_framework::model::decoder::rope::Rope;
use circuit_framework::model::decoder::{
    Decoder, Layer, Linear, Mlp, NormKind, Norms, QueryKeyValue,
};
use circuit_framework::ops::activation::Activation;
use circuit_framework::ops::attention::Attention;
use circuit_framework::{Architecture, Checkpoint, Model, Result, refuse, register};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// GPT-NeoX's options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct GptNeoxOptions {
    /// Split each MLP into heads of this many neurons; without it an MLP is one node.
    mlp_head_width: Option<usize>,
}

/// The part of config.json that matters here.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    layer_norm_eps: f64,
    attention_bias: Option<bool>,
    use_parallel_residual: Option<bool>,
    tie_word_embeddings: Option<bool>,
}

impl Config {
    fn read(checkpoint: &Checkpoint) -> Result<Self> {
        config::accept(
            checkpoint,
            &[("hidden_act", &[json!("gelu")]), ("quantization_config", &[json!(null)])],
        )?;
        let config: Self = config::parse(checkpoint)?;
        if config.num_attention_heads == 0
            || !config.hidden_size.is_multiple_of(config.num_attention_heads)
        {
            refuse!(
                "{}: config.json: hidden_size {} is no multiple of num_attention_heads {}",
                checkpoint.origin,
                config.hidden_size,
                config.num_attention_heads
            );
        }
        config.sizes().check(checkpoint)?;
        Ok(config)
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            layers: ("num_hidden_layers", self.num_hidden_layers),
            d_model: ("hidden_size", self.hidden_size),
            heads: ("num_attention_heads", self.num_attention_heads),
            mlp: ("intermediate_size", self.intermediate_size),
            vocabulary: ("vocab_size", self.vocab_size),
            context: ("max_position_embeddings", self.max_position_embeddings),
            kv_heads: self.num_attention_heads,
            d_head: ("hidden_size", self.hidden_size / self.num_attention_heads),
            mlp_inputs: 1,
            has_positions: false,
        }
    }

    fn layer(&self, index: usize, attention: &Attention) -> Layer {
        let of = |part: &str| format!("gpt_neox.layers.{index}.{part}");
        let has_bias = self.attention_bias.unwrap_or(true);
        let linear = |part: &str| Linear { name: of(part), has_bias };
        Layer {
            attention: attention.clone(),
            attention_norms: Norms::before(of("input_layernorm")),
            query_key_value: QueryKeyValue::ByHead(linear("attention.query_key_value")),
            head_norms: None,
            attention_output: linear("attention.dense"),
            mlp: Some(Mlp {
                norms: Norms::before(of("post_attention_layernorm")),
                width: self.intermediate_size,
                inputs: vec![Linear::biased(of("mlp.dense_h_to_4h"))],
                activation: Activation::Gelu,
                output: Linear::biased(of("mlp.dense_4h_to_h")),
            }),
        }
    }
}

impl Architecture for GptNeoxOptions {
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        let config = Config::read(&checkpoint)?;
        let rope = Rope::read_partial(&checkpoint, "rotary_emb_base", "rotary_pct")?;
        let (heads, context) = (config.num_attention_heads, config.max_position_embeddings);
        let d_head = config.hidden_size / heads;
        let rotated = (d_head as f64 * rope.share) as usize;
        if rotated == 0 || !rotated.is_multiple_of(2) {
            refuse!(
                "{}: config.json: `rotary_pct` rotates {rotated} of a head's {d_head} numbers; they must be pairs",
                checkpoint.origin
            );
        }
        let rotary = Some(Arc::new(rope.rotary(d_head, context)));
        let attention = Attention { rotary, ..Attention::new(heads, heads, d_head) };
        let decoder = Decoder {
            vocabulary: config.vocab_size,
            context,
            d_model: config.hidden_size,
            embedding_scale: 1.0,
            tokens: "gpt_neox.embed_in.weight".to_owned(),
            positions: None,
            norm: NormKind::Layer,
            epsilon: config.layer_norm_eps,
            layers: (0..config.num_hidden_layers).map(|i| config.layer(i, &attention)).collect(),
            final_norm: "gpt_neox.final_layer_norm".to_owned(),
            unembedding: "embed_out.weight".to_owned(),
            is_tied: config.tie_word_embeddings == Some(true),
            cap: None,
            is_parallel: config.use_parallel_residual.unwrap_or(true),
            mlp_head_width: self.mlp_head_width,
            fan_in_fan_out: false,
            prefix: "",
            ignored: &[".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"],
        };
        decoder.build(checkpoint)
    }

    fn example(&self) -> Option<Value> {
        Some(json!({
            "model_type": "gpt_neox", "vocab_size": 32, "max_position_embeddings": 32,
            "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "layer_norm_eps": 1e-5, "rotary_pct": 0.25,
        }))
    }
}

register!(
    dyn Architecture,
    GptNeoxOptions,
    "gpt_neox",
    "GPT-NeoX, such as Pythia: attention and MLP read side by side, partial rotary positions"
);
