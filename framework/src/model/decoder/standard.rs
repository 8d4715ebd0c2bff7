//! The convention that most families on Hugging Face follow since Llama: their keys in config.json, the
//! names of their weights, RMS norms before each sub-layer, grouped heads with rotary positions, a gated
//! MLP. A family that follows it starts from [`StandardConfig::decoder`] and changes what is its own.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::rope::Rope;
use super::{Decoder, Layer, Linear, Mlp, NormKind, Norms, QueryKeyValue};
use crate::model::checkpoint::Checkpoint;
use crate::model::config::{self, Sizes};
use crate::ops::activation::Activation;
use crate::ops::attention::Attention;
use crate::{Result, refuse};

/// The keys of config.json that most families share.
#[derive(Clone, Debug, Deserialize)]
pub struct StandardConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// As many as there are heads, where it is absent.
    pub num_key_value_heads: Option<usize>,
    /// hidden_size / num_attention_heads, where it is absent.
    pub head_dim: Option<usize>,
    pub rms_norm_eps: f64,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: Option<bool>,
}

impl StandardConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// If a key is missing or of another type, or the heads' numbers don't fit each other, naming them.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let config: Self = config::parse(checkpoint)?;
        let (heads, kv_heads) = (config.num_attention_heads, config.kv_heads());
        let divides = config.head_dim.is_some() || config.hidden_size.is_multiple_of(heads.max(1));
        if heads == 0 || kv_heads == 0 || !divides || !heads.is_multiple_of(kv_heads) {
            refuse!(
                "{}: config.json: hidden_size {}, num_attention_heads {heads} and num_key_value_heads {kv_heads} do not divide each other",
                checkpoint.origin,
                config.hidden_size
            );
        }
        let d_head = config.d_head();
        if d_head == 0 || !d_head.is_multiple_of(2) {
            refuse!(
                "{}: config.json: head_dim (hidden_size / num_attention_heads where it is absent) is {d_head}; it must be \
                 even, for rotary positions",
                checkpoint.origin
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
            kv_heads: self.kv_heads(),
            d_head: ("head_dim", self.d_head()),
            mlp_inputs: 2,
            has_positions: false,
        }
    }

    /// Key/value heads.
    pub fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// A head's width.
    pub fn d_head(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// The decoder of the convention: without biases, SwiGLU in its MLPs, attention over the whole context,
    /// its unembedding tied where config.json says so.
    pub fn decoder(&self, rope: &Rope) -> Decoder {
        let d_head = self.d_head();
        let rotary = Arc::new(rope.rotary(d_head, self.max_position_embeddings));
        let attention = Attention {
            rotary: Some(rotary),
            ..Attention::new(self.num_attention_heads, self.kv_heads(), d_head)
        };
        let layer = |index: usize| Layer::standard(index, &attention, self.intermediate_size);
        Decoder {
            vocabulary: self.vocab_size,
            context: self.max_position_embeddings,
            d_model: self.hidden_size,
            embedding_scale: 1.0,
            tokens: "model.embed_tokens.weight".to_owned(),
            positions: None,
            norm: NormKind::Rms,
            epsilon: self.rms_norm_eps,
            layers: (0..self.num_hidden_layers).map(layer).collect(),
            final_norm: "model.norm".to_owned(),
            unembedding: "lm_head.weight".to_owned(),
            is_tied: self.tie_word_embeddings == Some(true),
            cap: None,
            is_parallel: false,
            mlp_head_width: None,
            fan_in_fan_out: false,
            prefix: "",
            ignored: &["rotary_emb.inv_freq"],
        }
    }
}

impl Layer {
    /// The convention's `index`-th layer, its MLP of some hidden width.
    fn standard(index: usize, attention: &Attention, width: usize) -> Self {
        let of = |part: &str| format!("model.layers.{index}.{part}");
        let linear = |part: &str| Linear::plain(of(part));
        Self {
            attention: attention.clone(),
            attention_norms: Norms::before(of("input_layernorm")),
            query_key_value: QueryKeyValue::Separate(
                ["q_proj", "k_proj", "v_proj"].map(|name| linear(&format!("self_attn.{name}"))),
            ),
            head_norms: None,
            attention_output: linear("self_attn.o_proj"),
            mlp: Some(Mlp {
                norms: Norms::before(of("post_attention_layernorm")),
                width,
                inputs: vec![linear("mlp.gate_proj"), linear("mlp.up_proj")],
                activation: Activation::Swiglu,
                output: linear("mlp.down_proj"),
            }),
        }
    }
}

/// A small config.json of a family that follows the convention, with the keys of its own.
pub fn example(model_type: &str, own: Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 32,
    });
    if let (Value::Object(config), Value::Object(own)) = (&mut config, own) {
        config.extend(own);
    }
    config
}

/// Refuses a configuration in which attention doesn't reach back over the whole context.
///
/// # Errors
/// Naming the key that says so.
pub fn refuse_windows(checkpoint: &Checkpoint) -> Result<()> {
    let (origin, config) = (&checkpoint.origin, &checkpoint.config);
    let context = config["max_position_embeddings"].as_u64().unwrap_or(0);
    if let Some(window) = config["sliding_window"].as_u64()
        && config["use_sliding_window"] != json!(false)
        && window < context
    {
        refuse!(
            "{origin}: config.json: `sliding_window` is {window}; what can be read is null, or a window as long as the context, {context}"
        );
    }
    let layers = config["layer_types"].as_array();
    if let Some(other) = layers.into_iter().flatten().find(|kind| **kind != FULL) {
        refuse!("{origin}: config.json: `layer_types` has {other}; what can be read is \"{FULL}\"");
    }
    Ok(())
}

/// What `layer_types` calls attention over the whole context, and over a window.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

impl Decoder {
    /// Sets the layers' windows, of `sliding_window` tokens: in the layers that `layer_types` names, or
    /// where it is absent in those for which `slides` holds.
    ///
    /// # Errors
    /// Naming the key that can't be read.
    pub fn set_windows(
        &mut self,
        checkpoint: &Checkpoint,
        slides: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let (origin, config) = (&checkpoint.origin, &checkpoint.config);
        let window = match &config["sliding_window"] {
            Value::Null => None,
            value => match value.as_u64() {
                Some(window @ 1..) => Some(window as usize),
                _ => refuse!(
                    "{origin}: config.json: `sliding_window` is {value}, no number of tokens"
                ),
            },
        };
        let kinds = config["layer_types"].as_array();
        if let Some(kinds) = kinds.filter(|kinds| kinds.len() != self.layers.len()) {
            refuse!(
                "{origin}: config.json: `layer_types` is of {} layers; there are {}",
                kinds.len(),
                self.layers.len()
            );
        }
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let slides = match kinds.map(|kinds| &kinds[index]) {
                None => window.is_some() && slides(index),
                Some(kind) if kind == FULL => false,
                Some(kind) if kind == SLIDING && window.is_some() => true,
                Some(kind) => refuse!(
                    "{origin}: config.json: `layer_types` has {kind}; what can be read is \"{FULL}\" or, with a `sliding_window`, \"{SLIDING}\""
                ),
            };
            layer.attention.window = window.filter(|_| slides);
        }
        Ok(())
    }
}
