//! Small random models of every family, plugins by name, and where the real data is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::DType;
use circuit_framework::data::example::Counterfactual;
use circuit_framework::model::Precision;
use circuit_framework::plugin::registry::{self, Kind};
use circuit_framework::run::experiment::ModelChoice;
use circuit_framework::{Example, Key, Model, Plugin, inventory};
use circuit_models::Loaded;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A plugin by name, with options from TOML.
pub fn plugin<T: Kind + ?Sized>(name: &str, options: &str) -> Box<T>
where
    Plugin<T>: inventory::Collect,
{
    registry::find::<T>(name).unwrap().build(&toml::from_str(options).unwrap()).unwrap()
}

/// A model at a path, with default settings.
pub fn at(path: &Path) -> ModelChoice {
    ModelChoice { path: path.to_path_buf(), ..ModelChoice::default() }
}

/// Loads a model that is known to be good.
pub fn load(choice: ModelChoice) -> Loaded {
    circuit_models::load(&choice).unwrap()
}

/// So many random cases.
pub fn few(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// A family of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Gpt2,
    Llama,
    Qwen2,
    Qwen3,
    Mistral,
    Gemma2,
    Gemma3,
    GptNeox,
    Olmo2,
}

impl Family {
    pub const ALL: [Self; 9] = [
        Self::Gpt2,
        Self::Llama,
        Self::Qwen2,
        Self::Qwen3,
        Self::Mistral,
        Self::Gemma2,
        Self::Gemma3,
        Self::GptNeox,
        Self::Olmo2,
    ];

    /// Whether heads can share keys and values.
    fn groups(self) -> bool {
        !matches!(self, Self::Gpt2 | Self::GptNeox)
    }

    /// Whether its MLP has a gate.
    pub fn has_gate(self) -> bool {
        self.groups()
    }

    /// Whether what sub-layers write is normalised.
    pub fn has_norms_after(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3 | Self::Olmo2)
    }

    /// Whether an MLP doesn't read what attention in its own layer writes.
    pub fn is_parallel(self) -> bool {
        self == Self::GptNeox
    }
}

/// The geometry of a small model.
#[derive(Clone, Debug)]
pub struct Geometry {
    pub family: Family,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub d_head: usize,
    pub mlp_heads: usize,
    pub split_mlp: bool,
    pub tied: bool,
}

/// Tokens of every small model.
pub const VOCABULARY: usize = 23;
/// Neurons an MLP head.
pub const MLP_HEAD_WIDTH: usize = 4;

/// Half of them GPT-2 and Llama, the rest of any family.
pub fn geometries() -> impl Strategy<Value = Geometry> {
    let known = prop::sample::select(vec![Family::Gpt2, Family::Llama]);
    let family = prop_oneof![known, prop::sample::select(Family::ALL.to_vec())];
    let flags = (family, any::<bool>(), any::<bool>());
    (1..4usize, 1..3usize, 1..3usize, 1..3usize, 1..4usize, flags).prop_map(
        |(layers, kv_heads, group, half, mlp_heads, (family, split_mlp, tied))| {
            let kv_heads = if family.groups() { kv_heads } else { kv_heads * group };
            let heads = if family.groups() { kv_heads * group } else { kv_heads };
            let d_head = 2 * half;
            Geometry { family, layers, heads, kv_heads, d_head, mlp_heads, split_mlp, tied }
        },
    )
}

impl Geometry {
    pub fn config(&self) -> Value {
        let (d_model, width) = (self.heads * self.d_head, self.mlp_heads * MLP_HEAD_WIDTH);
        // What most families call alike.
        let standard = |model_type: &str, more: Value| {
            let mut config = json!({
                "model_type": model_type, "hidden_size": d_model, "intermediate_size": width,
                "vocab_size": VOCABULARY, "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
                "rms_norm_eps": 1e-5, "max_position_embeddings": 16, "tie_word_embeddings": self.tied,
            });
            let more = more.as_object().unwrap().clone();
            config.as_object_mut().unwrap().extend(more);
            config
        };
        // Heads that aren't as wide together as the stream.
        let wider = d_model + 2;
        match self.family {
            Family::Gpt2 => json!({
                "model_type": "gpt2", "vocab_size": VOCABULARY, "n_positions": 16, "n_embd": d_model,
                "n_layer": self.layers, "n_head": self.heads, "n_inner": width, "layer_norm_epsilon": 1e-5,
            }),
            Family::Llama => standard("llama", json!({})),
            Family::Qwen2 => standard("qwen2", json!({})),
            Family::Qwen3 => {
                standard("qwen3", json!({ "hidden_size": wider, "head_dim": self.d_head }))
            }
            Family::Mistral => standard("mistral", json!({ "sliding_window": 3 })),
            Family::Gemma2 => standard(
                "gemma2",
                json!({
                    "hidden_size": wider, "head_dim": self.d_head, "query_pre_attn_scalar": 3,
                    "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "sliding_window": 2,
                }),
            ),
            Family::Gemma3 => standard(
                "gemma3_text",
                json!({
                    "hidden_size": wider, "head_dim": self.d_head, "query_pre_attn_scalar": 3,
                    "sliding_window": 2, "sliding_window_pattern": 2, "rope_theta": 1e6,
                }),
            ),
            Family::GptNeox => json!({
                "model_type": "gpt_neox", "vocab_size": VOCABULARY, "max_position_embeddings": 16,
                "hidden_size": d_model, "intermediate_size": width, "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads, "layer_norm_eps": 1e-5, "rotary_emb_base": 1e4,
                "rotary_pct": 2.0 / self.d_head as f64, "tie_word_embeddings": self.tied,
            }),
            Family::Olmo2 => standard("olmo2", json!({})),
        }
    }

