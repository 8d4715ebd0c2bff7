//! Takes a decoder's weights out of a checkpoint, layer by layer, and says who owns them.

use std::sync::Arc;

use super::nodes::{LayerNodes, graph, reader_rows, writer_rows};
use super::transformer::{Block, Transformer};
use super::{Decoder, Layer, Linear, NormKind, QueryKeyValue};
use crate::graph::{Input, Node};
use crate::model::checkpoint::{Checkpoint, Weights};
use crate::ops::norm::Norm;
use crate::pass::{Embedding, Reading, Unembedding, Writing};
use crate::weights::layout::{FileTensor, Form};
use crate::weights::parameters::{Owner, Param, Parameters};
use crate::{Result, refuse};

/// The model of a description.
pub(super) fn build(decoder: &Decoder, mut checkpoint: Checkpoint) -> Result<Transformer> {
    strip(&mut checkpoint, decoder.prefix)?;
    let nodes = (decoder.layers.iter().enumerate())
        .map(|(index, layer)| LayerNodes::new(decoder, index, layer))
        .collect::<Result<Vec<_>>>()?;
    let mut builder = Builder { checkpoint, decoder, parameters: Parameters::default(), site: 0 };
    let embedding = builder.embedding()?;
    let blocks = (decoder.layers.iter().zip(&nodes))
        .map(|(layer, nodes)| builder.block(layer, nodes))
        .collect::<Result<Vec<_>>>()?;
    let unembedding = builder.unembedding(&embedding)?;
    let Builder { checkpoint, parameters, .. } = builder;
    let config = checkpoint.config.clone();
    checkpoint.finish(|name| decoder.ignored.iter().any(|end| name.ends_with(end)))?;
    Ok(Transformer {
        config,
        vocabulary: decoder.vocabulary,
        context: decoder.context,
        graph: graph(&nodes),
        parameters,
        embedding: Arc::new(embedding),
        blocks,
        unembedding: Arc::new(unembedding),
    })
}

/// Takes the prefix off the names of a checkpoint's tensors: some files have it, some don't.
fn strip(checkpoint: &mut Checkpoint, prefix: &str) -> Result<()> {
    if let Weights::Stored(tensors) = &mut checkpoint.weights
        && !prefix.is_empty()
    {
        for (name, tensor) in std::mem::take(tensors) {
            let short = name.strip_prefix(prefix).unwrap_or(&name).to_owned();
            if tensors.insert(short, tensor).is_some() {
                refuse!("{}: tensor `{name}` is there twice", checkpoint.origin);
            }
        }
    }
    Ok(())
}

/// What is taken so far.
struct Builder<'a> {
    checkpoint: Checkpoint,
    decoder: &'a Decoder,
    parameters: Parameters,
    /// The site that was described last.
    site: usize,
}

