//! GPT-2 (Radford et al., 2019), as Hugging Face's `GPT2LMHeadModel`: learned positions, layer
//! norm before each sub-layer, GELU in its tanh form, tied embeddings.

use std::ops::Range;
use std::sync::Arc;

use circuit_framework::graph::{Node, Port};
use circuit_framework::model::checkpoint::Weights;
use circuit_framework::ops::activation::Activation;
use circuit_framework::ops::attention::Attention;
use circuit_framework::ops::norm::Norm;
use circuit_framework::pass::{Embedding, Reading, Unembedding, Writing};
use circuit_framework::weights::parameters::{Param, Parameter};
use circuit_framework::{
    Architecture, Checkpoint, Model, Owner, Parameters, Result, Tensor, refuse, register,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config;
use crate::transformer::{
    Layer, MlpHeads, Transformer, attention_inputs, attention_nodes, reader_rows,
    transformer_graph, writer_rows,
};

/// GPT-2's options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Gpt2Options {
    /// Split each MLP into heads of this many neurons; without it an MLP is one node.
    pub mlp_head_width: Option<usize>,
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
        Ok(config)
    }
}

/// A projection under its Hugging Face name.
fn names(parameter: &Parameter, _: &Attention) -> Vec<(String, Range<usize>)> {
    let name = parameter.name.trim_end_matches(".weight");
    vec![(format!("transformer.{name}"), 0..parameter.rows())]
}

/// A parameter under its Hugging Face name.
fn export(parameter: &Parameter, _: &Attention) -> Result<Vec<(String, Tensor)>> {
    let (name, tensor) = (&parameter.name, &parameter.tensor);
    let vector = name.ends_with("bias") || name.contains("ln_");
    let tensor = match () {
        () if vector => tensor.flatten_all()?,
        // Hugging Face's GPT-2 stores its projections [in, out].
        () if name.contains("c_attn") || name.contains("c_fc") => tensor.t()?.contiguous()?,
        () => tensor.clone(),
    };
    Ok(vec![(format!("transformer.{name}"), tensor)])
}

