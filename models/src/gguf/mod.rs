//! GGUF files of Llama models: weights, which are dequantised as they are asked for, and the
//! configuration, tokenizer and chat template from the metadata, all brought into Hugging Face's form.
//! What a file says that this model can't do is refused.

mod tokenizer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Tensor};
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::model::checkpoint::{Stored, Weights};
use circuit_framework::{Checkpoint, Error, Result, refuse};
use serde_json::json;

use circuit_framework::model::decoder::rope::{Llama3Scaling, frequencies};

/// Reads a file's configuration and tokenizer, and lists its weights.
pub(crate) fn read(path: &Path) -> Result<(Checkpoint, Tokenizer)> {
    let file = File::open(path).map_err(Error::io(path))?;
    let content = Content::read(&mut BufReader::new(file)).map_err(|error| {
        Error::input(format!("{}: not a whole GGUF file ({error}); fetch it again", path.display()))
    })?;
    let file = GgufFile { path: path.to_path_buf(), content };
    let architecture = file.text("general.architecture")?;
    if architecture != "llama" {
        refuse!(
            "{}: architecture `{architecture}`; GGUF files of llama models can be read",
            path.display()
        );
    }
    let (file, tokenizer) = file.tokenizer()?;
    Ok((Arc::new(file).checkpoint(&tokenizer)?, tokenizer))
}

struct GgufFile {
    path: PathBuf,
    content: Content,
}

/// The shape of a Llama model.
struct Geometry {
    layers: usize,
    heads: usize,
    kv_heads: usize,
    hidden: usize,
}

impl GgufFile {
    fn value(&self, key: &str) -> Result<&Value> {
        (self.content.metadata.get(key)).ok_or_else(|| {
            Error::input(format!("{}: the metadata has no `{key}`", self.path.display()))
        })
    }

    fn malformed(&self, key: &str) -> impl FnOnce(candle_core::Error) -> Error {
        let place = format!("{}: `{key}`", self.path.display());
        move |error| Error::input(format!("{place}: {error}"))
    }

    fn has(&self, key: &str) -> bool {
        self.content.metadata.contains_key(key)
    }

    fn text(&self, key: &str) -> Result<String> {
        Ok(self.value(key)?.to_string().map_err(self.malformed(key))?.clone())
    }

    fn integer(&self, key: &str) -> Result<usize> {
        Ok(self.value(key)?.to_u64().map_err(self.malformed(key))? as usize)
    }

    fn float(&self, key: &str) -> Result<f64> {
        Ok(f64::from(self.value(key)?.to_f32().map_err(self.malformed(key))?))
    }

