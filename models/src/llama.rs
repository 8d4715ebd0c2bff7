//! Llama (Touvron et al., 2023) and its successors, as Hugging Face's `LlamaForCausalLM`: rotary
//! positions, RMS norm, grouped-query attention, a gated MLP, tied or separate embeddings.

use std::ops::Range;
use std::sync::Arc;

use circuit_framework::graph::Port;
use circuit_framework::ops::activation::Activation;
use circuit_framework::ops::attention::Attention;
use circuit_framework::ops::norm::Norm;
use circuit_framework::ops::rotary::Rotary;
use circuit_framework::pass::{Embedding, Reading, Unembedding, Writing};
use circuit_framework::weights::parameters::{Param, Parameter};
use circuit_framework::{
    Architecture, Checkpoint, Model, Parameters, Result, Tensor, refuse, register,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config;
use crate::rope::{self, Rope};
use crate::transformer::{
    Layer, MlpHeads, Transformer, attention_inputs, attention_nodes, reader_rows,
    transformer_graph, writer_rows,
};

/// Llama's options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LlamaOptions {
    /// Split each MLP into heads of this many neurons; without it an MLP is one node.
    pub mlp_head_width: Option<usize>,
}

/// The part of config.json that matters here.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    tie_word_embeddings: Option<bool>,
}

impl Config {
    fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let no = [json!(false), json!(null)];
        config::accept(
            checkpoint,
            &[
                ("attention_bias", &no),
                ("mlp_bias", &no),
                ("hidden_act", &[json!("silu"), json!("swish")]),
                ("quantization_config", &[json!(null)]),
            ],
        )?;
        let config: Config = config::parse(checkpoint)?;
        config.check_heads(&checkpoint.origin)?;
        config.check_window(checkpoint)?;
        Ok(config)
    }

    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn d_head(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    fn check_heads(&self, origin: &str) -> Result<()> {
        let (heads, kv_heads) = (self.num_attention_heads, self.kv_heads());
        if heads == 0
            || kv_heads == 0
            || !self.hidden_size.is_multiple_of(heads)
            || !heads.is_multiple_of(kv_heads)
        {
            refuse!(
                "{origin}: config.json: hidden_size {}, num_attention_heads {heads} and num_key_value_heads {kv_heads} do not divide each other",
                self.hidden_size
            );
        }
        let d_head = self.d_head();
        if self.head_dim.is_some_and(|dim| dim != d_head) || !d_head.is_multiple_of(2) {
            refuse!(
                "{origin}: config.json: head_dim must be even and hidden_size / num_attention_heads = {d_head}"
            );
        }
        Ok(())
    }

    /// Attention reaches back over the whole context here.
    fn check_window(&self, checkpoint: &Checkpoint) -> Result<()> {
        let (origin, config) = (&checkpoint.origin, &checkpoint.config);
        let slides = config["use_sliding_window"] != json!(false);
        if let Some(window) = config["sliding_window"].as_u64()
            && slides
            && window < self.max_position_embeddings as u64
        {
            refuse!(
                "{origin}: config.json: `sliding_window` is {window}; what can be read is null, or a window as long as the context, {}",
                self.max_position_embeddings
            );
        }
        let layers = config["layer_types"].as_array();
        if let Some(other) = layers.into_iter().flatten().find(|kind| **kind != "full_attention") {
            refuse!(
                "{origin}: config.json: `layer_types` has {other}; what can be read is \"full_attention\""
            );
        }
        Ok(())
    }
}

/// The projections stacked in a parameter.
fn names(parameter: &Parameter, attention: &Attention) -> Vec<(String, Range<usize>)> {
    let rows = parameter.rows();
    let (prefix, last) = parameter.name.rsplit_once('.').unwrap_or_default();
    let parts = match last {
        "qkv_proj" => {
            let queries = attention.heads * attention.d_head;
            let keys = queries + attention.kv_heads * attention.d_head;
            vec![("q_proj", 0..queries), ("k_proj", queries..keys), ("v_proj", keys..rows)]
        }
        "gate_up_proj" => vec![("gate_proj", 0..rows / 2), ("up_proj", rows / 2..rows)],
        _ => vec![(last, 0..rows)],
    };
    parts.into_iter().map(|(part, rows)| (format!("{prefix}.{part}"), rows)).collect()
}

/// A parameter as Hugging Face's tensors: stacked projections are taken apart.
fn export(parameter: &Parameter, attention: &Attention) -> Result<Vec<(String, Tensor)>> {
    let (name, tensor) = (&parameter.name, &parameter.tensor);
    if name.contains("norm") {
        return Ok(vec![(name.clone(), tensor.flatten_all()?)]);
    }
    if !name.ends_with("_proj") {
        return Ok(vec![(name.clone(), tensor.clone())]);
    }
    // Hugging Face's Llama stores its projections [out, in].
    let writes = name.ends_with("o_proj") || name.ends_with("down_proj");
    (names(parameter, attention).into_iter())
        .map(|(name, rows)| {
            let part = tensor.narrow(0, rows.start, rows.len())?;
            let part = if writes { part.t()? } else { part };
            Ok((format!("{name}.weight"), part.contiguous()?))
        })
        .collect()
}

