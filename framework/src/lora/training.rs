//! Adapters in a training pass: their forward pass with dropout, and their backward pass.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{Adapter, Adapters};
use crate::ops::matmul;
use crate::weights::parameters::ParamId;
use crate::weights::projection::Projection;

/// Adapters in a training pass: with dropout.
#[derive(Clone)]
pub struct Training {
    pub adapters: Arc<Adapters>,
    /// Draws the dropout.
    pub random: Arc<Mutex<ChaCha8Rng>>,
}

/// What one adapter did in a forward pass.
pub(crate) struct Applied {
    index: usize,
    /// The projection's input [n, in], after dropout.
    input: Tensor,
    /// What dropout multiplied the input with.
    mask: Option<Tensor>,
    /// input · Aᵀ [n, rank]
    hidden: Tensor,
}

/// The gradients of an adapter's parameters.
#[derive(Clone, Debug)]
pub struct AdapterGradients {
    pub a: (ParamId, Tensor),
    pub b: (ParamId, Tensor),
}

impl Training {
    /// Adds the adapters of a reading projection, of input [n, d_model], to its output [n, rows].
    pub(crate) fn read(
        &self,
        weight: ParamId,
        input: &Tensor,
        output: &Tensor,
    ) -> candle_core::Result<Vec<Applied>> {
        self.of(weight, |index, projection| {
            let (applied, update) = self.apply(index, input)?;
            for (rows, at) in projection.parts() {
                let (start, len) = (rows.start, rows.len());
                let sum = (output.narrow(1, start, len)? + update.narrow(1, at, len)?)?;
                output.slice_set(&sum.contiguous()?, 1, start)?;
            }
            Ok(applied)
        })
    }

    /// Adds the adapters of a writing projection, of input [n, rows], to its output [n, d_model].
    pub(crate) fn write(
        &self,
        weight: ParamId,
        input: &Tensor,
        output: &Tensor,
    ) -> candle_core::Result<Vec<Applied>> {
        self.of(weight, |index, projection| {
            let input = columns(input, projection)?;
            let (applied, update) = self.apply(index, &input)?;
            output.slice_set(&(output + update)?, 0, 0)?;
            Ok(applied)
        })
    }

    /// Calls `apply` for each adapter of a weight, with its index.
    fn of(
        &self,
        weight: ParamId,
        apply: impl Fn(usize, &Projection) -> candle_core::Result<Applied>,
    ) -> candle_core::Result<Vec<Applied>> {
        (self.adapters.adapters.iter().enumerate())
            .filter(|(_, adapter)| adapter.projection.parameter == weight)
            .map(|(index, adapter)| apply(index, &adapter.projection))
            .collect()
    }

    fn apply(&self, index: usize, input: &Tensor) -> candle_core::Result<(Applied, Tensor)> {
        let adapter @ Adapter { a, b, .. } = &self.adapters.adapters[index];
        let mask = self.mask(input)?;
        let input = match &mask {
            Some(mask) => (input * mask)?,
            None => input.clone(),
        };
        let hidden = matmul(&input, &a.tensor.t()?)?;
        let update = matmul(&hidden, &b.tensor.t()?)?.affine(adapter.scale(), 0.0)?;
        Ok((Applied { index, input, mask, hidden }, update))
    }

    /// 0 with probability p, else 1/(1 − p).
    fn mask(&self, input: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let dropout = self.adapters.lora.dropout;
        if dropout == 0.0 {
            return Ok(None);
        }
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = (1.0 / (1.0 - dropout)) as f32;
        let mask: Vec<f32> = (0..input.elem_count())
            .map(|_| if random.random::<f64>() < dropout { 0.0 } else { kept })
            .collect();
        let mask = Tensor::from_vec(mask, input.shape(), input.device())?;
        Ok(Some(mask.to_dtype(input.dtype())?))
    }

    /// From the gradient at a projection's output, adds the adapters' share to the gradient at its
    /// input, and returns the gradients of their own parameters.
    pub(crate) fn backward(
        &self,
        applied: &[Applied],
        at_output: &Tensor,
        at_input: &Tensor,
    ) -> candle_core::Result<Vec<AdapterGradients>> {
        let backward = |applied: &Applied| {
            let adapter @ Adapter { projection, a, b, .. } = &self.adapters.adapters[applied.index];
            let scale = adapter.scale();
            let gradient = match projection.reads {
                true => columns(at_output, projection)?,
                false => at_output.clone(),
            };
            let d_b = matmul(&gradient.t()?, &applied.hidden)?.affine(scale, 0.0)?;
            let d_hidden = matmul(&gradient, &b.tensor)?.affine(scale, 0.0)?;
            let d_a = matmul(&d_hidden.t()?, &applied.input)?;
            let mut d_input = matmul(&d_hidden, &a.tensor)?;
            if let Some(mask) = &applied.mask {
                d_input = (d_input * mask)?;
            }
            let whole = [(0..d_input.dim(1)?, 0)];
            let parts = match projection.reads {
                true => whole.into(),
                false => projection.parts().collect::<Vec<_>>(),
            };
            for (columns, at) in parts {
                let (start, len) = (columns.start, columns.len());
                let sum = (at_input.narrow(1, start, len)? + d_input.narrow(1, at, len)?)?;
                at_input.slice_set(&sum.contiguous()?, 1, start)?;
            }
            Ok(AdapterGradients { a: (a.id, d_a), b: (b.id, d_b) })
        };
        applied.iter().map(backward).collect()
    }
}

/// The columns [n, rows] of a tensor [n, all rows of the parameter] that are a projection's, in its order.
fn columns(tensor: &Tensor, projection: &Projection) -> candle_core::Result<Tensor> {
    let parts = projection.parts().map(|(rows, _)| tensor.narrow(1, rows.start, rows.len()));
    Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 1)?.contiguous()
}