impl Architecture for Gpt2Options {
    fn build(&self, mut checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        let config = Config::read(&checkpoint)?;
        if let Weights::Stored(tensors) = &mut checkpoint.weights {
            // Some files have GPT2LMHeadModel's prefix, some GPT2Model's names.
            for (name, tensor) in std::mem::take(tensors) {
                let short = name.strip_prefix("transformer.").unwrap_or(&name).to_owned();
                if tensors.insert(short, tensor).is_some() {
                    refuse!("{}: tensor `{name}` is there twice", checkpoint.origin);
                }
            }
        }
        let d_model = config.n_embd;
        let width = config.n_inner.unwrap_or(4 * d_model);
        let heads = MlpHeads::new(width, self.mlp_head_width)?;
        let graph =
            transformer_graph(config.n_layer, config.n_head, config.n_head, &heads, &[Port::Input]);
        let mut builder =
            Builder { checkpoint, config: &config, parameters: Parameters::default() };
        let embedding = Arc::new(Embedding {
            tokens: builder.matrix("wte.weight", &[config.vocab_size, d_model])?,
            positions: Some(builder.matrix("wpe.weight", &[config.n_positions, d_model])?),
        });
        let layers = (0..config.n_layer)
            .map(|layer| builder.layer(layer, width, &heads))
            .collect::<Result<Vec<_>>>()?;
        let unembedding = Arc::new(Unembedding {
            site: 1 + 2 * config.n_layer,
            norm: builder.norm("ln_f")?,
            weight: embedding.tokens.clone(),
        });
        builder.checkpoint.take_twin("lm_head.weight", &embedding.tokens.tensor)?;
        let Builder { checkpoint, parameters, .. } = builder;
        let json = checkpoint.config.clone();
        checkpoint
            .finish(|name| name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"))?;
        Ok(Box::new(Transformer {
            config: json,
            vocabulary: config.vocab_size,
            context: config.n_positions,
            graph,
            parameters,
            embedding,
            attention: Attention {
                heads: config.n_head,
                kv_heads: config.n_head,
                d_head: d_model / config.n_head,
                rotary: None,
            },
            layers,
            activation: Activation::GeluTanh,
            unembedding,
            export,
            names,
            fan_in_fan_out: true,
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
    fn matrix(&mut self, name: &str, shape: &[usize]) -> Result<Param> {
        let tensor = self.checkpoint.take(name, shape)?;
        self.parameters.add_shared(name, tensor)
    }

    fn norm(&mut self, name: &str) -> Result<Norm> {
        let d_model = self.config.n_embd;
        Ok(Norm {
            weight: self.matrix(&format!("{name}.weight"), &[d_model])?,
            bias: Some(self.matrix(&format!("{name}.bias"), &[d_model])?),
            epsilon: self.config.layer_norm_epsilon,
        })
    }

    /// A projection that reads, stored [in, out] in the file, with its bias.
    fn reading(
        &mut self,
        site: usize,
        norm: Norm,
        name: &str,
        owners: &[(Owner, usize)],
        rows: usize,
    ) -> Result<Reading> {
        let weight =
            self.checkpoint.take(&format!("{name}.weight"), &[self.config.n_embd, rows])?;
        let bias = self.checkpoint.take(&format!("{name}.bias"), &[rows])?;
        Ok(Reading {
            site,
            norm,
            weight: self.parameters.add(format!("{name}.weight"), weight.t()?, owners)?,
            bias: Some(self.parameters.add(format!("{name}.bias"), bias.unsqueeze(1)?, owners)?),
        })
    }

    /// A projection that writes, stored [in, out] as it is kept here.
    fn writing(
        &mut self,
        site: usize,
        name: &str,
        writers: &[Node],
        rows: usize,
        bias_owner: Owner,
    ) -> Result<Writing> {
        let d_model = self.config.n_embd;
        let weight = self.checkpoint.take(&format!("{name}.weight"), &[rows, d_model])?;
        let bias = self.checkpoint.take(&format!("{name}.bias"), &[d_model])?;
        Ok(Writing {
            site,
            weight: self.parameters.add(format!("{name}.weight"), weight, &writer_rows(writers))?,
            bias: Some(self.parameters.add(format!("{name}.bias"), bias, &[(bias_owner, 0)])?),
            bias_is_written: bias_owner != Owner::Shared,
        })
    }

    fn layer(&mut self, layer: usize, width: usize, heads: &MlpHeads) -> Result<Layer> {
        let (d_model, n_head) = (self.config.n_embd, self.config.n_head);
        let site = 1 + 2 * layer;
        let prefix = format!("h.{layer}");
        let readers = reader_rows(&attention_inputs(layer, n_head, n_head));
        let writers = attention_nodes(layer, n_head);
        let attention_norm = self.norm(&format!("{prefix}.ln_1"))?;
        let attention_in = self.reading(
            site,
            attention_norm,
            &format!("{prefix}.attn.c_attn"),
            &readers,
            3 * d_model,
        )?;
        let attention_out =
            self.writing(site, &format!("{prefix}.attn.c_proj"), &writers, d_model, Owner::Shared)?;
        let mlp_norm = self.norm(&format!("{prefix}.ln_2"))?;
        let mlp_owners = reader_rows(&heads.inputs(layer, &[Port::Input]));
        let mlp_in =
            self.reading(site + 1, mlp_norm, &format!("{prefix}.mlp.c_fc"), &mlp_owners, width)?;
        let writers = heads.nodes(layer);
        let bias_owner = match writers[..] {
            [only] => Owner::Writer(only),
            _ => Owner::Shared,
        };
        let mlp_out =
            self.writing(site + 1, &format!("{prefix}.mlp.c_proj"), &writers, width, bias_owner)?;
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
    Gpt2Options,
    "gpt2",
    "GPT-2 and models of its architecture, from Hugging Face folders"
);
