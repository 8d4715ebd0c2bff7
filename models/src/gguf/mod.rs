//! GGUF files: weights, which are dequantised as they are asked for, and the
//! configuration, tokenizer and chat template from the metadata, all brought into Hugging Face's form.
//! What a file says that this model can't do is refused.

mod families;
mod scores;
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
use circuit_framework::panics::caught;
use circuit_framework::{Checkpoint, Error, Result, files, memory, refuse};
use serde_json::{Value as Json, json};

use self::families::{Change, FAMILIES, Family};

use circuit_framework::model::decoder::rope::{Llama3Scaling, frequencies};

/// The architecture that GGUF files name for a Hugging Face `model_type`, where such files can be read.
pub(crate) fn architecture(model_type: &str) -> Option<&'static str> {
    let family = FAMILIES.iter().find(|family| family.model_type == model_type)?;
    Some(family.architecture)
}

/// Reads a file's configuration and tokenizer, and lists its weights.
pub(crate) fn read(path: &Path) -> Result<(Checkpoint, Tokenizer)> {
    files::check_regular(path)?;
    let file = File::open(path).map_err(Error::io(path))?;
    let place = path.display();
    let length = file.metadata().map_err(Error::io(path))?.len();
    // It divides by the alignment that the file gives, which may be 0.
    let content = caught("its reader", || Ok(Content::read(&mut BufReader::new(file))?));
    let content = content.map_err(|error| {
        Error::input(format!("{place}: not a whole GGUF file ({error}); fetch it again"))
    })?;
    check_tensors(&content, length, path)?;
    let architecture = match content.metadata.get("general.architecture").map(Value::to_string) {
        Some(Ok(architecture)) => architecture.clone(),
        _ => refuse!("{place}: the metadata has no `general.architecture`"),
    };
    let Some(family) = FAMILIES.iter().find(|family| family.architecture == architecture) else {
        let known: Vec<&str> = FAMILIES.iter().map(|family| family.architecture).collect();
        refuse!(
            "{place}: architecture `{architecture}`; GGUF files of {} models can be read",
            known.join(", ")
        );
    };
    let file = GgufFile { path: path.to_path_buf(), content, family };
    let (file, tokenizer) = caught(&format!("{place}: the tokenizer"), || file.tokenizer())?;
    Ok((Arc::new(file).checkpoint(&tokenizer)?, tokenizer))
}

/// Refuses tensors that the file, of so many bytes, has no room for: candle multiplies their dimensions
/// unchecked.
fn check_tensors(content: &Content, length: u64, path: &Path) -> Result<()> {
    for (name, info) in content.tensor_infos.iter().collect::<BTreeMap<_, _>>() {
        let (shape, kind) = (info.shape.dims(), info.ggml_dtype);
        let entries = memory::product(shape);
        let bytes = (entries / kind.block_size() as u64).saturating_mul(kind.type_size() as u64);
        let end = content.tensor_data_offset.saturating_add(info.offset).saturating_add(bytes);
        if shape.contains(&0) || end > length {
            refuse!(
                "{}: tensor `{name}` of shape {shape:?} has no room in the file; fetch it again",
                path.display()
            );
        }
    }
    Ok(())
}

struct GgufFile {
    path: PathBuf,
    content: Content,
    family: &'static Family,
}

/// The shape of a model.
struct Geometry {
    layers: usize,
    heads: usize,
    kv_heads: usize,
    hidden: usize,
    d_head: usize,
}

