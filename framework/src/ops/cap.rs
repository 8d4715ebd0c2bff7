//! Soft caps: c · tanh(x/c), of attention scores before they are masked and of logits (Gemma 2, arXiv
//! 2408.00118). The slope is 1 − (y/c)² at the capped value y.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{Real, by_dtype, in_place, is_fused, lanes};

/// Values a thread takes at once.
const CHUNK: usize = 1 << 12;

/// x with each of its values capped.
pub(crate) fn soft_cap(x: &Tensor, cap: f64) -> Result<Tensor> {
    if !is_fused(x) {
        return composed(x, cap);
    }
    let y = x.copy()?.contiguous()?;
    by_dtype!(y, T => in_place(&y, |values: &mut [T]| {
        let chunks = values.par_chunks_mut(CHUNK);
        chunks.for_each(|values| lanes::vectorized(#[inline(always)] || cap_values(values, cap)));
        Ok(())
    }))?;
    Ok(y)
}

/// A gradient at capped values, pulled back.
pub(crate) fn pull_back(capped: &Tensor, gradient: &Tensor, cap: f64) -> Result<Tensor> {
    (capped / cap)?.sqr()?.affine(-1.0, 1.0)? * gradient
}

/// The cap made of candle's own operations, which candle differentiates.
pub(super) fn composed(x: &Tensor, cap: f64) -> Result<Tensor> {
    (x / cap)?.tanh()? * cap
}

/// Caps values in their place.
#[inline(always)]
pub(super) fn cap_values<T: Real>(values: &mut [T], cap: f64) {
    let (cap, inverse) = (lanes::real::<T>(cap), lanes::real::<T>(1.0 / cap));
    values.iter_mut().for_each(|x| *x = cap * (*x * inverse).hyperbolic_tangent());
}

/// Multiplies gradients at capped values with the slopes there.
#[inline(always)]
pub(super) fn times_slopes<T: Real>(gradients: &mut [T], capped: &[T], cap: f64) {
    let inverse = lanes::real::<T>(1.0 / cap);
    for (gradient, y) in gradients.iter_mut().zip(capped) {
        let share = *y * inverse;
        *gradient *= T::one() - share * share;
    }
}
