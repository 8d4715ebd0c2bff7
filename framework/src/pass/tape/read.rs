//! A read of the residual stream, and its backward pass: from the gradient at what was read to its share of
//! the stream's.

use std::sync::{Arc, PoisonError};

use candle_core::{Tensor, TensorId};

use super::gradients::{Arrived, Back, Partial, sum};
use crate::Result;
use crate::lora::{Applied, Training};
use crate::ops::backward::Rules;
use crate::ops::{Kept, weight};
use crate::pass::reader_inputs::Inputs;
use crate::pass::{Captured, Reading};

/// A read that was done.
pub(in crate::pass) struct Read {
    pub(in crate::pass) reading: Arc<Reading>,
    /// The stream [batch·seq, d_model].
    pub(in crate::pass) x: Tensor,
    /// What its readers read instead, where edges into it are ablated.
    pub(in crate::pass) inputs: Option<Inputs>,
    /// batch and seq.
    pub(in crate::pass) shape: (usize, usize),
    /// What was returned.
    pub(in crate::pass) output: TensorId,
    /// Parts of its gradient that candle brought.
    pub(in crate::pass) arrived: Arrived,
    pub(in crate::pass) applied: Vec<Applied>,
}

impl Read {
    /// What was returned, formed again to the same bits.
    pub(super) fn again(&self) -> Result<Tensor> {
        let output = match &self.inputs {
            Some(inputs) => inputs.project(&self.reading, &self.x)?,
            None => self.reading.project(&self.reading.normalise(&self.x)?)?,
        };
        let (batch, seq) = self.shape;
        Ok(output.reshape((batch, seq, ()))?)
    }

    /// The gradient at what was returned: of every use that was made of it.
    pub(super) fn gradient(&self, mut own: Vec<Partial>) -> Result<Option<Partial>> {
        let alone = own.len() == 1
            && self.arrived.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if alone {
            return Ok(own.pop());
        }
        sum(&self.arrived, own)?.map(|sum| Partial::of(&sum)).transpose()
    }

    /// Adds this read's share to the gradient of the stream, and of what stands beside it.
    pub(super) fn backward(
        &self,
        back: &mut Back,
        projected: Partial,
        rules: Rules,
        adapters: Option<&Training>,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<()> {
        if let Some(inputs) = &self.inputs {
            return self.backward_by_part(inputs, back, projected, rules, sink);
        }
        let Partial { kept, values: projected } = match self.applied.is_empty() {
            true => projected,
            false => Partial { values: projected.kept.scatter(projected.values)?, kept: Kept::All },
        };
        let normed = weight::times(&projected, &self.reading.weight.tensor)?;
        if let Some(adapters) = adapters {
            let gradients = adapters.backward(&self.applied, &projected, &normed)?;
            gradients.into_iter().map(Captured::Adapter).try_for_each(&mut *sink)?;
        }
        let pulled = self.reading.pull_back(&kept.gather(&self.x)?, &normed, rules)?;
        back.stream = kept.add(&back.stream, pulled)?;
        let (reading, x) = (self.reading.clone(), self.x.clone());
        sink(Captured::Reading { reading, x, kept, normed, projected })
    }

    /// The backward pass where readers have inputs of their own.
    fn backward_by_part(
        &self,
        inputs: &Inputs,
        back: &mut Back,
        Partial { kept, values }: Partial,
        rules: Rules,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<()> {
        let projected = kept.scatter(values)?;
        let shared = inputs.pull_back(&self.reading, &self.x, &projected, rules)?;
        let gradients: Vec<&Tensor> = shared.iter().map(|input| &input.gradient).collect();
        for gradient in &gradients {
            back.stream = (&back.stream + *gradient)?;
        }
        back.add_inputs(inputs, &gradients)?;
        let (reading, x) = (self.reading.clone(), self.x.clone());
        sink(Captured::ReadingApart { reading, x, inputs: shared, projected })
    }
}
