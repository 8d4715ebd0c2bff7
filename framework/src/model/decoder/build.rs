//! Takes a decoder's weights out of a checkpoint, layer by layer, and says who owns them.

use std::iter;
use std::sync::Arc;

use super::owners::{LayerNodes, graph, reader_rows, writer_rows};
use super::transformer::{Block, MlpBlock, Transformer};
use super::{Decoder, Layer, Linear, Mlp, NormKind, QueryKeyValue};
use crate::graph::{Input, Node};
use crate::model::checkpoint::{Checkpoint, Weights};
use crate::ops::attention::Attention;
use crate::ops::attention::HeadNorms;
use crate::ops::norm::Norm;
use crate::pass::{Embedding, Reading, Unembedding, Writing};
use crate::weights::layout::{FileTensor, Form};
use crate::weights::parameters::{Owner, Param, Parameters};
use crate::{Result, memory, refuse};

/// The model of a description.
pub(super) fn build(decoder: &Decoder, mut checkpoint: Checkpoint) -> Result<Transformer> {
    strip(&mut checkpoint, decoder.prefix)?;
    let nodes = (decoder.layers.iter().enumerate())
        .map(|(index, layer)| LayerNodes::new(decoder, index, layer))
        .collect::<Result<Vec<_>>>()?;
    check_graph(&nodes, decoder, &checkpoint)?;
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
        graph: graph(&nodes, decoder.is_parallel),
        parameters,
        embedding: Arc::new(embedding),
        blocks,
        is_parallel: decoder.is_parallel,
        unembedding: Arc::new(unembedding),
    })
}

