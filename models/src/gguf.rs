//! GGUF files of Llama models: weights dequantised to float32, and the configuration, tokenizer and
//! chat template from the metadata, all brought into Hugging Face's form.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::llama::{Llama3RopeConfig, Llama3RopeType};
use circuit_framework::model::Weights;
use circuit_framework::tokenizer::Tokenizer;
use circuit_framework::{Checkpoint, Error, Result, refuse};
use serde_json::json;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

use crate::llama::frequencies;

/// Reads a file's configuration, weights and tokenizer.
pub(crate) fn read(path: &Path) -> Result<(Checkpoint, Tokenizer)> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut reader = BufReader::new(file);
    let content = Content::read(&mut reader).map_err(|error| {
        Error::input(format!("{}: not a whole GGUF file ({error}); fetch it again", path.display()))
    })?;
    let mut file = GgufFile { path, content, reader };
    let architecture = file.text("general.architecture")?;
    if architecture != "llama" {
        refuse!(
            "{}: architecture `{architecture}`; GGUF files of llama models can be read",
            path.display()
        );
    }
    let tokenizer = file.tokenizer()?;
    Ok((file.checkpoint(&tokenizer)?, tokenizer))
}

struct GgufFile<'a> {
    path: &'a Path,
    content: Content,
    reader: BufReader<File>,
}