impl GgufFile {
    /// What messages call the file.
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    /// A key of the architecture.
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family.architecture)
    }

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
        let integer = |name: &str| self.integer(&self.key(name));
        let has = |name: &str| self.has(&self.key(name));
        let heads = integer("attention.head_count")?;
        let kv_heads = match has("attention.head_count_kv") {
            true => integer("attention.head_count_kv")?,
            false => heads,
        };
        let (layers, hidden) = (integer("block_count")?, integer("embedding_length")?);
        let place = self.path.display();
        let counts = [
            ("block_count", layers),
            ("attention.head_count", heads),
            ("attention.head_count_kv", kv_heads),
            ("embedding_length", hidden),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            refuse!("{place}: `{}` is 0; it must be at least 1", self.key(name));
        }
        // A Llama's heads are as wide together as the stream.
        let has_width = has("attention.key_length") && self.family.architecture != "llama";
        let d_head = if has_width { integer("attention.key_length")? } else { hidden / heads };
        let divides = has_width || d_head * heads == hidden;
        if !divides || !d_head.is_multiple_of(2) || !heads.is_multiple_of(kv_heads) {
            let [stream, all, shared] =
                ["embedding_length", "attention.head_count", "attention.head_count_kv"]
                    .map(|name| self.key(name));
            refuse!(
                "{place}: `{stream}` {hidden}, `{all}` {heads} and `{shared}` {kv_heads} do not divide \
                 each other into heads of even width"
            );
        }
        let tensors = self.content.tensor_infos.len();
        if layers > tensors {
            refuse!(
                "{place}: `{}` is {layers}, but there are only {tensors} tensors; fetch the file again",
                self.key("block_count")
            );
        }
        let context = integer("context_length")?;
        let what = format!(
            "{place}: `{}` is {context}, and tables of its positions",
            self.key("context_length")
        );
        memory::check(
            &what,
            memory::product(&[context, d_head, 8]),
            "give the context that the model has",
        )?;
        Ok(Geometry { layers, heads, kv_heads, hidden, d_head })
    }

    /// Refuses every key of the architecture that would change what the model computes.
    fn check_metadata(&self, d_head: usize) -> Result<()> {
        let keys: BTreeMap<&String, &Value> = self.content.metadata.iter().collect();
        for (key, value) in keys {
            let own = key.strip_prefix(self.family.architecture);
            let name = match own.and_then(|own| own.strip_prefix('.')) {
                Some(name) if !READ.contains(&name) && !self.family.reads.contains(&name) => name,
                _ => continue,
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

    /// GGUF's names of all tensors, with Hugging Face's and how they differ.
    fn names(&self, geometry: &Geometry) -> BTreeMap<String, (String, Change)> {
        let family = self.family;
        let mut names = BTreeMap::new();
        let mut name = |(prefix, module): (String, &str), ours: String| {
            let change = Change::of(family, module, geometry);
            let parts =
                if family.biased.contains(&module) { &["weight", "bias"][..] } else { &["weight"] };
            for part in parts {
                names
                    .insert(format!("{prefix}{module}.{part}"), (format!("{ours}.{part}"), change));
            }
        };
        for (theirs, ours) in family.outer {
            name((String::new(), theirs), (*ours).to_owned());
        }
        for layer in 0..geometry.layers {
            for (theirs, ours) in family.layer {
                name(
                    (format!("blk.{layer}."), theirs),
                    format!("{}.{layer}.{ours}", family.layers),
                );
            }
        }
        names
    }

    /// The tensors under Hugging Face's names. One that has no place in the model is refused.
    fn tensors(self: &Arc<Self>, geometry: &Geometry) -> Result<BTreeMap<String, Stored>> {
        let mut names = self.names(geometry);
        let mut tensors = BTreeMap::new();
        for (theirs, info) in self.content.tensor_infos.iter().collect::<BTreeMap<_, _>>() {
            let Some((ours, change)) = names.remove(theirs) else {
                if theirs == ROPE_FACTORS {
                    continue;
                }
                refuse!(
                    "{}: tensor `{theirs}` has no place in a {} model as it can be read",
                    self.path.display(),
                    self.family.architecture
                );
            };
            let (file, theirs) = (Arc::clone(self), theirs.clone());
            let read = move || change.undo(&file.tensor(&theirs)?);
            let shape = info.shape.dims().to_vec();
            tensors.insert(ours, Stored { shape, read: Box::new(read) });
        }
        Ok(tensors)
    }

    fn checkpoint(self: Arc<Self>, tokenizer: &Tokenizer) -> Result<Checkpoint> {
        let geometry = self.geometry()?;
        self.check_metadata(geometry.d_head)?;
        let tensors = self.tensors(&geometry)?;
        let config = self.config(&geometry, &tensors, tokenizer)?;
        Ok(Checkpoint {
            config,
            weights: Weights::Stored(tensors),
            dtype: DType::F32,
            device: Device::Cpu,
            origin: self.path.display().to_string(),
        })
    }

    /// Hugging Face's config.json.
    fn config(
        &self,
        geometry: &Geometry,
        tensors: &BTreeMap<String, Stored>,
        tokenizer: &Tokenizer,
    ) -> Result<Json> {
        let family = self.family;
        let [embedding, _, unembedding] =
            [0, 1, 2].map(|at| format!("{}.weight", family.outer[at].1));
        let base = self.key("rope.freq_base");
        let theta = if self.has(&base) { self.float(&base)? } else { 10_000.0 };
        let vocabulary = tensors.get(&embedding).and_then(|tensor| tensor.shape.first().copied());
        let (rms, layer) = (
            self.key("attention.layer_norm_rms_epsilon"),
            self.key("attention.layer_norm_epsilon"),
        );
        let (epsilon, given) = match self.has(&layer) {
            true => ("layer_norm_eps", layer),
            false => ("rms_norm_eps", rms),
        };
        let mut config = json!({
            "architectures": [family.class],
            "model_type": family.model_type,
            "hidden_size": geometry.hidden,
            "intermediate_size": self.integer(&self.key("feed_forward_length"))?,
            "num_hidden_layers": geometry.layers,
            "num_attention_heads": geometry.heads,
            "num_key_value_heads": geometry.kv_heads,
            "vocab_size": vocabulary.unwrap_or(0),
            "max_position_embeddings": self.integer(&self.key("context_length"))?,
            epsilon: shortest(self.float(&given)?),
            "rope_theta": theta,
            "rope_scaling": self.rope_scaling(geometry.d_head, theta)?,
            "tie_word_embeddings": !tensors.contains_key(&unembedding),
            "bos_token_id": tokenizer.beginning,
            "eos_token_id": tokenizer.end,
            "torch_dtype": "float32",
        });
        if geometry.d_head * geometry.heads != geometry.hidden {
            config["head_dim"] = json!(geometry.d_head);
        }
        if let (Some(config), Some(own)) =
            (config.as_object_mut(), (family.config)(self, geometry)?.as_object())
        {
            config.extend(own.clone());
        }
        Ok(config)
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

/// Keys of every architecture that are read, or say nothing about the computation.
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

/// The float64 that a float32 was written as in decimal: 1e-5, not 9.99999974737875e-6.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}
