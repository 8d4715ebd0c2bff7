//! GPT-2 (Radford et al., 2019), as Hugging Face's `GPT2LMHeadModel`: learned positions, layer
//! norm before each sub-layer, GELU in its tanh form, tied embeddings.

use circuit_framework::model::config::{self, Sizes};
use circuit_framework::model::decoder::{
    Decoder, Layer, Linear, Mlp, NormKind, Norms, QueryKeyValue,
};
use circuit_framework::ops::activation::Activation;
use circuit_framework::ops::attention::Attention;
use circuit_framework::{Architecture, Checkpoint, Model, Result, refuse, register};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// GPT-2's options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Gpt2Options {
    /// Split each MLP into heads of this many neurons; without it an MLP is one node.
    mlp_head_width: Option<usize>,
}

/// The part of config.json that matters here.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    layer_norm_epsilon: f64,
}

impl Config {
    fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let (yes, no) = ([json!(true)], [json!(false), json!(null)]);
        config::accept(
            checkpoint,
            &[
                ("activation_function", &[json!("gelu_new"), json!("gelu_pytorch_tanh")]),
                ("scale_attn_weights", &yes),
                ("scale_attn_by_inverse_layer_idx", &no),
                ("add_cross_attention", &no),
                ("tie_word_embeddings", &yes),
                ("quantization_config", &[json!(null)]),
            ],
        )?;
        let config: Config = config::parse(checkpoint)?;
        if config.n_head == 0 || !config.n_embd.is_multiple_of(config.n_head) {
            refuse!(
                "{}: config.json: n_embd {} is no multiple of n_head {}",
                checkpoint.origin,
                config.n_embd,
                config.n_head
            );
        }
        config.sizes().check(checkpoint)?;
        Ok(config)
    }

    /// The MLPs' width.
    fn inner(&self) -> usize {
        self.n_inner.unwrap_or(self.n_embd.saturating_mul(4))
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            layers: ("n_layer", self.n_layer),
            d_model: ("n_embd", self.n_embd),
            heads: ("n_head", self.n_head),
            mlp: ("n_inner", self.inner()),
            vocabulary: ("vocab_size", self.vocab_size),
            context: ("n_positions", self.n_positions),
            kv_heads: self.n_head,
            d_head: ("n_embd", self.n_embd / self.n_head),
            mlp_inputs: 1,
            has_positions: true,
        }
    }

    fn layer(&self, index: usize) -> Layer {
        let of = |part: &str| format!("h.{index}.{part}");
        Layer {
            attention: Attention::new(self.n_head, self.n_head, self.n_embd / self.n_head),
            attention_norms: Norms::before(of("ln_1")),
            query_key_value: QueryKeyValue::Stacked(Linear::biased(of("attn.c_attn"))),
            head_norms: None,
            attention_output: Linear::biased(of("attn.c_proj")),
            mlp: Some(Mlp {
                norms: Norms::before(of("ln_2")),
                width: self.inner(),
                inputs: vec![Linear::biased(of("mlp.c_fc"))],
                activation: Activation::GeluTanh,
                output: Linear::biased(of("mlp.c_proj")),
            }),
        }
    }
}

impl Architecture for Gpt2Options {
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        let config = Config::read(&checkpoint)?;
        let decoder = Decoder {
            vocabulary: config.vocab_size,
            context: config.n_positions,
            d_model: config.n_embd,
            embedding_scale: 1.0,
            tokens: "wte.weight".to_owned(),
            positions: Some("wpe.weight".to_owned()),
            norm: NormKind::Layer,
            epsilon: config.layer_norm_epsilon,
            layers: (0..config.n_layer).map(|index| config.layer(index)).collect(),
            final_norm: "ln_f".to_owned(),
            unembedding: "lm_head.weight".to_owned(),
            is_tied: true,
            cap: None,
            is_parallel: false,
            mlp_head_width: self.mlp_head_width,
            fan_in_fan_out: true,
            prefix: "transformer.",
            ignored: &[".attn.bias", ".attn.masked_bias"],
        };
        decoder.build(checkpoint)
    }

    fn example(&self) -> Option<Value> {
        Some(json!({
            "model_type": "gpt2", "vocab_size": 32, "n_positions": 32, "n_embd": 16, "n_layer": 2,
            "n_head": 4, "layer_norm_epsilon": 1e-5,
        }))
    }
}

register!(dyn Architecture, Gpt2Options, "gpt2", "GPT-2 and models of its architecture");