    pub fn options(&self) -> toml::Table {
        let width =
            self.split_mlp.then(|| ("mlp_head_width".to_owned(), (MLP_HEAD_WIDTH as i64).into()));
        toml::Table::from_iter(width)
    }

    /// A random model, its weights large enough for every part of it to matter.
    pub fn model(&self, seed: u64) -> Box<dyn Model> {
        self.model_in(seed, Precision::Auto)
    }

    /// The same in float64, where no rounding decides which of two tokens is the likelier.
    pub fn model_in_float64(&self, seed: u64) -> Box<dyn Model> {
        self.model_in(seed, Precision::Float64)
    }

    pub fn model_in(&self, seed: u64, dtype: Precision) -> Box<dyn Model> {
        self.model_of(&self.config(), seed, dtype)
    }

    /// A random model of this geometry, of a config of its own.
    pub fn model_of(&self, config: &Value, seed: u64, dtype: Precision) -> Box<dyn Model> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let model = load(ModelChoice {
            random_init: Some(seed),
            options: self.options(),
            dtype,
            ..at(folder.path())
        })
        .model;
        for (_, parameter) in model.parameters().iter() {
            if parameter.width() > 1 && parameter.rows() > 1 {
                parameter
                    .tensor
                    .slice_set(&parameter.tensor.affine(15.0, 0.0).unwrap(), 0, 0)
                    .unwrap();
            }
        }
        model
    }
}

/// Examples with one or two keys, each with sets of answers, and a counterfactual of their own length.
pub fn examples(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Example>> {
    let token = || 0..VOCABULARY as u32;
    let example = (3..9usize).prop_flat_map(move |length| {
        let tokens = || prop::collection::vec(token(), length);
        let keys = prop::collection::btree_set(1..length, 1..3);
        let others = prop::sample::subsequence((0..VOCABULARY as u32).collect::<Vec<_>>(), 6);
        (tokens(), tokens(), keys, others.prop_shuffle(), (0..3usize, 1..4usize))
    });
    let example =
        example.prop_map(|(tokens, corrupt, positions, others, (right, wrong))| Example {
            predicted: 1..tokens.len(),
            keys: (positions.iter())
                .map(|&position| {
                    let token = tokens[position];
                    let others = others.iter().copied().filter(|&other| other != token);
                    let correct =
                        std::iter::once(token).chain(others.clone().take(right)).collect();
                    Key { position, correct, wrong: others.skip(right).take(wrong).collect() }
                })
                .collect(),
            counterfactual: Some(Counterfactual {
                tokens: corrupt,
                key_positions: positions.into_iter().collect(),
            }),
            tokens,
            origin: "a random example".to_owned(),
            ..Example::default()
        });
    prop::collection::vec(example, count)
}

/// Weights by name, as saved.
pub fn weights(model: &dyn Model) -> BTreeMap<String, Vec<f32>> {
    let state = model.state_dict().unwrap();
    (state.iter())
        .map(|(name, tensor)| {
            let tensor = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
            (name.clone(), tensor.to_vec1().unwrap())
        })
        .collect()
}

/// A folder of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// A file of `../shared`. Where it is missing the test says so and is counted, and in CI it fails.
pub fn shared(path: &str) -> Option<PathBuf> {
    let file = repository("../shared").join(path);
    file.exists().then_some(file).or_else(|| skip(&format!("../shared/{path} is not there")))
}

/// Says that a test can't run, past the test runner's capturing; in CI that is a failure.
#[expect(clippy::explicit_write, reason = "the test runner captures what eprintln! prints")]
pub fn skip<T>(why: &str) -> Option<T> {
    use std::io::Write;
    assert!(std::env::var_os("CI").is_none(), "{why}");
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    writeln!(std::io::stderr(), "SKIPPED {test}: {why} ({count} skipped so far)").unwrap();
    None
}
