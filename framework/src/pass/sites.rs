//! The sites of a pass: how each reads the residual stream and writes to it, what it is seen to write,
//! and what a backward pass leaves there.

use std::sync::Arc;

use candle_core::Tensor;

use crate::lora::AdapterGradients;
use crate::ops::backward::Rules;
use crate::ops::cross_entropy::Target;
use crate::ops::norm::Norm;
use crate::ops::norm::NormGradient;
use crate::ops::{Kept, add_rows, multiply_blocks_into, weight};
use crate::weights::parameters::Param;
use crate::{Result, refuse};

/// Token embedding, and learned position embedding where the model has one.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// [vocabulary, d_model]
    pub tokens: Param,
    /// [positions, d_model]
    pub positions: Option<Param>,
    /// What token embeddings are multiplied with.
    pub scale: f64,
}

/// How a site reads the residual stream: normalise, where it does, then project.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The site's index in the model's graph.
    pub site: usize,
    pub norm: Option<Norm>,
    /// [readers × width, d_model], one block a reader of the site, in the graph's order.
    pub weight: Param,
    /// [readers × width, 1]
    pub bias: Option<Param>,
}

impl Reading {
    /// What is projected of a stream x [rows, d_model].
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn normalise(&self, x: &Tensor) -> Result<Tensor> {
        match &self.norm {
            Some(norm) => Ok(norm.forward(x)?),
            None => Ok(x.clone()),
        }
    }

    /// The gradients [n·rows, d_model] at what is projected, pulled back to x [rows, d_model].
    pub(crate) fn pull_back(&self, x: &Tensor, gradients: &Tensor, rules: Rules) -> Result<Tensor> {
        match &self.norm {
            Some(norm) => Ok(norm.pull_back(x, gradients, rules)?),
            None => Ok(gradients.clone()),
        }
    }

    /// The normalised stream [rows, d_model] → projections [rows, readers × width].
    pub(super) fn project(&self, normed: &Tensor) -> candle_core::Result<Tensor> {
        let output = weight::times_transposed(normed, &self.weight.tensor)?;
        add_rows(output, None, self.bias.as_ref().map(|bias| &bias.tensor))
    }
}

/// How a site writes to the residual stream: project, normalise where it does, then add.
///
/// A norm is by the root mean square of all that the site's writers write together. It is shared among
/// them: writer u writes γ ⊙ z_u·W_u / rms, the rms of this very run, so that writers add up to the stream.
#[derive(Clone, Debug)]
pub struct Writing {
    /// The site's index in the model's graph.
    pub site: usize,
    /// [writers × width, d_model], one block a writer of the site, in the graph's order.
    pub weight: Param,
    /// [1, d_model]
    pub bias: Option<Param>,
    /// Whether the bias is part of what the site's only writer writes.
    pub bias_is_written: bool,
    /// An RMS norm of the sum of what all writers write; with it there is no bias.
    pub norm: Option<Norm>,
}

impl Writing {
    /// What [`Written::values`] is multiplied with to be what is written [writers × width, d_model].
    pub(crate) fn output_weight(&self) -> Result<Tensor> {
        let weight = weight::widened(&self.weight.tensor)?;
        match &self.norm {
            Some(norm) => Ok(weight.broadcast_mul(&norm.gain()?)?),
            None => Ok(weight),
        }
    }

    /// What all writers write together [rows, d_model] without a bias, of z [rows, writers × width] times the
    /// weight, and with a norm its 1/rms [rows, 1].
    pub(super) fn normalise(&self, projected: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        match &self.norm {
            None => Ok((projected.clone(), None)),
            Some(_) if self.bias.is_some() => {
                refuse!("site {} has a bias before a norm, which has no owner", self.site)
            }
            Some(norm) => Ok((norm.forward(projected)?, Some(norm.scales(projected)?))),
        }
    }

