//! Llama (Touvron et al., 2023) and its successors, as Hugging Face's `LlamaForCausalLM`: rotary
//! positions, RMS norm, grouped-query attention, a gated MLP, tied or separate embeddings.

use std::ops::Range;
use std::sync::Arc;

use candle_transformers::models::llama::{Llama3RopeConfig, Llama3RopeType, LlamaConfig};
use circuit_framework::graph::Port;
use circuit_framework::ops::activation::Activation;
use circuit_framework::ops::attention::Attention;
use circuit_framework::ops::norm::Norm;
use circuit_framework::ops::rotary::Rotary;
use circuit_framework::parameters::{Param, Parameter};
use circuit_framework::pass::{Embedding, Reading, Unembedding, Writing};
use circuit_framework::{
    Architecture, Checkpoint, Error, Model, Options, Parameters, Plugin, Result, Tensor, inventory,
    origin, refuse,
};
use serde::{Deserialize, Serialize};

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

/// What [`LlamaConfig`] leaves out and would change the numbers.
#[derive(Deserialize)]
struct Unsupported {
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    hidden_act: Option<String>,
    head_dim: Option<usize>,
}

fn parse(checkpoint: &Checkpoint) -> Result<LlamaConfig> {
    let origin = &checkpoint.origin;
    let malformed = |error| Error::input(format!("{origin}: config.json: {error}"));
    let mut json = checkpoint.config.clone();
    // Newer files put the frequencies' settings together.
    if let Some(rope) = json.get("rope_parameters").cloned() {
        json["rope_theta"] = rope["rope_theta"].clone();
        if rope["rope_type"] == "llama3" {
            json["rope_scaling"] = rope;
        }
    }
    if json["rope_scaling"]["rope_type"].as_str().or(json["rope_scaling"]["type"].as_str())
        == Some("default")
    {
        json["rope_scaling"] = serde_json::Value::Null;
    }
    let rest: Unsupported = serde_json::from_value(json.clone()).map_err(malformed)?;
    let config: LlamaConfig = serde_json::from_value(json).map_err(malformed)?;
    if rest.attention_bias || rest.mlp_bias {
        refuse!(
            "{origin}: config.json: attention_bias and mlp_bias are not supported; they must be false"
        );
    }
    if rest.hidden_act.as_deref().is_some_and(|act| act != "silu") {
        refuse!("{origin}: config.json: hidden_act must be silu");
    }
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads());
    if heads == 0
        || kv_heads == 0
        || !config.hidden_size.is_multiple_of(heads)
        || heads % kv_heads != 0
    {
        refuse!(
            "{origin}: config.json: hidden_size {}, {heads} heads and {kv_heads} key/value heads do not divide each other",
            config.hidden_size
        );
    }
    let d_head = config.hidden_size / heads;
    if rest.head_dim.is_some_and(|dim| dim != d_head) || !d_head.is_multiple_of(2) {
        refuse!(
            "{origin}: config.json: head_dim must be even and hidden_size / num_attention_heads = {d_head}"
        );
    }
    Ok(config)
}

/// The rotation frequencies [d_head / 2], in radians a position, with Llama 3's scaling.
pub(crate) fn frequencies(
    d_head: usize,
    theta: f64,
    scaling: Option<&Llama3RopeConfig>,
) -> Vec<f64> {
    let plain = (0..d_head / 2).map(|i| theta.powf(-2.0 * i as f64 / d_head as f64));
    let Some(scaling) =
        scaling.filter(|scaling| matches!(scaling.rope_type, Llama3RopeType::Llama3))
    else {
        return plain.collect();
    };
    let (low, high) = (f64::from(scaling.low_freq_factor), f64::from(scaling.high_freq_factor));
    let factor = f64::from(scaling.factor);
    let scale = |frequency: f64| {
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let turns = scaling.original_max_position_embeddings as f64 / wavelength;
        let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        frequency * (smooth + (1.0 - smooth) / factor)
    };
    plain.map(scale).collect()
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
        let config = parse(&checkpoint)?;
        let heads = MlpHeads::new(config.intermediate_size, self.mlp_head_width)?;
        let (n_head, kv_heads) = (config.num_attention_heads, config.num_key_value_heads());
        let graph = transformer_graph(
            config.num_hidden_layers,
            n_head,
            kv_heads,
            &heads,
            &[Port::Gate, Port::Up],
        );
        let d_head = config.hidden_size / n_head;
        let theta = f64::from(config.rope_theta);
        let frequencies = frequencies(d_head, theta, config.rope_scaling.as_ref());
        let rotary = Rotary::new(&frequencies, config.max_position_embeddings);
        let vocabulary_shape = [config.vocab_size, config.hidden_size];
        let mut builder =
            Builder { checkpoint, config: &config, parameters: Parameters::default() };
        let tokens = builder.shared("model.embed_tokens.weight", &vocabulary_shape)?;
        let layers = (0..config.num_hidden_layers)
            .map(|layer| builder.layer(layer, d_head, &heads))
            .collect::<Result<Vec<_>>>()?;
        let norm = builder.norm("model.norm.weight")?;
        let tied = config.tie_word_embeddings.unwrap_or(false);
        let weight = match tied {
            true => tokens.clone(),
            false => builder.shared("lm_head.weight", &vocabulary_shape)?,
        };
        let Builder { checkpoint, parameters, .. } = builder;
        let json = checkpoint.config.clone();
        checkpoint.finish(|name| {
            name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
        })?;
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
    config: &'a LlamaConfig,
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
        let (n_head, kv_heads) =
            (self.config.num_attention_heads, self.config.num_key_value_heads());
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

impl Options<dyn Architecture> for LlamaOptions {
    fn build(self) -> Result<Box<dyn Architecture>> {
        Ok(Box::new(self))
    }
}

inventory::submit! {
    Plugin::<dyn Architecture>::new::<LlamaOptions>(
        "llama", "Llama, SmolLM2 and models of their architecture, from Hugging Face folders and GGUF", origin!(),
    )
}
