//! The differentiable operations a transformer is made of, each with its backward pass written by
//! hand, because candle's own fused ones have none: the gradient would silently stop there.
//!
//! One operation a file. Each takes and returns float32 tensors, or float64 ones where numbers are to be
//! checked to the last digit; a loop over rows is split between
//! threads at row boundaries and summed inside a row in a fixed order, so results are the same
//! bits on any number of threads.

use candle_core::{Result, Tensor, WithDType};
use rayon::prelude::*;

pub mod activation;
pub mod attention;
pub mod cross_entropy;
mod function;
mod kept;
mod lanes;
pub mod norm;
pub mod rotary;
#[cfg(test)]
mod tests;

pub(crate) use function::{by_dtype, differentiable, differentiable2, values};
pub(crate) use kept::Kept;
pub(crate) use lanes::Real;

/// Σ of the squares of all values of a contiguous tensor, added up row by row in order.
pub(crate) fn squared_norm(tensor: &Tensor) -> Result<f64> {
    by_dtype!(tensor, T => {
        let values = values::<T>(tensor)?;
        let row = |row: &[T]| WithDType::to_f64(lanes::dot(row, row));
        let rows: Vec<f64> = values.par_chunks(tensor.dim(1)?).map(row).collect();
        Ok(rows.into_iter().sum())
    })
}
