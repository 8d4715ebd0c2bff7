//! The architectures that GGUF files are read of: what GGUF calls their keys and tensors, how its tensors
//! differ from Hugging Face's, and what config.json says of them.

use candle_core::Tensor;
use circuit_framework::{Result, refuse};
use serde_json::{Value, json};

use super::{Geometry, GgufFile};

/// An architecture.
pub(super) struct Family {
    /// What GGUF calls it, and what its keys begin with.
    pub(super) architecture: &'static str,
    /// Hugging Face's `model_type`, and its class.
    pub(super) model_type: &'static str,
    pub(super) class: &'static str,
    /// Modules outside the layers, and in each layer: in GGUF and on Hugging Face.
    pub(super) outer: &'static [(&'static str, &'static str)],
    pub(super) layer: &'static [(&'static str, &'static str)],
    /// What a layer's name begins with on Hugging Face.
    pub(super) layers: &'static str,
    /// The modules, as GGUF calls them, that have a bias.
    pub(super) biased: &'static [&'static str],
    /// Further keys that are read.
    pub(super) reads: &'static [&'static str],
    /// What config.json has beside the common keys.
    pub(super) config: fn(&GgufFile, &Geometry) -> Result<Value>,
}

/// How a tensor in GGUF differs from Hugging Face's.
#[derive(Clone, Copy)]
pub(super) enum Change {
    Nothing,
    /// The pairs that are rotated lie side by side, in so many heads.
    Pairs(usize),
    /// 1 is added.
    OneMore,
    /// Queries of all so many heads, then keys, then values, instead of head by head.
    ByPart(usize),
}

impl Change {
    /// The change that a module needs, by GGUF's name.
    pub(super) fn of(family: &Family, module: &str, geometry: &Geometry) -> Self {
        match (family.architecture, module) {
            ("llama", "attn_q") => Self::Pairs(geometry.heads),
            ("llama", "attn_k") => Self::Pairs(geometry.kv_heads),
            ("gemma2" | "gemma3", _) if module.ends_with("_norm") => Self::OneMore,
            ("gptneox", "attn_qkv") => Self::ByPart(geometry.heads),
            _ => Self::Nothing,
        }
    }

    /// Hugging Face's tensor, of the same shape.
    pub(super) fn undo(self, tensor: &Tensor) -> Result<Tensor> {
        let shape = tensor.shape();
        let rows = tensor.dim(0)?;
        Ok(match self {
            Self::Nothing => tensor.clone(),
            Self::OneMore => (tensor - 1.0)?,
            Self::Pairs(heads) => {
                let pairs = tensor.reshape((heads, rows / heads / 2, 2, ()))?;
                pairs.transpose(1, 2)?.contiguous()?.reshape(shape)?
            }
            Self::ByPart(heads) => {
                let parts = tensor.reshape((3, heads, rows / heads / 3, ()))?;
                parts.transpose(0, 1)?.contiguous()?.reshape(shape)?
            }
        })
    }
}

const OUTER: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// The projections of a layer of the convention.
macro_rules! layer {
    ($($more:expr),*) => {
        &[
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
            $($more),*
        ]
    };
}

const NORMS: [(&str, &str); 2] =
    [("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")];