    /// `output` [rows, d_model], which all writers' values [rows, writers × width] amount to without a bias,
    /// with one writer's share exchanged for `new`, which has the bias that the writer owns.
    pub(super) fn exchange(
        &self,
        (index, of): (usize, usize),
        values: &Tensor,
        output: &Tensor,
        new: &Tensor,
    ) -> Result<Tensor> {
        let new = like(new, output)?;
        if self.bias_is_written {
            // It is the site's only writer.
            return Ok(new);
        }
        if index >= of || !values.dim(1)?.is_multiple_of(of) {
            refuse!("site {} has no writer {index} of {of}", self.site);
        }
        let width = values.dim(1)? / of;
        let rows = self.output_weight()?.narrow(0, index * width, width)?;
        let own = weight::times(&values.narrow(1, index * width, width)?.contiguous()?, &rows)?;
        Ok((output + (new - own)?)?)
    }

    /// What each of the site's `writers` wrote [writers, rows, d_model], of values [rows, writers × width].
    pub(crate) fn outputs(&self, values: &Tensor, writers: usize) -> Result<Tensor> {
        if writers == 0 {
            refuse!("the graph has no writers at site {}", self.site);
        }
        let shape = (writers, values.dim(0)?, self.weight.tensor.dim(1)?);
        let outputs = Tensor::zeros(shape, values.dtype(), values.device())?;
        multiply_blocks_into(values, &self.output_weight()?, &outputs)?;
        match &self.bias {
            Some(bias) if self.bias_is_written => Ok(outputs.broadcast_add(&bias.tensor)?),
            _ => Ok(outputs),
        }
    }
}

/// Final normalisation and projection to the vocabulary.
#[derive(Clone, Debug)]
pub struct Unembedding {
    /// The site's index in the model's graph.
    pub site: usize,
    pub norm: Norm,
    /// [vocabulary, d_model]
    pub weight: Param,
    /// The soft cap on logits.
    pub cap: Option<f64>,
}

/// What one site wrote.
#[derive(Clone, Debug)]
pub enum Written {
    /// The embedding's output [batch·seq, d_model].
    Embedding { site: usize, output: Tensor },
    /// z [batch·seq, writers × width], of which a writer's output is its columns times its rows of
    /// the weight, with a norm times γ and `scale` [batch·seq, 1], which is 1/rms; and the sum of all
    /// outputs [batch·seq, d_model], which the stream takes the place of: whoever keeps it copies it.
    Projected { writing: Arc<Writing>, z: Tensor, scale: Option<Tensor>, output: Tensor },
}

impl Written {
    /// The site that wrote, by its index in the model's graph.
    pub fn site(&self) -> usize {
        match self {
            Written::Embedding { site, .. } => *site,
            Written::Projected { writing, .. } => writing.site,
        }
    }

    /// What the site's outputs are linear in, row by row: the embedding's output itself, or z, divided by
    /// this run's rms where there is a norm.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn values(&self) -> Result<Tensor> {
        match self {
            Written::Embedding { output, .. } => Ok(output.clone()),
            Written::Projected { z, scale: Some(scale), .. } => Ok(z.broadcast_mul(scale)?),
            Written::Projected { z, scale: None, .. } => Ok(z.clone()),
        }
    }

    /// What each of the site's `writers` wrote [writers, rows, d_model], of rows of [`Written::values`] or
    /// their means: with the bias that its only writer owns.
    ///
    /// # Errors
    /// If there are no writers, or a tensor operation fails.
    pub fn outputs_of(&self, values: &Tensor, writers: usize) -> Result<Tensor> {
        match self {
            Written::Embedding { .. } => Ok(values.unsqueeze(0)?),
            Written::Projected { writing, .. } => writing.outputs(values, writers),
        }
    }

    /// A copy of what the site's writers wrote together [batch·seq, d_model]: with the bias that its only
    /// writer owns, without one that none owns.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn output(&self) -> Result<Tensor> {
        match self {
            Written::Embedding { output, .. } => Ok(output.copy()?),
            Written::Projected { writing, output, .. } => match &writing.bias {
                Some(bias) if writing.bias_is_written => Ok(output.broadcast_add(&bias.tensor)?),
                _ => Ok(output.copy()?),
            },
        }
    }
}

