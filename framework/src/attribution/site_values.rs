//! What a pass leaves of one site: its writers' values and the gradients at its readers, which are expanded
//! to [nodes, rows, d_model] a few rows at a time.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use crate::Result;
use crate::ops::{multiply_blocks_into, weight};
use crate::pass::{Reading, Rules, Unembedding, Writing};

/// What each site's writers wrote, by site.
pub(super) type Sites = Vec<Option<SiteWrites>>;

/// What one site's writers wrote, row by row, before or after its projection.
#[derive(Clone)]
pub(super) struct SiteWrites {
    pub(super) source: Source,
    /// [rows, writers × width], or [rows, d_model] for the embedding.
    pub(super) values: Tensor,
}

/// How the values of a site's writers become their outputs.
#[derive(Clone)]
pub(super) enum Source {
    /// The whole output [batch·seq, d_model].
    Embedding(Tensor),
    Projection(Arc<Writing>),
    /// Of a site's only writer, projected already.
    Output(Arc<Writing>),
}

impl SiteWrites {
    pub(super) fn d_model(&self) -> Result<usize> {
        Ok(match &self.source {
            Source::Projection(writing) => writing.weight.tensor.dim(1)?,
            Source::Embedding(_) | Source::Output(_) => self.values.dim(1)?,
        })
    }

    /// Puts the writers' outputs for some rows in a place [writers, rows, d_model].
    pub(super) fn expand_into(
        &self,
        rows: Range<usize>,
        with_bias: bool,
        place: &Tensor,
    ) -> Result<()> {
        let values = self.values.narrow(0, rows.start, rows.len())?;
        let writing = match &self.source {
            Source::Embedding(_) => return Ok(place.slice_set(&values.unsqueeze(0)?, 0, 0)?),
            Source::Output(writing) => {
                place.slice_set(&values.unsqueeze(0)?, 0, 0)?;
                writing
            }
            Source::Projection(writing) => {
                multiply_blocks_into(&values, &writing.output_weight()?, place)?;
                writing
            }
        };
        match &writing.bias {
            Some(bias) if with_bias && writing.bias_is_written => {
                Ok(place.slice_set(&place.broadcast_add(&bias.tensor)?, 0, 0)?)
            }
            _ => Ok(()),
        }
    }
}

/// What one site's readers are given back, at the rows where the graph is read.
pub(super) struct SiteGradients {
    pub(super) source: ReadBy,
    /// The stream that was read [rows, d_model].
    pub(super) x: Tensor,
    /// The gradient at the normalised stream [rows, d_model] of a site with one reader, at the
    /// projection's output [rows, readers × width] of others.
    pub(super) gradient: Tensor,
    /// Of the backward pass: the way through the normalisation is its last part.
    pub(super) rules: Rules,
}

/// What a site's readers read through.
pub(super) enum ReadBy {
    Projection(Arc<Reading>),
    Unembedding(Arc<Unembedding>),
}

impl ReadBy {
    pub(super) fn site(&self) -> usize {
        match self {
            Self::Projection(reading) => reading.site,
            Self::Unembedding(unembedding) => unembedding.site,
        }
    }
}

impl SiteGradients {
    pub(super) fn site(&self) -> usize {
        self.source.site()
    }

    /// The stream that was read [rows, d_model].
    pub(super) fn stream(&self) -> &Tensor {
        &self.x
    }

    /// Puts the gradients at the readers' inputs for some rows in a place [readers, rows, d_model]:
    /// through each reader's rows of the weight, then through the normalisation.
    pub(super) fn expand_into(&self, rows: Range<usize>, place: &Tensor) -> Result<()> {
        let x = self.x.narrow(0, rows.start, rows.len())?;
        let gradient = self.gradient.narrow(0, rows.start, rows.len())?;
        let pulled = match &self.source {
            ReadBy::Projection(reading) if place.dim(0)? > 1 => {
                let weight = weight::widened(&reading.weight.tensor)?;
                match &reading.norm {
                    Some(norm) => {
                        norm.pull_back_blocks_into(&x, &gradient, &weight, place, self.rules)?;
                    }
                    None => multiply_blocks_into(&gradient, &weight, place)?,
                }
                return Ok(());
            }
            ReadBy::Projection(reading) => reading.pull_back(&x, &gradient, self.rules)?,
            ReadBy::Unembedding(unembedding) => {
                unembedding.norm.pull_back(&x, &gradient, self.rules)?
            }
        };
        Ok(place.slice_set(&pulled.unsqueeze(0)?.contiguous()?, 0, 0)?)
    }
}
