//! Readers that get an input of their own, because edges into them are ablated.
//!
//! A reader's own input is x + Σ over its ablated edges of (ablated − written), the stream as it is with
//! what those writers wrote in this very run exchanged. All of a site's readers get theirs from one
//! product [inputs, writers] · [writers, rows · d_model]; readers that miss the same edges share one.

use std::ops::Range;

use candle_core::Tensor;

use super::sites::{Reading, SharedInput};
use crate::Result;
use crate::ops::backward::Rules;
use crate::ops::{Apart, Sums, is_fused, is_small, weight};

/// The inputs of a site's readers, where some differ from the stream.
#[derive(Clone)]
pub(super) struct Inputs {
    /// How many readers the site has.
    pub(super) count: usize,
    /// The readers that read the plain stream.
    pub(super) plain: Vec<usize>,
    /// The readers of each other input.
    pub(super) own: Vec<Vec<usize>>,
    /// The writers of each other input's ablated edges.
    pub(super) ablated: Vec<Vec<usize>>,
    /// `ablated` as a matrix [inputs, writers before], 1 where an edge is ablated.
    pub(super) factors: Tensor,
    /// [writers, rows, d_model]
    pub(super) differences: Tensor,
}

impl Inputs {
    /// Each input that is not the stream x [rows, d_model] itself: [inputs, rows, d_model].
    pub(super) fn own(&self, x: &Tensor) -> Result<Tensor> {
        if is_fused(x) {
            return Ok(self.sums(x)?.form()?);
        }
        let (rows, d_model) = x.dims2()?;
        let differences = self.differences.narrow(0, 0, self.factors.dim(1)?)?.flatten_from(1)?;
        let sums = self.factors.matmul(&differences)?.reshape((self.own.len(), rows, d_model))?;
        Ok(sums.broadcast_add(&x.unsqueeze(0)?)?)
    }

    fn sums<'a>(&'a self, x: &'a Tensor) -> Result<Sums<'a>> {
        let before = self.factors.dim(1)?;
        Ok(Sums { x, differences: &self.differences, before, writers: &self.ablated })
    }

    /// The readers' projections [rows, readers × width] of their inputs.
    pub(super) fn project(&self, reading: &Reading, x: &Tensor) -> Result<Tensor> {
        let projected = match self.plain.is_empty() {
            true => {
                let shape = (x.dim(0)?, reading.weight.tensor.dim(0)?);
                Tensor::zeros(shape, x.dtype(), x.device())?
            }
            false => reading.project(&reading.normalise(x)?)?,
        };
        let columns = self.own.iter().map(|readers| self.columns(readers, reading));
        let columns: Vec<_> = columns.collect::<Result<_>>()?;
        if let Some(norm) = &reading.norm
            && is_small(x, reading.weight.tensor.dim(0)? / self.count)
        {
            Apart {
                sums: self.sums(x)?,
                norm,
                columns: &columns,
                weight: &weight::widened(&reading.weight.tensor)?,
                bias: reading.bias.as_ref().map(|bias| &bias.tensor),
            }
            .project_into(&projected)?;
            return Ok(projected);
        }
        let own = self.own(x)?;
        for (index, columns) in columns.into_iter().enumerate() {
            let normed = reading.normalise(&own.get(index)?)?;
            for columns in columns {
                let (start, len) = (columns.start, columns.len());
                let weight = reading.weight.tensor.narrow(0, start, len)?;
                let mut part = weight::times_transposed(&normed, &weight)?;
                if let Some(bias) = &reading.bias {
                    part = part.broadcast_add(&bias.tensor.narrow(0, start, len)?.t()?)?;
                }
                projected.slice_set(&part.contiguous()?, 1, start)?;
            }
        }
        Ok(projected)
    }

    /// Readers as columns of the projection, neighbours together.
    fn columns(&self, readers: &[usize], reading: &Reading) -> Result<Vec<Range<usize>>> {
        let width = reading.weight.tensor.dim(0)? / self.count;
        let runs = readers.chunk_by(|a, b| a + 1 == *b);
        Ok(runs.map(|run| run[0] * width..(run[0] + run.len()) * width).collect())
    }

    /// The inputs and the gradients there, from the stream x and the gradient at the projections [rows,
    /// readers × width]. The plain stream comes last, where a reader reads it.
    pub(super) fn pull_back(
        &self,
        reading: &Reading,
        x: &Tensor,
        projected: &Tensor,
        rules: Rules,
    ) -> Result<Vec<SharedInput>> {
        let shared = |readers: &Vec<usize>, x: Tensor| -> Result<SharedInput> {
            let mut normed = x.zeros_like()?;
            for columns in self.columns(readers, reading)? {
                let gradient = projected.narrow(1, columns.start, columns.len())?.contiguous()?;
                let weight = reading.weight.tensor.narrow(0, columns.start, columns.len())?;
                normed = (normed + weight::times(&gradient, &weight)?)?;
            }
            let gradient = reading.pull_back(&x, &normed, rules)?;
            Ok(SharedInput { readers: readers.clone(), x, normed, gradient })
        };
        let own = self.own(x)?;
        let own =
            self.own.iter().enumerate().map(|(index, readers)| shared(readers, own.get(index)?));
        let plain = (!self.plain.is_empty()).then(|| shared(&self.plain, x.clone()));
        own.chain(plain).collect()
    }

    /// Zeros for the gradients at the differences [writers, rows, d_model].
    pub(super) fn zeros(&self) -> Result<Tensor> {
        Ok(self.differences.zeros_like()?)
    }

    /// Adds the gradients at the inputs, as [`Inputs::pull_back`] orders them, to the differences'
    /// [writers, rows, d_model].
    pub(super) fn add_to(&self, at_differences: &Tensor, inputs: &[&Tensor]) -> Result<()> {
        let own = Tensor::stack(&inputs[..self.own.len()], 0)?.flatten_from(1)?;
        let sums = at_differences.narrow(0, 0, self.factors.dim(1)?)?;
        let share = self.factors.t()?.contiguous()?.matmul(&own)?.reshape(sums.shape())?;
        Ok(at_differences.slice_set(&(sums + share)?.contiguous()?, 0, 0)?)
    }
}