/// Refuses a graph that has no room in memory: MLPs may be split into many nodes.
fn check_graph(nodes: &[LayerNodes], decoder: &Decoder, checkpoint: &Checkpoint) -> Result<()> {
    let count =
        |at: usize| nodes.iter().map(|layer| layer.counts()[at]).fold(1, u64::saturating_add);
    let key = match decoder.mlp_head_width {
        Some(width) => format!("mlp_head_width = {width}"),
        None => format!("{} layers", nodes.len()),
    };
    memory::check_graph(&checkpoint.origin, count(0), count(1), &key)
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

    /// A norm of rows of so many numbers.
    fn norm_of(&mut self, name: &str, width: usize) -> Result<Norm> {
        let vector = |builder: &mut Self, part| {
            let file = FileTensor::whole(format!("{name}.{part}"), 1, Form::Vector);
            builder.take(vec![file], width, &[(Owner::Shared, 0)])
        };
        let weight = vector(self, "weight")?;
        let bias = match self.decoder.norm {
            NormKind::Layer => Some(vector(self, "bias")?),
            NormKind::Rms | NormKind::RmsFromOne => None,
        };
        let offset = match self.decoder.norm {
            NormKind::RmsFromOne => 1.0,
            NormKind::Layer | NormKind::Rms => 0.0,
        };
        if let Weights::Random(_) = self.checkpoint.weights
            && offset != 0.0
        {
            // Drawn as ones.
            weight.tensor.slice_set(&weight.tensor.affine(1.0, -offset)?, 0, 0)?;
        }
        Ok(Norm { weight, bias, epsilon: self.decoder.epsilon, offset })
    }

    fn norm(&mut self, name: &str) -> Result<Norm> {
        self.norm_of(name, self.decoder.d_model)
    }

    fn norm_if_any(&mut self, name: &Option<String>) -> Result<Option<Norm>> {
        name.as_ref().map(|name| self.norm(name)).transpose()
    }

    /// The norm of what a sub-layer writes.
    fn norm_after(&mut self, name: &Option<String>) -> Result<Option<Norm>> {
        if name.is_some() && self.decoder.norm == NormKind::Layer {
            refuse!("a norm after a sub-layer must be by the root mean square");
        }
        self.norm_if_any(name)
    }

    /// A layer's attention with its norms on queries and keys.
    fn attention(&mut self, layer: &Layer) -> Result<Attention> {
        let attention = &layer.attention;
        let Some(names) = &layer.head_norms else {
            return Ok(attention.clone());
        };
        let width = |heads: usize| attention.d_head * if names.is_per_head { 1 } else { heads };
        let norms = HeadNorms {
            query: self.norm_of(&names.query, width(attention.heads))?,
            key: self.norm_of(&names.key, width(attention.kv_heads))?,
            is_per_head: names.is_per_head,
        };
        Ok(Attention { norms: Some(Arc::new(norms)), ..attention.clone() })
    }

    fn embedding(&mut self) -> Result<Embedding> {
        let Decoder { vocabulary, context, tokens, positions, .. } = self.decoder;
        Ok(Embedding {
            tokens: self.shared(tokens, *vocabulary, Form::Rows)?,
            positions: match positions {
                Some(name) => Some(self.shared(name, *context, Form::Rows)?),
                None => None,
            },
            scale: self.decoder.embedding_scale,
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
        Ok(Unembedding { site: self.site + 1, norm, weight, cap: self.decoder.cap })
    }

    fn block(&mut self, layer: &Layer, nodes: &LayerNodes) -> Result<Block> {
        let Layer { attention_norms: norms, attention_output: output, .. } = layer;
        let [read, mlp_read, write, mlp_write] = self.sites(layer);
        let norm = self.norm_if_any(&norms.before)?;
        let files = query_key_value(layer)?;
        let attention_in = self.reading(read, norm, files, &nodes.attention_inputs())?;
        let attention = self.attention(layer)?;
        let rows = attention.heads * attention.d_head;
        let mut attention_out = self.writing(write, output, rows, &nodes.heads())?;
        attention_out.norm = self.norm_after(&norms.after)?;
        let mlp = match &layer.mlp {
            Some(mlp) => Some(self.mlp(mlp, [mlp_read, mlp_write], nodes)?),
            None => None,
        };
        Ok(Block {
            attention,
            attention_in: Arc::new(attention_in),
            attention_out: Arc::new(attention_out),
            mlp,
        })
    }

    /// The next sites: where attention and the MLP read, and where they write.
    fn sites(&mut self, layer: &Layer) -> [usize; 4] {
        let first = self.site + 1;
        let (sites, count) = match (self.decoder.is_parallel, layer.mlp.is_some()) {
            (_, false) => ([0; 4], 1),
            (false, true) => ([0, 1, 0, 1], 2),
            (true, true) => ([0, 1, 2, 3], 4),
        };
        self.site += count;
        sites.map(|site| first + site)
    }

    fn mlp(
        &mut self,
        mlp: &Mlp,
        [read, write]: [usize; 2],
        nodes: &LayerNodes,
    ) -> Result<MlpBlock> {
        if mlp.inputs.len() != 1 + usize::from(mlp.activation.is_gated()) {
            refuse!(
                "an MLP has {} inputs, but its activation {:?} takes {}",
                mlp.inputs.len(),
                mlp.activation,
                1 + usize::from(mlp.activation.is_gated())
            );
        }
        let norm = self.norm_if_any(&mlp.norms.before)?;
        let files = stacked(&mlp.inputs, &vec![mlp.width; mlp.inputs.len()]);
        let input = self.reading(read, norm, files, &nodes.mlp_inputs())?;
        let mut output = self.writing(write, &mlp.output, mlp.width, &nodes.mlp())?;
        output.norm = self.norm_after(&mlp.norms.after)?;
        let activation = mlp.activation;
        Ok(MlpBlock { input: Arc::new(input), activation, output: Arc::new(output) })
    }

    /// A projection that reads, of the files' tensors of its weight and of its bias.
    fn reading(
        &mut self,
        site: usize,
        norm: Option<Norm>,
        [mut weight, bias]: [Vec<FileTensor>; 2],
        inputs: &[Input],
    ) -> Result<Reading> {
        let form = if self.decoder.fan_in_fan_out { Form::Columns } else { Form::Rows };
        if !bias.is_empty() && bias.len() != weight.len() {
            refuse!(
                "only some of the modules that are read together have a bias; all of them must have one, or none"
            );
        }
        weight.iter_mut().for_each(|file| file.form = form);
        let owners = reader_rows(inputs);
        Ok(Reading {
            site,
            norm,
            weight: self.take(weight, self.decoder.d_model, &owners)?,
            bias: match bias.is_empty() {
                true => None,
                false => Some(self.take(bias, 1, &owners)?),
            },
        })
    }

    /// A projection that writes, without a norm. A bias belongs to an MLP that is one node, and to no head.
    fn writing(
        &mut self,
        site: usize,
        linear: &Linear,
        rows: usize,
        writers: &[Node],
    ) -> Result<Writing> {
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
        Ok(Writing { site, weight, bias, bias_is_written, norm: None })
    }
}

/// The files' tensors of the weights and of the biases of modules with so many rows each, stacked.
fn stacked(modules: &[Linear], rows: &[usize]) -> [Vec<FileTensor>; 2] {
    let mut files = [Vec::new(), Vec::new()];
    let mut start = 0;
    for (module, rows) in modules.iter().zip(rows) {
        let file = |part: &str| FileTensor {
            name: format!("{}.{part}", module.name),
            rows: iter::once(start..start + rows).collect(),
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

/// The files' tensors of the weight and of the bias of the projections that attention reads through.
fn query_key_value(layer: &Layer) -> Result<[Vec<FileTensor>; 2]> {
    let &Attention { heads, kv_heads, d_head, .. } = &layer.attention;
    let [queries, keys] = [heads, kv_heads].map(|heads| heads * d_head);
    Ok(match &layer.query_key_value {
        QueryKeyValue::Separate(modules) => stacked(modules, &[queries, keys, keys]),
        QueryKeyValue::Stacked(module) => {
            stacked(std::slice::from_ref(module), &[queries + 2 * keys])
        }
        QueryKeyValue::ByHead(_) if heads != kv_heads => {
            refuse!("heads that share keys and values do not stand head by head")
        }
        QueryKeyValue::ByHead(module) => {
            let mut files = stacked(std::slice::from_ref(module), &[3 * queries]);
            let parts = (0..heads).flat_map(|head| (0..3).map(move |part| part * heads + head));
            let rows: Vec<_> = parts.map(|at| at * d_head..(at + 1) * d_head).collect();
            files.iter_mut().flatten().for_each(|file| file.rows.clone_from(&rows));
            files
        }
    })
}
