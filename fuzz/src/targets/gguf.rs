//! GGUF files of every architecture, with each kind of tokenizer. One that is read is run on a few tokens.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::quantized::gguf_file::{self, Value as Gguf};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::models::load_and_run;
use super::{Reader, Target, at, file, reference};
use crate::mutate;

pub fn target() -> Target {
    Target::new("gguf", mutate::gguf::mutate, corpus, reader)
}

fn reader(folder: &Path) -> Result<Reader> {
    let file = folder.join("model.gguf");
    let choice = at(&file);
    Ok(Box::new(move |input| {
        std::fs::write(&file, input)?;
        load_and_run(&choice)
    }))
}

/// An architecture: what GGUF calls it, the reference case whose model is written, and names that are its
/// own, in config.json and GGUF.
struct Family {
    architecture: &'static str,
    case: &'static str,
    keys: &'static [(&'static str, &'static str)],
    tensors: &'static [(&'static str, &'static str)],
}

const WIDTH: (&str, &str) = ("head_dim", "attention.key_length");
const WINDOW: (&str, &str) = ("sliding_window", "attention.sliding_window");
const FINAL_CAP: (&str, &str) = ("final_logit_softcapping", "final_logit_softcapping");
/// Norms behind what they norm.
const POST_NORMS: [(&str, &str); 3] = [
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

const FAMILIES: [Family; 7] = [
    Family { architecture: "llama", case: "llama-key-mean", keys: &[], tensors: &[] },
    Family { architecture: "qwen2", case: "qwen2-key-mean", keys: &[], tensors: &[] },
    Family { architecture: "qwen3", case: "qwen3-all-corrupt", keys: &[WIDTH], tensors: &[] },
    Family {
        architecture: "gemma2",
        case: "gemma2-all-mean",
        keys: &[WIDTH, WINDOW, FINAL_CAP, ("attn_logit_softcapping", "attn_logit_softcapping")],
        tensors: &POST_NORMS,
    },
    Family {
        architecture: "gemma3",
        case: "gemma3-key-corrupt",
        keys: &[
            WIDTH,
            WINDOW,
            ("_sliding_window_pattern", "attention.sliding_window_pattern"),
            ("rope_local_base_freq", "rope.freq_base_swa"),
        ],
        tensors: &POST_NORMS,
    },
    Family { architecture: "olmo2", case: "olmo2-eap-ig", keys: &[], tensors: &POST_NORMS },
    Family {
        architecture: "gptneox",
        case: "gpt-neox-all-mean-positional",
        keys: &[
            ("layer_norm_eps", "attention.layer_norm_epsilon"),
            ("use_parallel_residual", "use_parallel_residual"),
        ],
        tensors: &[
            ("gpt_neox.embed_in", "token_embd"),
            ("gpt_neox.final_layer_norm", "output_norm"),
            ("embed_out", "output"),
            ("gpt_neox.layers", "blk"),
            ("attention.query_key_value", "attn_qkv"),
            ("attention.dense", "attn_output"),
            ("mlp.dense_h_to_4h", "ffn_up"),
            ("mlp.dense_4h_to_h", "ffn_down"),
        ],
    },
];

/// Keys of every architecture, in config.json and GGUF.
const KEYS: [(&str, &str); 8] = [
    ("num_hidden_layers", "block_count"),
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
];

/// Tensors, on Hugging Face and in GGUF; an architecture's own names come before.
const TENSORS: [(&str, &str); 15] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers", "blk"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

/// Each architecture's file with byte-level tokens, and a Llama's with tokens that have scores and weights that
/// are quantised.
fn corpus() -> Result<Vec<Vec<u8>>> {
    let mut files: Vec<Vec<u8>> = FAMILIES
        .iter()
        .map(|family| written(family, pieces, GgmlDType::F32))
        .collect::<Result<_>>()?;
    files.push(written(&FAMILIES[0], scores, GgmlDType::Q8_0)?);
    Ok(files)
}

type Metadata = Vec<(String, Gguf)>;

fn written(
    family: &Family,
    tokenizer: fn(usize) -> Metadata,
    weights: GgmlDType,
) -> Result<Vec<u8>> {
    let config = file(&format!("tests/reference/{}/model/config.json", family.case))?;
    let config: Value = serde_json::from_slice(&config)?;
    let size = config["vocab_size"].as_u64().context("vocab_size")? as usize;
    let metadata = [metadata(family, &config), tokenizer(size)].concat();
    let metadata: Vec<(&str, &Gguf)> =
        metadata.iter().map(|(key, value)| (&**key, value)).collect();
    let names = family.tensors.iter().chain(&TENSORS);
    let mut tensors: Vec<(String, QTensor)> = (reference(family.case)?.state_dict()?.into_iter())
        .map(|(name, tensor)| {
            let name = names.clone().fold(name, |name, (ours, theirs)| name.replace(ours, theirs));
            let weights = if tensor.rank() == 2 { weights } else { GgmlDType::F32 };
            Ok((name, QTensor::quantize(&tensor, weights)?))
        })
        .collect::<Result<_>>()?;
    if family.architecture == "llama" {
        // Llama 3's scaling, by 1.
        let width = config["head_dim"].as_u64().context("head_dim")? as usize;
        let factors = Tensor::ones(width / 2, DType::F32, &Device::Cpu)?;
        let factors = QTensor::quantize(&factors, GgmlDType::F32)?;
        tensors.push(("rope_freqs.weight".to_owned(), factors));
    }
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, t)| (&**name, t)).collect();
    let mut file = std::io::Cursor::new(Vec::new());
    gguf_file::write(&mut file, &metadata, &tensors)?;
    Ok(file.into_inner())
}