/// What one operation leaves of a backward pass. Gradients are of the rows `kept`, of batch·seq; the
/// others' are zero.
#[derive(Clone, Debug)]
pub enum Captured {
    /// The gradient at the embedding's output [batch·seq, d_model].
    Embedding { embedding: Arc<Embedding>, tokens: Tensor, gradient: Tensor },
    /// x [batch·seq, d_model] is the residual stream that was read, `normed` the gradient at the
    /// normalised stream, `projected` the gradient at the projection's output.
    Reading { reading: Arc<Reading>, x: Tensor, kept: Kept, normed: Tensor, projected: Tensor },
    /// z [batch·seq, width] is the projection's input, `gradient` the one at its output, before a norm.
    Writing { writing: Arc<Writing>, z: Tensor, kept: Kept, gradient: Tensor },
    /// The final normalisation: the stream it read [batch·seq, d_model] and the gradient at its output.
    FinalNorm { unembedding: Arc<Unembedding>, x: Tensor, kept: Kept, normed: Tensor },
    /// Logits [rows, vocabulary] that were asked for: the hidden states and the logits' gradient.
    Logits { unembedding: Arc<Unembedding>, hidden: Tensor, gradient: Tensor },
    /// Logits of one token a row: the gradients [rows, d_model] of those tokens' rows of the weight.
    TokenLogits { unembedding: Arc<Unembedding>, tokens: Tensor, gradients: Tensor },
    /// A read of a site whose readers have inputs of their own: the stream x [batch·seq, d_model], each
    /// input with its readers, and the gradient at the projection's output.
    ReadingApart { reading: Arc<Reading>, x: Tensor, inputs: Vec<SharedInput>, projected: Tensor },
    /// A write of a site whose writers get different gradients, because edges out of them are ablated or
    /// what one of them wrote was replaced: z [batch·seq, writers × width], the gradients at what each
    /// projects, before a norm, [writers, batch·seq, d_model], and at the stream [batch·seq, d_model].
    WritingApart { writing: Arc<Writing>, z: Tensor, gradients: Tensor, stream: Tensor },
    /// A cross-entropy, scaled by `factor`.
    CrossEntropy {
        unembedding: Arc<Unembedding>,
        hidden: Tensor,
        targets: Arc<Vec<Target>>,
        factor: f64,
    },
    /// The gradient of the weight of a norm that stands behind a projection.
    NormWeight(NormGradient),
    /// The gradients of a low-rank adapter's own parameters.
    Adapter(AdapterGradients),
}

/// What several readers of a site read, and the gradients there.
#[derive(Clone, Debug)]
pub struct SharedInput {
    /// The readers, counted from the site's first.
    pub readers: Vec<usize>,
    /// The input [rows, d_model].
    pub x: Tensor,
    /// The gradient at the normalised input [rows, d_model].
    pub normed: Tensor,
    /// The gradient at the input [rows, d_model].
    pub gradient: Tensor,
}

/// What is written to the stream instead of what the model formed. Gradients end here.
#[derive(Clone, Debug)]
pub enum Replacement {
    /// All that the site's writers write together [batch·seq, d_model]; a bias that none of them owns is
    /// still added.
    Site(Tensor),
    /// What writer `index` of the site's `of` writes [batch·seq, d_model].
    Writer { index: usize, of: usize, output: Tensor },
}

/// A copy of `tensor` in the type and on the device of `other`, whose shape it must have: the stream is
/// added to it in its place, and whoever gave it may give it again.
pub(super) fn like(tensor: &Tensor, other: &Tensor) -> Result<Tensor> {
    if tensor.dims() != other.dims() {
        refuse!(
            "what replaces a write is {:?}; it must be {:?}, as what it replaces",
            tensor.dims(),
            other.dims()
        );
    }
    Ok(tensor.detach().to_dtype(other.dtype())?.to_device(other.device())?.copy()?)
}
