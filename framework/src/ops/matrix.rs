//! Sums and selections over a matrix's rows and columns, without the copies that candle's would make.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, WithDType};
use num_traits::{One, Zero};
use rayon::prelude::*;

use super::{Real, by_dtype, in_place, is_fused, lanes, values};

/// Σ of the squares of all values of a contiguous tensor, added up row by row in order.
pub(crate) fn squared_norm(tensor: &Tensor) -> Result<f64> {
    if !is_fused(tensor) {
        return tensor.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar();
    }
    by_dtype!(tensor, T => {
        let values = values::<T>(tensor)?;
        let row = |row: &[T]| {
            lanes::vectorized(
                #[inline(always)]
                || WithDType::to_f64(lanes::dot(row, row)),
            )
        };
        let rows: Vec<f64> = values.par_chunks(tensor.dim(1)?).map(row).collect();
        Ok(rows.into_iter().sum())
    })
}

/// The sum [1, width] of all rows of a contiguous tensor [rows, width].
pub(crate) fn sum_all_rows(tensor: &Tensor) -> Result<Tensor> {
    sum_rows(tensor, &Vec::from_iter(0..tensor.dim(0)? as u32))
}

/// The sum [1, width] of some rows of a contiguous tensor [rows, width], added up in their order.
pub(crate) fn sum_rows(tensor: &Tensor, rows: &[u32]) -> Result<Tensor> {
    /// Columns a thread takes at once.
    const COLUMNS: usize = 256;
    if !is_fused(tensor) {
        return tensor.index_select(&Tensor::new(rows, tensor.device())?, 0)?.sum_keepdim(0);
    }
    by_dtype!(tensor, T => {
        let width = tensor.dim(1)?;
        let values = values::<T>(tensor)?;
        let mut sum = vec![T::zero(); width];
        sum.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, sum)| {
            lanes::vectorized(
                #[inline(always)]
                || {
                    for &row in rows {
                        let start = row as usize * width + chunk * COLUMNS;
                        lanes::add_scaled(sum, T::one(), &values[start..][..sum.len()]);
                    }
                },
            );
        });
        Tensor::from_vec(sum, (1, width), tensor.device())
    })
}

/// The columns [rows, selected] of a contiguous tensor [rows, width] that lie in `ranges`.
pub(crate) fn select_columns(tensor: &Tensor, ranges: &[Range<usize>]) -> Result<Tensor> {
    if !is_fused(tensor) {
        let columns = ranges.iter().map(|range| tensor.narrow(1, range.start, range.len()));
        return Tensor::cat(&columns.collect::<Result<Vec<_>>>()?, 1)?.contiguous();
    }
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

/// `y` [rows, width] with the rows of a contiguous tensor, and one row, the bias, added to each of its
/// rows; in y's own place where that can be.
pub(crate) fn add_rows(y: Tensor, rows: Option<&Tensor>, bias: Option<&Tensor>) -> Result<Tensor> {
    if is_fused(&y) {
        by_dtype!(y, T => add_in_place::<T>(&y, rows, bias))?;
        return Ok(y);
    }
    let y = match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, ()))?)?,
        None => y,
    };
    match rows {
        Some(rows) => y + rows,
        None => Ok(y),
    }
}

fn add_in_place<T: Real>(y: &Tensor, rows: Option<&Tensor>, bias: Option<&Tensor>) -> Result<()> {
    let width = y.dim(1)?;
    let rows = rows.map(values::<T>).transpose()?;
    let bias = bias.map(values::<T>).transpose()?;
    in_place(y, |y: &mut [T]| {
        y.par_chunks_mut(width).enumerate().for_each(|(index, y)| {
            lanes::vectorized(
                #[inline(always)]
                || {
                    if let Some(bias) = &bias {
                        lanes::add_scaled(y, T::one(), bias);
                    }
                    if let Some(rows) = &rows {
                        lanes::add_scaled(y, T::one(), &rows[index * width..][..width]);
                    }
                },
            );
        });
        Ok(())
    })
}

/// `sums` [n, places, width] with `factor` times rows [n, rows, width] added, row i to place
/// `places[i]`; in the sums' own place where that can be.
pub(crate) fn add_by_place(
    sums: Tensor,
    places: &[u32],
    rows: &Tensor,
    factor: f64,
) -> Result<Tensor> {
    let rows = rows.contiguous()?;
    if is_fused(&sums) {
        by_dtype!(sums, T => add_by_place_in_place::<T>(&sums, places, &rows, factor))?;
        return Ok(sums);
    }
    let index = Tensor::new(places, rows.device())?;
    sums.index_add(&index, &rows.affine(factor, 0.0)?, 1)
}

fn add_by_place_in_place<T: Real>(
    sums: &Tensor,
    places: &[u32],
    rows: &Tensor,
    factor: f64,
) -> Result<()> {
    let (_, all_places, width) = sums.dims3()?;
    let (rows, factor) = (values::<T>(rows)?, lanes::real::<T>(factor));
    in_place(sums, |sums: &mut [T]| {
        let blocks = sums.par_chunks_mut(all_places * width);
        blocks.zip(rows.par_chunks(places.len() * width)).for_each(|(sums, rows)| {
            lanes::vectorized(
                #[inline(always)]
                || {
                    for (&place, row) in places.iter().zip(rows.chunks(width)) {
                        let sums = &mut sums[place as usize * width..][..width];
                        lanes::add_scaled(sums, factor, row);
                    }
                },
            );
        });
        Ok(())
    })
}
