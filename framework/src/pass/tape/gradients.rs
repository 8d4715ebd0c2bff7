//! The gradients that a backward pass holds: the stream's, parts of others, and what candle has brought.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use crate::Result;
use crate::ops::Kept;
use crate::pass::reader_inputs::Inputs;
use crate::pass::rows;

/// Where gradients are put that candle has brought back.
pub(in crate::pass) type Arrived = Arc<Mutex<Vec<Tensor>>>;

/// The gradients that a backward pass takes along, from last to first.
pub(super) struct Back {
    /// At the stream [batch·seq, d_model].
    pub(super) stream: Tensor,
    /// At the differences [writers, batch·seq, d_model] that ablated edges add to the stream.
    pub(super) differences: Option<Tensor>,
}

impl Back {
    /// Adds the gradients at readers' inputs to those at the differences.
    pub(super) fn add_inputs(&mut self, inputs: &Inputs, gradients: &[&Tensor]) -> Result<()> {
        let differences = match self.differences.take() {
            Some(differences) => differences,
            None => inputs.zeros()?,
        };
        inputs.add_to(&differences, gradients)?;
        self.differences = Some(differences);
        Ok(())
    }

    /// The gradient at the embedding's output [batch·seq, d_model], the first writer's.
    pub(super) fn at_embedding(&self) -> Result<Tensor> {
        match &self.differences {
            Some(differences) => Ok((&self.stream - differences.get(0)?)?),
            None => Ok(self.stream.clone()),
        }
    }
}

/// A gradient [kept rows, width].
pub(super) struct Partial {
    pub(super) kept: Kept,
    pub(super) values: Tensor,
}

impl Partial {
    pub(super) fn of(gradient: &Tensor) -> Result<Self> {
        let kept = Kept::of(gradient)?;
        Ok(Self { values: kept.gather(gradient)?, kept })
    }
}

/// The sum [batch·seq, width] of gradients that candle has brought, taken away, and of others.
pub(super) fn sum(arrived: &Arrived, own: Vec<Partial>) -> Result<Option<Tensor>> {
    let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
    let scattered = own.into_iter().map(|Partial { kept, values }| kept.scatter(values));
    let mut sum: Option<Tensor> = None;
    for gradient in scattered.chain(arrived.drain(..).map(Ok)) {
        let gradient = rows(&gradient?)?;
        sum = Some(match sum {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        });
    }
    Ok(sum)
}