impl Architecture for LlamaOptions {
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        let config = Config::read(&checkpoint)?;
        let Rope { theta, scaling } = Rope::read(&checkpoint)?;
        let heads = MlpHeads::new(config.intermediate_size, self.mlp_head_width)?;
        let (n_head, kv_heads) = (config.num_attention_heads, config.kv_heads());
        let graph = transformer_graph(
            config.num_hidden_layers,
            n_head,
            kv_heads,
            &heads,
            &[Port::Gate, Port::Up],
        );
        let d_head = config.d_head();
        let frequencies = rope::frequencies(d_head, theta, scaling.as_ref());
        let rotary = Rotary::new(&frequencies, config.max_position_embeddings);
        let vocabulary_shape = [config.vocab_size, config.hidden_size];
        let mut builder =
            Builder { checkpoint, config: &config, parameters: Parameters::default() };
        let tokens = builder.shared("model.embed_tokens.weight", &vocabulary_shape)?;
        let layers = (0..config.num_hidden_layers)
            .map(|layer| builder.layer(layer, d_head, &heads))
            .collect::<Result<Vec<_>>>()?;
        let norm = builder.norm("model.norm.weight")?;
        let weight = match config.tie_word_embeddings {
            Some(true) => {
                builder.checkpoint.take_twin("lm_head.weight", &tokens.tensor)?;
                tokens.clone()
            }
            _ => builder.shared("lm_head.weight", &vocabulary_shape)?,
        };
        let Builder { checkpoint, parameters, .. } = builder;
        let json = checkpoint.config.clone();
        checkpoint.finish(|name| name.ends_with("rotary_emb.inv_freq"))?;
        Ok(Box::new(Transformer {
            config: json,
            vocabulary: config.vocab_size,
            context: config.max_position_embeddings,
            graph,
            parameters,
            embedding: Arc::new(Embedding { tokens, positions: None }),
            attention: Attention {
                heads: n_head,
                kv_heads,
                d_head,
                rotary: Some(Arc::new(rotary)),
            },
            layers,
            unembedding: Arc::new(Unembedding {
                site: 1 + 2 * config.num_hidden_layers,
                norm,
                weight,
            }),
            activation: Activation::Swiglu,
            export,
            names,
            fan_in_fan_out: false,
        }))
    }
}

/// Takes the weights out of a checkpoint, layer by layer.
struct Builder<'a> {
    checkpoint: Checkpoint,
    config: &'a Config,
    parameters: Parameters,
}

impl Builder<'_> {
    fn shared(&mut self, name: &str, shape: &[usize]) -> Result<Param> {
        let tensor = self.checkpoint.take(name, shape)?;
        self.parameters.add_shared(name, tensor)
    }

    fn norm(&mut self, name: &str) -> Result<Norm> {
        Ok(Norm {
            weight: self.shared(name, &[self.config.hidden_size])?,
            bias: None,
            epsilon: self.config.rms_norm_eps,
        })
    }

    /// Projections `names` of `rows` each, stacked.
    fn stacked(&mut self, prefix: &str, names: &[(&str, usize)]) -> Result<Tensor> {
        let parts = (names.iter())
            .map(|(name, rows)| {
                let name = format!("{prefix}.{name}_proj.weight");
                self.checkpoint.take(&name, &[*rows, self.config.hidden_size])
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }

    fn layer(&mut self, layer: usize, d_head: usize, heads: &MlpHeads) -> Result<Layer> {
        let (hidden, width) = (self.config.hidden_size, self.config.intermediate_size);
        let (n_head, kv_heads) = (self.config.num_attention_heads, self.config.kv_heads());
        let site = 1 + 2 * layer;
        let prefix = format!("model.layers.{layer}");

        let norm = self.norm(&format!("{prefix}.input_layernorm.weight"))?;
        let attention = format!("{prefix}.self_attn");
        let kv_width = kv_heads * d_head;
        let weight =
            self.stacked(&attention, &[("q", n_head * d_head), ("k", kv_width), ("v", kv_width)])?;
        let owners = reader_rows(&attention_inputs(layer, n_head, kv_heads));
        let weight = self.parameters.add(format!("{attention}.qkv_proj"), weight, &owners)?;
        let attention_in = Reading { site, norm, weight, bias: None };

        let weight = self
            .checkpoint
            .take(&format!("{attention}.o_proj.weight"), &[hidden, n_head * d_head])?;
        let owners = writer_rows(&attention_nodes(layer, n_head));
        let weight = self.parameters.add(format!("{attention}.o_proj"), weight.t()?, &owners)?;
        let attention_out = Writing { site, weight, bias: None, bias_is_written: false };

        let norm = self.norm(&format!("{prefix}.post_attention_layernorm.weight"))?;
        let mlp = format!("{prefix}.mlp");
        let weight = self.stacked(&mlp, &[("gate", width), ("up", width)])?;
        let owners = reader_rows(&heads.inputs(layer, &[Port::Gate, Port::Up]));
        let weight = self.parameters.add(format!("{mlp}.gate_up_proj"), weight, &owners)?;
        let mlp_in = Reading { site: site + 1, norm, weight, bias: None };

        let weight = self.checkpoint.take(&format!("{mlp}.down_proj.weight"), &[hidden, width])?;
        let owners = writer_rows(&heads.nodes(layer));
        let weight = self.parameters.add(format!("{mlp}.down_proj"), weight.t()?, &owners)?;
        let mlp_out = Writing { site: site + 1, weight, bias: None, bias_is_written: false };

        Ok(Layer {
            attention_in: Arc::new(attention_in),
            attention_out: Arc::new(attention_out),
            mlp_in: Arc::new(mlp_in),
            mlp_out: Arc::new(mlp_out),
        })
    }
}

register!(
    dyn Architecture,
    LlamaOptions,
    "llama",
    "Llama, SmolLM2 and models of their architecture, from Hugging Face folders and GGUF"
);