impl Builder<'_> {
    /// Takes the parameter [rows, width] that files hold in these tensors.
    fn take(
        &mut self,
        mut files: Vec<FileTensor>,
        width: usize,
        owners: &[(Owner, usize)],
    ) -> Result<Param> {
        let tensor = self.checkpoint.take_parameter(&files, width)?;
        for file in &mut files {
            file.name.insert_str(0, self.decoder.prefix);
        }
        let name = files.iter().map(|file| &*file.name).collect::<Vec<_>>().join(" and ");
        self.parameters.add_with_files(name, tensor, owners, files)
    }

    /// Takes a parameter that no node owns.
    fn shared(&mut self, name: &str, rows: usize, form: Form) -> Result<Param> {
        let files = vec![FileTensor::whole(name, rows, form)];
        self.take(files, self.decoder.d_model, &[(Owner::Shared, 0)])
    }

    fn norm(&mut self, name: &str) -> Result<Norm> {
        let vector = |builder: &mut Self, part| {
            builder.shared(&format!("{name}.{part}"), 1, Form::Vector)
        };
        let weight = vector(self, "weight")?;
        let bias = match self.decoder.norm {
            NormKind::Layer => Some(vector(self, "bias")?),
            NormKind::Rms => None,
        };
        Ok(Norm { weight, bias, epsilon: self.decoder.epsilon })
    }

    fn embedding(&mut self) -> Result<Embedding> {
        let Decoder { vocabulary, context, tokens, positions, .. } = self.decoder;
        Ok(Embedding {
            tokens: self.shared(tokens, *vocabulary, Form::Rows)?,
            positions: match positions {
                Some(name) => Some(self.shared(name, *context, Form::Rows)?),
                None => None,
            },
        })
    }

    fn unembedding(&mut self, embedding: &Embedding) -> Result<Unembedding> {
        let Decoder { vocabulary, unembedding: name, is_tied, final_norm, .. } = self.decoder;
        let norm = self.norm(final_norm)?;
        let weight = match is_tied {
            true => {
                self.checkpoint.take_twin(name, &embedding.tokens.tensor)?;
                embedding.tokens.clone()
            }
            false => self.shared(name, *vocabulary, Form::Rows)?,
        };
        Ok(Unembedding { site: self.site + 1, norm, weight })
    }

    fn block(&mut self, layer: &Layer, nodes: &LayerNodes) -> Result<Block> {
        let Layer { attention, mlp, .. } = layer;
        if mlp.inputs.len() != 1 + usize::from(mlp.activation.is_gated()) {
            refuse!("{:?} has not {} inputs", mlp.activation, mlp.inputs.len());
        }
        self.site += 1;
        let norm = self.norm(&layer.attention_norm)?;
        let [weight, bias] = query_key_value(layer);
        let attention_in = self.reading(norm, [weight, bias], &nodes.attention_inputs())?;
        let rows = attention.heads * attention.d_head;
        let attention_out = self.writing(&layer.attention_output, rows, &nodes.heads())?;
        self.site += 1;
        let norm = self.norm(&layer.mlp_norm)?;
        let rows = vec![mlp.width; mlp.inputs.len()];
        let mlp_in = self.reading(norm, stacked(&mlp.inputs, &rows), &nodes.mlp_inputs())?;
        let mlp_out = self.writing(&mlp.output, mlp.width, &nodes.mlp())?;
        Ok(Block {
            attention: attention.clone(),
            attention_in: Arc::new(attention_in),
            attention_out: Arc::new(attention_out),
            activation: mlp.activation,
            mlp_in: Arc::new(mlp_in),
            mlp_out: Arc::new(mlp_out),
        })
    }

    /// A projection that reads, of the files' tensors of its weight and of its bias.
    fn reading(
        &mut self,
        norm: Norm,
        [mut weight, bias]: [Vec<FileTensor>; 2],
        inputs: &[Input],
    ) -> Result<Reading> {
        let form = if self.decoder.fan_in_fan_out { Form::Columns } else { Form::Rows };
        if !bias.is_empty() && bias.len() != weight.len() {
            refuse!("of modules that are read together all have a bias, or none");
        }
        weight.iter_mut().for_each(|file| file.form = form);
        let owners = reader_rows(inputs);
        Ok(Reading {
            site: self.site,
            norm,
            weight: self.take(weight, self.decoder.d_model, &owners)?,
            bias: match bias.is_empty() {
                true => None,
                false => Some(self.take(bias, 1, &owners)?),
            },
        })
    }

    /// A projection that writes. A bias belongs to an MLP that is one node, and to no head.
    fn writing(&mut self, linear: &Linear, rows: usize, writers: &[Node]) -> Result<Writing> {
        let form = if self.decoder.fan_in_fan_out { Form::Rows } else { Form::Columns };
        let d_model = self.decoder.d_model;
        let weight = vec![FileTensor::whole(format!("{}.weight", linear.name), rows, form)];
        let weight = self.take(weight, d_model, &writer_rows(writers))?;
        let bias_owner = match writers {
            [only @ Node::Mlp { .. }] => Owner::Writer(*only),
            _ => Owner::Shared,
        };
        let bias = match linear.has_bias {
            true => {
                let file = FileTensor::whole(format!("{}.bias", linear.name), 1, Form::Vector);
                Some(self.take(vec![file], d_model, &[(bias_owner, 0)])?)
            }
            false => None,
        };
        let bias_is_written = bias.is_some() && bias_owner != Owner::Shared;
        Ok(Writing { site: self.site, weight, bias, bias_is_written })
    }
}

/// The files' tensors of the weights and of the biases of modules with so many rows each, stacked.
fn stacked(modules: &[Linear], rows: &[usize]) -> [Vec<FileTensor>; 2] {
    let mut files = [Vec::new(), Vec::new()];
    let mut start = 0;
    for (module, rows) in modules.iter().zip(rows) {
        let file = |part: &str| FileTensor {
            name: format!("{}.{part}", module.name),
            rows: vec![start..start + rows],
            form: Form::Vector,
        };
        files[0].push(file("weight"));
        if module.has_bias {
            files[1].push(file("bias"));
        }
        start += rows;
    }
    files
}

/// The same of the projections that attention reads through.
fn query_key_value(layer: &Layer) -> [Vec<FileTensor>; 2] {
    let attention = &layer.attention;
    let [queries, keys] = [attention.heads, attention.kv_heads].map(|n| n * attention.d_head);
    match &layer.query_key_value {
        QueryKeyValue::Separate(modules) => stacked(modules, &[queries, keys, keys]),
        QueryKeyValue::Stacked(module) => {
            stacked(std::slice::from_ref(module), &[queries + 2 * keys])
        }
    }
}
