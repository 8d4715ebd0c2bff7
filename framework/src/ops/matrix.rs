//! Sums and selections over a matrix's rows and columns, without the copies that candle's would make.

use std::ops::Range;

use candle_core::{Result, Tensor, WithDType};
use num_traits::{One, Zero};
use rayon::prelude::*;

use super::{by_dtype, lanes, values};

/// Σ of the squares of all values of a contiguous tensor, added up row by row in order.
pub(crate) fn squared_norm(tensor: &Tensor) -> Result<f64> {
    by_dtype!(tensor, T => {
        let values = values::<T>(tensor)?;
        let row = |row: &[T]| WithDType::to_f64(lanes::dot(row, row));
        let rows: Vec<f64> = values.par_chunks(tensor.dim(1)?).map(row).collect();
        Ok(rows.into_iter().sum())
    })
}

/// The sum [1, width] of some rows of a contiguous tensor [rows, width], added up in their order.
pub(crate) fn sum_rows(tensor: &Tensor, rows: &[u32]) -> Result<Tensor> {
    /// Columns a thread takes at once.
    const COLUMNS: usize = 256;
    by_dtype!(tensor, T => {
        let width = tensor.dim(1)?;
        let values = values::<T>(tensor)?;
        let mut sum = vec![T::zero(); width];
        sum.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, sum)| {
            for &row in rows {
                let start = row as usize * width + chunk * COLUMNS;
                lanes::add_scaled(sum, T::one(), &values[start..][..sum.len()]);
            }
        });
        Tensor::from_vec(sum, (1, width), tensor.device())
    })
}

/// The columns [rows, selected] of a contiguous tensor [rows, width] that lie in `ranges`.
pub(crate) fn select_columns(tensor: &Tensor, ranges: &[Range<usize>]) -> Result<Tensor> {
    by_dtype!(tensor, T => {
        let (rows, width) = tensor.dims2()?;
        let values = values::<T>(tensor)?;
        let selected: usize = ranges.iter().map(Range::len).sum();
        let mut columns = vec![T::zero(); rows * selected];
        let rows_of = columns.par_chunks_mut(selected.max(1)).zip(values.par_chunks(width));
        rows_of.for_each(|(columns, row)| {
            let mut at = 0;
            for range in ranges {
                columns[at..at + range.len()].copy_from_slice(&row[range.clone()]);
                at += range.len();
            }
        });
        Tensor::from_vec(columns, (rows, selected), tensor.device())
    })
}
