//! Rows of a tensor, taken out, put back and read as numbers: what files keep of a parameter that was tuned in
//! part, and what models are compared by.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use crate::Result;

/// Some rows of a tensor, one range behind the other.
///
/// # Errors
/// If a tensor operation fails.
pub(crate) fn gathered(tensor: &Tensor, rows: &[Range<usize>]) -> Result<Tensor> {
    let rows = rows.iter().map(|rows| tensor.narrow(0, rows.start, rows.len()));
    Ok(Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
}

/// Puts rows that lie one range behind the other back to where they were.
///
/// # Errors
/// If a tensor operation fails.
pub(crate) fn put_back(tensor: &Tensor, kept: &Tensor, rows: &[Range<usize>]) -> Result<()> {
    let kept = kept.to_device(tensor.device())?.to_dtype(tensor.dtype())?;
    let mut start = 0;
    for range in rows {
        let rows = kept.narrow(0, start, range.len())?.contiguous()?;
        tensor.slice_set(&rows, 0, range.start)?;
        start += range.len();
    }
    Ok(())
}

/// Rows that are widened at once.
const BLOCK: usize = 4096;

/// The values of a tensor [rows, width] in float64, which holds those of every type of weights exactly: a block of
/// rows at a time, each with the index of its first.
pub(crate) fn widened(tensor: &Tensor) -> impl Iterator<Item = Result<(usize, Vec<f64>)>> + '_ {
    let rows = tensor.dims()[0];
    (0..rows).step_by(BLOCK).map(move |start| {
        let block = tensor.narrow(0, start, BLOCK.min(rows - start))?.to_device(&Device::Cpu)?;
        Ok((start, block.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?))
    })
}
