//! Unembedding and cross-entropy in one, over chunks of rows, so that no more than a chunk of
//! logits exists at a time. The gradient of the hidden states is formed on the way, while a
//! chunk's probabilities are at hand.

use candle_core::{Result, Tensor, WithDType};
use rayon::prelude::*;

use super::{Real, by_dtype, lanes, values};

/// Rows whose logits are held at once.
const CHUNK: usize = 128;

/// One predicted token: which one, and what its term counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    pub token: u32,
    /// The factor of this token's −log p in the sum.
    pub weight: f64,
}

/// What [`weighted`] computes.
pub struct CrossEntropy {
    /// Σ weight · (−log p(token)).
    pub loss: f64,
    /// Its gradient at the hidden states [rows, d_model], if asked for.
    pub gradient: Option<Tensor>,
}

/// Σ weight · (−log p(token)) for hidden [rows, d_model], unembedding [vocabulary, d_model] and a
/// target a row.
pub fn weighted(
    hidden: &Tensor,
    unembedding: &Tensor,
    targets: &[Target],
    with_gradient: bool,
) -> Result<CrossEntropy> {
    let mut loss = 0.0;
    let mut gradients = Vec::new();
    for (start, targets) in chunks(targets) {
        let rows = hidden.narrow(0, start, targets.len())?;
        let (terms, d_logits) = chunk(&rows, unembedding, targets)?;
        loss += terms;
        if with_gradient {
            gradients.push(d_logits.matmul(unembedding)?);
        }
    }
    let gradient = match with_gradient {
        true if gradients.is_empty() => Some(hidden.zeros_like()?),
        true => Some(Tensor::cat(&gradients, 0)?),
        false => None,
    };
    Ok(CrossEntropy { loss, gradient })
}

/// The gradient of the unembedding [vocabulary, d_model], for the same arguments. The logits are
/// formed again: only a selector that trains the unembedding pays for this.
pub fn unembedding_gradient(
    hidden: &Tensor,
    unembedding: &Tensor,
    targets: &[Target],
) -> Result<Tensor> {
    let mut sum = unembedding.zeros_like()?;
    for (start, targets) in chunks(targets) {
        let rows = hidden.narrow(0, start, targets.len())?;
        let (_, d_logits) = chunk(&rows, unembedding, targets)?;
        sum = (sum + d_logits.t()?.matmul(&rows)?)?;
    }
    Ok(sum)
}

fn chunks(targets: &[Target]) -> impl Iterator<Item = (usize, &[Target])> {
    (targets.chunks(CHUNK).enumerate()).map(|(index, targets)| (index * CHUNK, targets))
}

/// A chunk's share of the loss, and ∂loss/∂logits [rows, vocabulary].
fn chunk(rows: &Tensor, unembedding: &Tensor, targets: &[Target]) -> Result<(f64, Tensor)> {
    by_dtype!(rows, T => chunk_in::<T>(rows, unembedding, targets))
}

fn chunk_in<T: Real>(
    rows: &Tensor,
    unembedding: &Tensor,
    targets: &[Target],
) -> Result<(f64, Tensor)> {
    let logits = rows.matmul(&unembedding.t()?)?;
    let shape = logits.shape().clone();
    let vocabulary = logits.dim(1)?;
    let values = values::<T>(&logits)?;
    let mut d_logits = vec![T::zero(); values.len()];
    let terms: Vec<f64> = (d_logits.par_chunks_mut(vocabulary))
        .zip(values.par_chunks(vocabulary))
        .zip(targets)
        .map(|((d_logits, logits), target)| {
            let largest = lanes::max(logits);
            for (p, logit) in d_logits.iter_mut().zip(logits) {
                *p = (*logit - largest).exponential();
            }
            let total = lanes::sum(d_logits, |p| p);
            let weight = lanes::real::<T>(target.weight);
            let factor = weight / total;
            d_logits.iter_mut().for_each(|p| *p *= factor);
            let token = target.token as usize;
            d_logits[token] -= weight;
            let log_p = WithDType::to_f64(logits[token] - largest) - WithDType::to_f64(total).ln();
            -target.weight * log_p
        })
        .collect();
    Ok((terms.iter().sum(), Tensor::from_vec(d_logits, shape, logits.device())?))
}
