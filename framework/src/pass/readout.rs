//! The end of a forward pass: logits and losses at the rows that are asked for.

use std::sync::{Arc, Mutex};

use candle_core::Tensor;

use super::{Captured, Record, Unembedding, capture, check_room, scalar};
use crate::Result;
use crate::ops::cross_entropy::{self, Target};
use crate::ops::{cap, differentiable, weight};

/// The end of a forward pass: logits and losses, computed only for the rows that are asked for. A
/// row is `example · seq + position` in the batch.
pub struct Readout {
    /// [batch·seq, d_model]
    pub(super) hidden: Tensor,
    pub(super) unembedding: Arc<Unembedding>,
    pub(super) record: Arc<Mutex<Record>>,
}

impl Unembedding {
    /// The logits [rows, vocabulary] of a stream [rows, d_model], normalised and capped as the model does it
    /// at its end.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn logits(&self, stream: &Tensor) -> Result<Tensor> {
        let hidden = self.norm.forward(stream)?;
        Ok(self.capped(weight::times_transposed(&hidden, &self.weight.tensor)?)?)
    }

    /// Logits under the soft cap, where there is one.
    fn capped(&self, logits: Tensor) -> candle_core::Result<Tensor> {
        match self.cap {
            Some(cap) => cap::soft_cap(&logits, cap),
            None => Ok(logits),
        }
    }

    /// A copy of capped logits, whose place is taken, with the cap.
    fn kept(&self, logits: &Tensor) -> candle_core::Result<Option<(Tensor, f64)>> {
        self.cap.map(|cap| Ok((logits.copy()?, cap))).transpose()
    }
}

/// The gradient at logits before they were capped, of that behind.
fn at_uncapped(capped: &Option<(Tensor, f64)>, gradient: &Tensor) -> candle_core::Result<Tensor> {
    match capped {
        Some((capped, cap)) => cap::pull_back(capped, gradient, *cap),
        None => Ok(gradient.clone()),
    }
}

impl Readout {
    /// What the stream is read by at the end.
    pub fn unembedding(&self) -> &Unembedding {
        &self.unembedding
    }

    /// What is read of one example of a batch, whose sequences are padded to `seq` tokens.
    ///
    /// # Errors
    /// If the batch has no such example.
    pub fn of_example(&self, index: usize, seq: usize) -> Result<Self> {
        let hidden = self.hidden.narrow(0, index * seq, seq)?;
        Ok(Self { hidden, unembedding: self.unembedding.clone(), record: self.record.clone() })
    }

    fn select(&self, rows: &[u32]) -> Result<Tensor> {
        let index = Tensor::new(rows, self.hidden.device())?;
        Ok(self.hidden.index_select(&index, 0)?)
    }

    /// Differentiable logits [rows, vocabulary].
    pub fn logits(&self, rows: &[u32]) -> Result<Tensor> {
        let selected = self.select(rows)?;
        let hidden = selected.detach();
        let weight = self.unembedding.weight.tensor.clone();
        check_room(rows.len(), weight.dim(0)?, &weight)?;
        let output = self.unembedding.capped(weight::times_transposed(&hidden, &weight)?)?;
        let (record, unembedding) = (self.record.clone(), self.unembedding.clone());
        let capped = self.unembedding.kept(&output)?;
        Ok(differentiable(&selected, output, move |gradient| {
            let gradient = &at_uncapped(&capped, gradient)?;
            capture(
                &record,
                Captured::Logits {
                    unembedding: unembedding.clone(),
                    hidden: hidden.clone(),
                    gradient: gradient.clone(),
                },
            );
            weight::times(gradient, &weight)
        })?)
    }

    /// Differentiable logits, a vector of one token's a row, without the others'.
    ///
    /// # Errors
    /// If there are not as many tokens as rows, or a tensor operation fails.
    pub fn logits_of(&self, rows: &[u32], tokens: &[u32]) -> Result<Tensor> {
        let selected = self.select(rows)?;
        let hidden = selected.detach();
        let tokens = Tensor::new(tokens, hidden.device())?;
        let weight = weight::rows_of(&self.unembedding.weight.tensor, &tokens)?;
        let output = self.unembedding.capped((&hidden * &weight)?.sum(1)?)?;
        let (record, unembedding) = (self.record.clone(), self.unembedding.clone());
        let capped = self.unembedding.kept(&output)?;
        Ok(differentiable(&selected, output, move |gradient| {
            let gradient = at_uncapped(&capped, gradient)?.unsqueeze(1)?;
            capture(
                &record,
                Captured::TokenLogits {
                    unembedding: unembedding.clone(),
                    tokens: tokens.clone(),
                    gradients: hidden.broadcast_mul(&gradient)?,
                },
            );
            weight.broadcast_mul(&gradient)
        })?)
    }

    /// The differentiable scalar Σ weight · (−log p(token)), a target a row.
    pub fn cross_entropy(&self, rows: &[u32], targets: Vec<Target>) -> Result<Tensor> {
        let selected = self.select(rows)?;
        let hidden = selected.detach();
        let tracked = selected.track_op();
        let weight = &self.unembedding.weight.tensor;
        let cap = self.unembedding.cap;
        let result = cross_entropy::weighted(&hidden, weight, cap, &targets, tracked)?;
        let loss = Tensor::new(result.loss, hidden.device())?.to_dtype(hidden.dtype())?;
        let Some(at_hidden) = result.gradient else {
            return Ok(loss);
        };
        let (record, unembedding) = (self.record.clone(), self.unembedding.clone());
        let targets = Arc::new(targets);
        Ok(differentiable(&selected, loss, move |gradient| {
            let factor = scalar(gradient)?;
            capture(
                &record,
                Captured::CrossEntropy {
                    unembedding: unembedding.clone(),
                    hidden: hidden.clone(),
                    targets: targets.clone(),
                    factor,
                },
            );
            at_hidden.affine(factor, 0.0)
        })?)
    }
}