impl GgufFile<'_> {
    fn value(&self, key: &str) -> Result<&Value> {
        (self.content.metadata.get(key)).ok_or_else(|| {
            Error::input(format!("{}: the metadata has no `{key}`", self.path.display()))
        })
    }

    fn malformed(&self, key: &str) -> impl FnOnce(candle_core::Error) -> Error {
        let place = format!("{}: `{key}`", self.path.display());
        move |error| Error::input(format!("{place}: {error}"))
    }

    fn text(&self, key: &str) -> Result<String> {
        Ok(self.value(key)?.to_string().map_err(self.malformed(key))?.clone())
    }

    fn integer(&self, key: &str) -> Result<usize> {
        Ok(self.value(key)?.to_u64().map_err(self.malformed(key))? as usize)
    }

    fn optional_integer(&self, key: &str) -> Option<u32> {
        self.content.metadata.get(key).and_then(|value| value.to_u64().ok()).map(|id| id as u32)
    }

    fn float(&self, key: &str) -> Result<f64> {
        Ok(f64::from(self.value(key)?.to_f32().map_err(self.malformed(key))?))
    }

    /// A tensor, dequantised. GGUF lists dimensions innermost first; candle turns them round.
    fn tensor(&mut self, name: &str) -> Result<Tensor> {
        let place = format!("{}: tensor `{name}`", self.path.display());
        let tensor = self.content.tensor(&mut self.reader, name, &Device::Cpu);
        (tensor.and_then(|tensor| tensor.dequantize(&Device::Cpu)))
            .map_err(|error| Error::input(format!("{place}: {error}")))
    }

    fn checkpoint(&mut self, tokenizer: &Tokenizer) -> Result<Checkpoint> {
        let layers = self.integer("llama.block_count")?;
        let heads = self.integer("llama.attention.head_count")?;
        let kv_heads = self.integer("llama.attention.head_count_kv")?;
        let hidden = self.integer("llama.embedding_length")?;
        let theta = match self.content.metadata.contains_key("llama.rope.freq_base") {
            true => self.float("llama.rope.freq_base")?,
            false => 10_000.0,
        };
        let mut tensors = BTreeMap::new();
        tensors.insert("model.embed_tokens.weight".to_owned(), self.tensor("token_embd.weight")?);
        tensors.insert("model.norm.weight".to_owned(), self.tensor("output_norm.weight")?);
        let tied = !self.content.tensor_infos.contains_key("output.weight");
        if !tied {
            tensors.insert("lm_head.weight".to_owned(), self.tensor("output.weight")?);
        }
        for layer in 0..layers {
            for (theirs, ours) in LAYER_TENSORS {
                let tensor = self.tensor(&format!("blk.{layer}.{theirs}.weight"))?;
                let tensor = match theirs {
                    "attn_q" => unpermute(&tensor, heads)?,
                    "attn_k" => unpermute(&tensor, kv_heads)?,
                    _ => tensor,
                };
                tensors.insert(format!("model.layers.{layer}.{ours}.weight"), tensor);
            }
        }
        let vocabulary = tensors["model.embed_tokens.weight"].dim(0)?;
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": self.integer("llama.feed_forward_length")?,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocabulary,
            "max_position_embeddings": self.integer("llama.context_length")?,
            "rms_norm_eps": shortest(self.float("llama.attention.layer_norm_rms_epsilon")?),
            "rope_theta": theta,
            "rope_scaling": self.rope_scaling(hidden / heads.max(1), theta)?,
            "tie_word_embeddings": tied,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "bos_token_id": tokenizer.beginning,
            "eos_token_id": tokenizer.end,
            "torch_dtype": "float32",
        });
        Ok(Checkpoint {
            config,
            weights: Weights::Given(tensors),
            dtype: DType::F32,
            device: Device::Cpu,
            origin: self.path.display().to_string(),
        })
    }

    /// Llama 3's scaling stands in GGUF as the factors that divide the frequencies; the settings
    /// they come from are Llama 3's own but for the largest factor.
    fn rope_scaling(&mut self, d_head: usize, theta: f64) -> Result<serde_json::Value> {
        if !self.content.tensor_infos.contains_key("rope_freqs.weight") {
            return Ok(serde_json::Value::Null);
        }
        let factors = self.tensor("rope_freqs.weight")?.flatten_all()?.to_vec1::<f32>()?;
        let scaling = Llama3RopeConfig {
            factor: factors.iter().copied().fold(1.0, f32::max),
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
            rope_type: Llama3RopeType::Llama3,
        };
        let plain = frequencies(d_head, theta, None);
        let scaled = frequencies(d_head, theta, Some(&scaling));
        let expected = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled);
        let fits = factors.len() == plain.len()
            && (expected.zip(&factors)).all(|(a, &b)| (a / f64::from(b) - 1.0).abs() < 1e-3);
        if !fits {
            refuse!(
                "{}: tensor `rope_freqs.weight` is not Llama 3's scaling, the only one that can be read",
                self.path.display()
            );
        }
        Ok(json!({
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }))
    }

    fn tokenizer(&mut self) -> Result<Tokenizer> {
        let model = self.text("tokenizer.ggml.model")?;
        let pre = self.text("tokenizer.ggml.pre").unwrap_or_else(|_| "default".to_owned());
        // candle knows some pre-tokenisers under these names and takes GPT-2's for all others, so
        // what it would get silently wrong is put right or refused here.
        let known = match pre.as_str() {
            "smollm" | "gpt-2" => "gpt-2",
            "llama-bpe" | "llama3" | "smaug-bpe" => "llama3",
            "qwen2" => "qwen2",
            _ => refuse!(
                "{}: pre-tokeniser `{pre}`; known: smollm, gpt-2, llama-bpe, llama3, smaug-bpe, qwen2",
                self.path.display()
            ),
        };
        if model != "gpt2" {
            refuse!(
                "{}: tokenizer `{model}`; byte-level BPE (`gpt2`) can be read",
                self.path.display()
            );
        }
        self.content
            .metadata
            .insert("tokenizer.ggml.pre".to_owned(), Value::String(known.to_owned()));
        let mut inner = tokenizers::Tokenizer::from_gguf(&self.content)
            .map_err(self.malformed("tokenizer.ggml"))?;
        let byte_level = ByteLevel::new(false, true, true);
        match pre.as_str() {
            "smollm" => {
                let steps = vec![Digits::new(true).into(), byte_level.into()];
                inner.with_pre_tokenizer(Some(Sequence::new(steps)));
            }
            "gpt-2" => {
                inner.with_pre_tokenizer(Some(byte_level));
            }
            _ => {}
        }
        Ok(Tokenizer {
            inner,
            beginning: self.optional_integer("tokenizer.ggml.bos_token_id"),
            end: self.optional_integer("tokenizer.ggml.eos_token_id"),
            chat_template: self.text("tokenizer.chat_template").ok(),
        })
    }
}

/// A layer's tensors in GGUF and in Hugging Face's Llama.
const LAYER_TENSORS: [(&str, &str); 9] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
];

/// GGUF interleaves the pairs that are rotated; Hugging Face keeps them half a head apart.
/// [heads·d_head, in] → the same shape.
fn unpermute(weight: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    let pairs = weight.reshape((heads, rows / heads / 2, 2, columns))?;
    Ok(pairs.transpose(1, 2)?.contiguous()?.reshape((rows, columns))?)
}

/// The float64 that a float32 was written as in decimal: 1e-5, not 9.99999974737875e-6.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}
