//! Products with weights. What flows through a model is float32 (or float64); its matrices may be kept
//! in bfloat16, half the size. On a GPU their products are then bfloat16's own. A CPU has none worth
//! having: there a weight is widened for the product, so only its own rounding shows.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::{add_rows, matmul, values};

/// Rows of a weight that are widened at once.
const ROWS: usize = 8192;

/// Values a thread widens at once.
const CHUNK: usize = 1 << 14;

/// What a model computes in whose weights are of this type.
pub(crate) fn computing(weights: DType) -> DType {
    if weights == DType::BF16 { DType::F32 } else { weights }
}

/// x [n, rows] times weight [rows, width].
pub(crate) fn times(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if !is_widened(weight) {
        return matmul(&x.to_dtype(weight.dtype())?, weight)?.to_dtype(x.dtype());
    }
    let mut sum = Tensor::zeros((x.dim(0)?, weight.dim(1)?), x.dtype(), x.device())?;
    for rows in blocks(weight)? {
        let block = widened(&weight.narrow(0, rows.start, rows.len())?)?;
        let share = matmul(&x.narrow(1, rows.start, rows.len())?, &block)?;
        sum = add_rows(share, Some(&sum), None)?;
    }
    Ok(sum)
}

/// x [n, width] times the transpose of weight [rows, width].
pub(crate) fn times_transposed(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if !is_widened(weight) {
        return matmul(&x.to_dtype(weight.dtype())?, &weight.t()?)?.to_dtype(x.dtype());
    }
    let whole = Tensor::zeros((x.dim(0)?, weight.dim(0)?), x.dtype(), x.device())?;
    for rows in blocks(weight)? {
        let block = widened(&weight.narrow(0, rows.start, rows.len())?)?;
        whole.slice_set(&matmul(x, &block.t()?)?, 1, rows.start)?;
    }
    Ok(whole)
}

/// Whether a weight has to be widened for its products.
fn is_widened(weight: &Tensor) -> bool {
    weight.dtype() == DType::BF16 && weight.device().is_cpu()
}

/// A weight's rows, not too many at a time: widened whole, an unembedding would take more than all
/// that its bfloat16 saves.
fn blocks(weight: &Tensor) -> Result<impl Iterator<Item = Range<usize>>> {
    let rows = weight.dim(0)?;
    Ok((0..rows).step_by(ROWS).map(move |start| start..rows.min(start + ROWS)))
}

/// The rows of a weight that `index` [n] names [n, width], as the model computes with them.
pub(crate) fn rows_of(weight: &Tensor, index: &Tensor) -> Result<Tensor> {
    widened(&weight.index_select(index, 0)?)
}

/// Whether all values are finite numbers, in float32 too, which files are in.
pub(crate) fn is_finite(weight: &Tensor) -> Result<bool> {
    // 0·x is 0 unless x is infinite or no number.
    let sum = weight.to_dtype(DType::F32)?.affine(0.0, 0.0)?.sum_all()?;
    Ok(sum.to_scalar::<f32>()? == 0.0)
}

/// A weight as the model computes with it.
pub(crate) fn widened(weight: &Tensor) -> Result<Tensor> {
    if weight.dtype() != DType::BF16 {
        return Ok(weight.clone());
    }
    if !weight.device().is_cpu() || !weight.is_contiguous() {
        return weight.to_dtype(DType::F32);
    }
    let narrow = values::<bf16>(weight)?;
    let mut wide = vec![0f32; narrow.len()];
    (wide.par_chunks_mut(CHUNK).zip(narrow.par_chunks(CHUNK)))
        .for_each(|(wide, narrow)| narrow.convert_to_f32_slice(wide));
    Tensor::from_vec(wide, weight.shape(), weight.device())
}
