//! Attention and activations between a read and a write, whose backward pass the pass itself does.

use candle_core::{Tensor, TensorId};

use super::gradients::Partial;
use crate::Result;
use crate::ops::activation::Activation;
use crate::ops::attention::Attention;
use crate::ops::backward::Backward;
use crate::pass::{Captured, rows};

/// What a model does between reading and writing, where the pass knows its way back.
#[derive(Clone)]
pub(in crate::pass) enum Operation {
    Attention(Attention),
    Activation(Activation),
}

/// Such an operation was done.
pub(in crate::pass) struct Between {
    pub(in crate::pass) operation: Operation,
    /// Its input [batch, seq, width].
    pub(in crate::pass) values: Tensor,
    pub(in crate::pass) input: TensorId,
    pub(in crate::pass) output: TensorId,
}

impl Operation {
    pub(super) fn apply(&self, values: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Activation(activation) => activation.apply(values),
            Self::Attention(attention) => attention.forward(values),
        }
    }

    pub(super) fn pull_back(
        &self,
        values: &Tensor,
        at_z: &Partial,
        how: &Backward,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<Partial> {
        let Partial { kept, values: gradient } = at_z;
        match self {
            Self::Activation(activation) => {
                let input = kept.gather(&rows(values)?)?;
                let values = activation.pull_back(&input, gradient, how.rules)?;
                Ok(Partial { kept: kept.clone(), values })
            }
            Self::Attention(attention) => {
                let (batch, seq, _) = values.dims3()?;
                let at_z = kept.scatter(gradient.clone())?.reshape((batch, seq, ()))?;
                let (at_values, of_norms) = attention.pull_back(values, &at_z, how)?;
                of_norms.into_iter().map(Captured::NormWeight).try_for_each(sink)?;
                Partial::of(&rows(&at_values)?)
            }
        }
    }
}