    /// A tensor, dequantised. GGUF lists dimensions innermost first; candle turns them round.
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let place = format!("{}: tensor `{name}`", self.path.display());
        let file = File::open(&self.path).map_err(Error::io(&self.path))?;
        let tensor = self.content.tensor(&mut BufReader::new(file), name, &Device::Cpu);
        (tensor.and_then(|tensor| tensor.dequantize(&Device::Cpu)))
            .map_err(|error| Error::input(format!("{place}: {error}")))
    }

    fn geometry(&self) -> Result<Geometry> {
        let heads = self.integer("llama.attention.head_count")?;
        let kv_heads = match self.has("llama.attention.head_count_kv") {
            true => self.integer("llama.attention.head_count_kv")?,
            false => heads,
        };
        let layers = self.integer("llama.block_count")?;
        let hidden = self.integer("llama.embedding_length")?;
        let place = self.path.display();
        let counts = [
            ("block_count", layers),
            ("attention.head_count", heads),
            ("attention.head_count_kv", kv_heads),
            ("embedding_length", hidden),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, count)| *count == 0) {
            refuse!("{place}: `llama.{key}` is 0; it must be at least 1");
        }
        let d_head = hidden / heads;
        if d_head * heads != hidden || !d_head.is_multiple_of(2) || !heads.is_multiple_of(kv_heads)
        {
            refuse!(
                "{place}: `llama.embedding_length` {hidden}, `llama.attention.head_count` {heads} and \
                 `llama.attention.head_count_kv` {kv_heads} do not divide each other into heads of \
                 even width"
            );
        }
        Ok(Geometry { layers, heads, kv_heads, hidden })
    }

    /// Refuses every `llama.` key that would change what the model computes.
    fn check_metadata(&self, d_head: usize) -> Result<()> {
        let keys: BTreeMap<&String, &Value> = self.content.metadata.iter().collect();
        for (key, value) in keys {
            let Some(name) = key.strip_prefix("llama.").filter(|name| !READ.contains(name)) else {
                continue;
            };
            let number = value.to_u64().ok().map(|n| n as f64);
            let number = number.or(value.to_f32().ok().map(f64::from));
            let (readable, accepted) = match name {
                "rope.dimension_count" | "attention.key_length" | "attention.value_length" => {
                    (number == Some(d_head as f64), format!("a head's width, {d_head}"))
                }
                // Linear scaling is by the factor, another key.
                "rope.scaling.type" => {
                    let unscaled = |kind: &String| ["none", "linear"].contains(&&**kind);
                    (value.to_string().is_ok_and(unscaled), "none or linear".to_owned())
                }
                "rope.scaling.factor" | "rope.scale_linear" => {
                    (number == Some(0.0) || number == Some(1.0), "1".to_owned())
                }
                "expert_count" | "expert_used_count" => (number == Some(0.0), "0".to_owned()),
                "attention.causal" => (number == Some(1.0), "true".to_owned()),
                _ => (false, "a file without it".to_owned()),
            };
            if !readable {
                refuse!("{}: `{key}` can't be read; what can is {accepted}", self.path.display());
            }
        }
        Ok(())
    }

    /// The tensors under Hugging Face's names. One that has no place in the model is refused.
    fn tensors(self: &Arc<Self>, geometry: &Geometry) -> Result<BTreeMap<String, Stored>> {
        let mut names: BTreeMap<String, (String, Option<usize>)> = BTreeMap::new();
        let mut name = |theirs: &str, ours: &str, rotated| {
            names.insert(format!("{theirs}.weight"), (format!("{ours}.weight"), rotated));
        };
        name("token_embd", "model.embed_tokens", None);
        name("output_norm", "model.norm", None);
        name("output", "lm_head", None);
        for layer in 0..geometry.layers {
            for (theirs, ours) in LAYER_TENSORS {
                let rotated = match theirs {
                    "attn_q" => Some(geometry.heads),
                    "attn_k" => Some(geometry.kv_heads),
                    _ => None,
                };
                name(
                    &format!("blk.{layer}.{theirs}"),
                    &format!("model.layers.{layer}.{ours}"),
                    rotated,
                );
            }
        }
        let mut tensors = BTreeMap::new();
        for (theirs, info) in self.content.tensor_infos.iter().collect::<BTreeMap<_, _>>() {
            let Some((ours, rotated)) = names.remove(theirs) else {
                if theirs == ROPE_FACTORS {
                    continue;
                }
                refuse!(
                    "{}: tensor `{theirs}` has no place in a llama model as it can be read",
                    self.path.display()
                );
            };
            let (file, theirs) = (Arc::clone(self), theirs.clone());
            let read = move || match rotated {
                None => file.tensor(&theirs),
                Some(heads) => unpermute(&file.tensor(&theirs)?, heads),
            };
            let shape = info.shape.dims().to_vec();
            tensors.insert(ours, Stored { shape, read: Box::new(read) });
        }
        Ok(tensors)
    }

    fn checkpoint(self: Arc<Self>, tokenizer: &Tokenizer) -> Result<Checkpoint> {
        let geometry = self.geometry()?;
        let d_head = geometry.hidden / geometry.heads;
        self.check_metadata(d_head)?;
        let theta = match self.has("llama.rope.freq_base") {
            true => self.float("llama.rope.freq_base")?,
            false => 10_000.0,
        };
        let tensors = self.tensors(&geometry)?;
        let embedding = tensors.get("model.embed_tokens.weight");
        let vocabulary = embedding.and_then(|tensor| tensor.shape.first().copied());
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": geometry.hidden,
            "intermediate_size": self.integer("llama.feed_forward_length")?,
            "num_hidden_layers": geometry.layers,
            "num_attention_heads": geometry.heads,
            "num_key_value_heads": geometry.kv_heads,
            "vocab_size": vocabulary.unwrap_or(0),
            "max_position_embeddings": self.integer("llama.context_length")?,
            "rms_norm_eps": shortest(self.float("llama.attention.layer_norm_rms_epsilon")?),
            "rope_theta": theta,
            "rope_scaling": self.rope_scaling(d_head, theta)?,
            "tie_word_embeddings": !tensors.contains_key("lm_head.weight"),
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "bos_token_id": tokenizer.beginning,
            "eos_token_id": tokenizer.end,
            "torch_dtype": "float32",
        });
        Ok(Checkpoint {
            config,
            weights: Weights::Stored(tensors),
            dtype: DType::F32,
            device: Device::Cpu,
            origin: self.path.display().to_string(),
        })
    }

    /// Llama 3's scaling stands in GGUF as the factors that divide the frequencies; the settings
    /// they come from are Llama 3's own but for the largest factor.
    fn rope_scaling(&self, d_head: usize, theta: f64) -> Result<serde_json::Value> {
        if !self.content.tensor_infos.contains_key(ROPE_FACTORS) {
            return Ok(serde_json::Value::Null);
        }
        let factors = self.tensor(ROPE_FACTORS)?.flatten_all()?.to_vec1::<f32>()?;
        let scaling = Llama3Scaling {
            factor: f64::from(factors.iter().copied().fold(1.0, f32::max)),
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let plain = frequencies(d_head, theta, None);
        let scaled = frequencies(d_head, theta, Some(&scaling));
        let expected = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled);
        let fits = factors.len() == plain.len()
            && (expected.zip(&factors)).all(|(a, &b)| (a / f64::from(b) - 1.0).abs() < 1e-3);
        if !fits {
            refuse!(
                "{}: tensor `{ROPE_FACTORS}` is not Llama 3's scaling, the only one that can be read",
                self.path.display()
            );
        }
        Ok(json!({
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": 8192,
        }))
    }
}

/// The tensor with the factors of Llama 3's scaling.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Metadata under `llama.` that is read, or says nothing about the computation.
const READ: [&str; 11] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.scaling.finetuned",
    "tensor_data_layout",
];

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
