//! Unembedding and cross-entropy in one, over chunks of rows, so that no more than a chunk of
//! logits exists at a time. The gradient of the hidden states is formed on the way, while a
//! chunk's probabilities are at hand.

use std::cell::Cell;

use candle_core::{DType, Device, Result, Tensor, WithDType};
use rayon::prelude::*;

use super::{Real, by_dtype, cap, in_place, is_fused, lanes, matmul, weight};

/// Logits held at once. With fewer rows, bringing the unembedding into the cache would take longer
/// than the products themselves.
const CHUNK: usize = 1 << 25;

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

/// Σ weight · (−log p(token)) for hidden [rows, d_model], unembedding [vocabulary, d_model], a soft cap
/// on logits and a target a row.
pub fn weighted(
    hidden: &Tensor,
    unembedding: &Tensor,
    cap: Option<f64>,
    targets: &[Target],
    with_gradient: bool,
) -> Result<CrossEntropy> {
    let mut loss = 0.0;
    let mut gradients = Vec::new();
    for (start, targets) in chunks(targets, unembedding)? {
        let rows = hidden.narrow(0, start, targets.len())?;
        let (terms, d_logits) = chunk(&rows, unembedding, cap, targets)?;
        loss += terms;
        if with_gradient {
            gradients.push(weight::times(&d_logits, unembedding)?);
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
    cap: Option<f64>,
    targets: &[Target],
) -> Result<Tensor> {
    let dtype = weight::computing(unembedding.dtype());
    let mut sum = Tensor::zeros(unembedding.shape(), dtype, unembedding.device())?;
    for (start, targets) in chunks(targets, unembedding)? {
        let rows = hidden.narrow(0, start, targets.len())?;
        let (_, d_logits) = chunk(&rows, unembedding, cap, targets)?;
        sum = (sum + matmul(&d_logits.t()?, &rows)?)?;
    }
    Ok(sum)
}

/// The targets in chunks of about one length, each with its first row.
fn chunks<'t>(
    targets: &'t [Target],
    unembedding: &Tensor,
) -> Result<impl Iterator<Item = (usize, &'t [Target])>> {
    let most = (CHUNK / unembedding.dim(0)?).max(1);
    let length = targets.len().div_ceil(targets.len().div_ceil(most).max(1)).max(1);
    Ok((targets.chunks(length).enumerate()).map(move |(index, chunk)| (index * length, chunk)))
}

/// A chunk's share of the loss, and ∂loss/∂logits [rows, vocabulary], before a cap.
fn chunk(
    rows: &Tensor,
    unembedding: &Tensor,
    cap: Option<f64>,
    targets: &[Target],
) -> Result<(f64, Tensor)> {
    let logits = weight::times_transposed(rows, unembedding)?;
    let Some(cap) = cap else {
        return of_logits(logits, targets);
    };
    let capped = cap::soft_cap(&logits, cap)?;
    let (loss, d_capped) = of_logits(capped.copy()?, targets)?;
    Ok((loss, cap::pull_back(&capped, &d_capped, cap)?))
}

/// The loss of logits, which its gradient there may take the place of.
fn of_logits(logits: Tensor, targets: &[Target]) -> Result<(f64, Tensor)> {
    if !is_fused(&logits) {
        return composed(&logits, targets);
    }
    let loss = by_dtype!(logits, T => differentiate_in_place::<T>(&logits, targets))?;
    Ok((loss, logits))
}

/// Puts ∂loss/∂logits in the logits' place: nothing else of their size is held. Returns the loss.
fn differentiate_in_place<T: Real>(logits: &Tensor, targets: &[Target]) -> Result<f64> {
    let vocabulary = logits.dim(1)?;
    let loss = Cell::new(0.0);
    in_place(logits, |logits: &mut [T]| {
        let row = |(logits, target): (&mut [T], &Target)| {
            lanes::vectorized(
                #[inline(always)]
                || differentiate(logits, target),
            )
        };
        let terms: Vec<f64> = logits.par_chunks_mut(vocabulary).zip(targets).map(row).collect();
        loss.set(terms.into_iter().sum());
        Ok(())
    })?;
    Ok(loss.get())
}

/// −weight · log p(token) of a row of logits, which its gradient at them replaces.
#[inline(always)]
fn differentiate<T: Real>(logits: &mut [T], target: &Target) -> f64 {
    let token = target.token as usize;
    let largest = lanes::max(logits);
    let right = WithDType::to_f64(logits[token] - largest);
    logits.iter_mut().for_each(|logit| *logit = lanes::exp_or_zero(*logit - largest));
    let total = lanes::sum(logits, |p| p);
    let weight = lanes::real::<T>(target.weight);
    let factor = weight / total;
    logits.iter_mut().for_each(|p| *p *= factor);
    logits[token] -= weight;
    -target.weight * (right - WithDType::to_f64(total).ln())
}

/// Σ weight · (−log p(token)) of logits [rows, vocabulary], and its gradient there.
fn composed(logits: &Tensor, targets: &[Target]) -> Result<(f64, Tensor)> {
    let column = |values: Vec<f64>| {
        let column = Tensor::from_vec(values, (targets.len(), 1), &Device::Cpu)?;
        column.to_dtype(logits.dtype())?.to_device(logits.device())
    };
    let tokens: Vec<u32> = targets.iter().map(|target| target.token).collect();
    let tokens = Tensor::from_vec(tokens, (targets.len(), 1), logits.device())?;
    let weights = column(targets.iter().map(|target| target.weight).collect())?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?)?;
    let p = shifted.exp()?;
    let total = p.sum_keepdim(1)?;
    let log_p = (shifted.gather(&tokens, 1)? - total.log()?)?;
    let loss = (log_p * &weights)?.sum_all()?.neg()?.to_dtype(DType::F64)?.to_scalar()?;
    let p = p.broadcast_mul(&(&weights / total)?)?;
    Ok((loss, p.scatter_add(&tokens, &weights.neg()?, 1)?))
}