const HEAD_NORMS: [(&str, &str); 2] =
    [("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];
const GEMMA_NORMS: [(&str, &str); 4] = [
    ("attn_norm", "input_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// A family that follows the convention; others are made of it.
const LLAMA: Family = Family {
    architecture: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    outer: OUTER,
    layer: layer!(NORMS[0], NORMS[1]),
    layers: "model.layers",
    biased: &[],
    reads: &[],
    config: |_, _| Ok(json!({ "hidden_act": "silu", "attention_bias": false, "mlp_bias": false })),
};

/// All that can be read.
pub(super) const FAMILIES: [Family; 7] = [
    LLAMA,
    Family {
        architecture: "qwen2",
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        biased: &["attn_q", "attn_k", "attn_v"],
        config: |_, _| Ok(json!({ "hidden_act": "silu", "use_sliding_window": false })),
        ..LLAMA
    },
    Family {
        architecture: "qwen3",
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        layer: layer!(NORMS[0], NORMS[1], HEAD_NORMS[0], HEAD_NORMS[1]),
        config: |_, _| {
            Ok(
                json!({ "hidden_act": "silu", "attention_bias": false, "use_sliding_window": false }),
            )
        },
        ..LLAMA
    },
    Family {
        architecture: "gemma2",
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        layer: layer!(GEMMA_NORMS[0], GEMMA_NORMS[1], GEMMA_NORMS[2], GEMMA_NORMS[3]),
        reads: &["attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"],
        config: gemma2,
        ..LLAMA
    },
    Family {
        architecture: "gemma3",
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        layer: layer!(
            GEMMA_NORMS[0],
            GEMMA_NORMS[1],
            GEMMA_NORMS[2],
            GEMMA_NORMS[3],
            HEAD_NORMS[0],
            HEAD_NORMS[1]
        ),
        reads: &[
            "attention.sliding_window",
            "attention.sliding_window_pattern",
            "rope.freq_base_swa",
            "final_logit_softcapping",
        ],
        config: gemma3,
        ..LLAMA
    },
    Family {
        architecture: "olmo2",
        model_type: "olmo2",
        class: "Olmo2ForCausalLM",
        layer: layer!(
            ("post_attention_norm", "post_attention_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
            HEAD_NORMS[0],
            HEAD_NORMS[1]
        ),
        config: |_, _| Ok(json!({ "hidden_act": "silu", "attention_bias": false })),
        ..LLAMA
    },
    Family {
        architecture: "gptneox",
        model_type: "gpt_neox",
        class: "GPTNeoXForCausalLM",
        outer: &[
            ("token_embd", "gpt_neox.embed_in"),
            ("output_norm", "gpt_neox.final_layer_norm"),
            ("output", "embed_out"),
        ],
        layer: &[
            ("attn_norm", "input_layernorm"),
            ("attn_qkv", "attention.query_key_value"),
            ("attn_output", "attention.dense"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.dense_h_to_4h"),
            ("ffn_down", "mlp.dense_4h_to_h"),
        ],
        layers: "gpt_neox.layers",
        biased: &[
            "output_norm",
            "attn_norm",
            "attn_qkv",
            "attn_output",
            "ffn_norm",
            "ffn_up",
            "ffn_down",
        ],
        reads: &["use_parallel_residual", "rope.dimension_count", "attention.layer_norm_epsilon"],
        config: gpt_neox,
    },
];

/// The key's number, null where there is none.
fn number_if_any(file: &GgufFile, name: &str) -> Result<Value> {
    let key = file.key(name);
    match file.has(&key) {
        true => Ok(json!(file.float(&key)?)),
        false => Ok(Value::Null),
    }
}

/// What Gemma 2 and 3 scale attention by: the largest models not by their heads' width.
fn query_pre_attn_scalar(geometry: &Geometry, layers_of_largest: usize) -> usize {
    match geometry.layers == layers_of_largest {
        true => geometry.hidden / geometry.heads,
        false => geometry.d_head,
    }
}

fn gemma2(file: &GgufFile, geometry: &Geometry) -> Result<Value> {
    Ok(json!({
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": false,
        "query_pre_attn_scalar": query_pre_attn_scalar(geometry, 46),
        "attn_logit_softcapping": number_if_any(file, "attn_logit_softcapping")?,
        "final_logit_softcapping": number_if_any(file, "final_logit_softcapping")?,
        "sliding_window": file.integer(&file.key("attention.sliding_window"))?,
    }))
}

fn gemma3(file: &GgufFile, geometry: &Geometry) -> Result<Value> {
    let pattern = file.key("attention.sliding_window_pattern");
    let pattern = if file.has(&pattern) { file.integer(&pattern)? } else { 6 };
    let local = match number_if_any(file, "rope.freq_base_swa")? {
        Value::Null => json!(10_000.0),
        local => local,
    };
    Ok(json!({
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": false,
        "query_pre_attn_scalar": query_pre_attn_scalar(geometry, 62),
        "attn_logit_softcapping": null,
        "final_logit_softcapping": number_if_any(file, "final_logit_softcapping")?,
        "sliding_window": file.integer(&file.key("attention.sliding_window"))?,
        "_sliding_window_pattern": pattern,
        "rope_local_base_freq": local,
        "use_bidirectional_attention": false,
    }))
}

fn gpt_neox(file: &GgufFile, geometry: &Geometry) -> Result<Value> {
    let key = file.key("use_parallel_residual");
    let is_parallel = match file.has(&key) {
        true => file.value(&key)?.to_bool().map_err(file.malformed(&key))?,
        false => true,
    };
    let key = file.key("rope.dimension_count");
    let rotated = if file.has(&key) { file.integer(&key)? } else { geometry.d_head };
    if rotated == 0 || rotated > geometry.d_head {
        refuse!("{}: `{key}` is {rotated}; a head's width is {}", file.place(), geometry.d_head);
    }
    Ok(json!({
        "hidden_act": "gelu",
        "attention_bias": true,
        "use_parallel_residual": is_parallel,
        "rotary_pct": rotated as f64 / geometry.d_head as f64,
    }))
}