fn text(text: &str) -> Gguf {
    Gguf::String(text.to_owned())
}

fn metadata(family: &Family, config: &Value) -> Metadata {
    let general = [("architecture", text(family.architecture)), ("alignment", Gguf::U32(32))]
        .map(|(key, value)| (format!("general.{key}"), value));
    let keys = KEYS.iter().chain(family.keys).filter_map(|(ours, theirs)| {
        let value = match &config[ours] {
            Value::Bool(value) => Gguf::Bool(*value),
            value => match value.as_u64() {
                // GGUF's frequencies and epsilons are always of this type.
                Some(value) if !theirs.contains("rope") => Gguf::U32(value as u32),
                _ => Gguf::F32(value.as_f64()? as f32),
            },
        };
        Some((format!("{}.{theirs}", family.architecture), value))
    });
    general.into_iter().chain(keys).collect()
}

fn keyed<const N: usize>(values: [(&str, Gguf); N]) -> Metadata {
    values.map(|(key, value)| (format!("tokenizer.{key}"), value)).into()
}

/// So many tokens: special ones, two letters and both together, and names.
fn tokens(count: usize) -> Gguf {
    let first = ["<s>", "</s>", "<unk>", "a", "b", "ab"].map(str::to_owned);
    let rest = (first.len()..count).map(|id| format!("t{id}"));
    Gguf::Array(first.iter().cloned().chain(rest).map(Gguf::String).collect())
}

fn pieces(count: usize) -> Metadata {
    keyed([
        ("ggml.model", text("gpt2")),
        ("ggml.pre", text("gpt-2")),
        ("ggml.tokens", tokens(count)),
        ("ggml.merges", Gguf::Array(vec![text("a b")])),
        ("ggml.bos_token_id", Gguf::U32(0)),
        ("ggml.eos_token_id", Gguf::U32(1)),
        ("chat_template", text("{% for m in messages %}{{ m.content }}{% endfor %}")),
    ])
}

fn scores(count: usize) -> Metadata {
    let kinds = (0..count).map(|id| Gguf::I32(*[3, 3, 2].get(id).unwrap_or(&1)));
    keyed([
        ("ggml.model", text("llama")),
        ("ggml.tokens", tokens(count)),
        ("ggml.scores", Gguf::Array((0..count).map(|id| Gguf::F32(-(id as f32))).collect())),
        ("ggml.token_type", Gguf::Array(kinds.collect())),
        ("ggml.bos_token_id", Gguf::U32(0)),
        ("ggml.eos_token_id", Gguf::U32(1)),
        ("ggml.add_space_prefix", Gguf::Bool(true)),
    ])
}
