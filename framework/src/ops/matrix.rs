//! Sums and selections over a matrix's rows and columns, without the copies that candle's would make.

use std::ops::Range;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, WithDType, bail};
use num_traits::{One, Zero};
use rayon::prelude::*;

use super::{Real, by_dtype, is_fused, lanes, values};

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
        y.inplace_op1(&AddRows { rows, bias })?;
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

struct AddRows<'a> {
    rows: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
}

impl InplaceOp1 for AddRows<'_> {
    fn name(&self) -> &'static str {
        "add rows"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let width = layout.dims()[1];
        let of = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
        match storage {
            CpuStorage::F32(y) => self.add(&mut y[of], width),
            CpuStorage::F64(y) => self.add(&mut y[of], width),
            _ => bail!("operations compute in float32 or float64"),
        }
    }
}

impl AddRows<'_> {
    fn add<T: Real>(&self, y: &mut [T], width: usize) -> Result<()> {
        let rows = self.rows.map(values::<T>).transpose()?;
        let bias = self.bias.map(values::<T>).transpose()?;
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
    }
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
        sums.inplace_op1(&AddByPlace { places, rows: &rows, factor })?;
        return Ok(sums);
    }
    let index = Tensor::new(places, rows.device())?;
    sums.index_add(&index, &rows.affine(factor, 0.0)?, 1)
}

struct AddByPlace<'a> {
    places: &'a [u32],
    rows: &'a Tensor,
    factor: f64,
}

impl InplaceOp1 for AddByPlace<'_> {
    fn name(&self) -> &'static str {
        "add by place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let block = layout.dims()[1] * layout.dims()[2];
        let of = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
        match storage {
            CpuStorage::F32(sums) => self.add(&mut sums[of], block),
            CpuStorage::F64(sums) => self.add(&mut sums[of], block),
            _ => bail!("operations compute in float32 or float64"),
        }
    }
}

impl AddByPlace<'_> {
    fn add<T: Real>(&self, sums: &mut [T], block: usize) -> Result<()> {
        let width = self.rows.dim(2)?;
        let (rows, factor) = (values::<T>(self.rows)?, lanes::real::<T>(self.factor));
        let blocks = sums.par_chunks_mut(block).zip(rows.par_chunks(self.places.len() * width));
        blocks.for_each(|(sums, rows)| {
            lanes::vectorized(
                #[inline(always)]
                || {
                    for (&place, row) in self.places.iter().zip(rows.chunks(width)) {
                        let sums = &mut sums[place as usize * width..][..width];
                        lanes::add_scaled(sums, factor, row);
                    }
                },
            );
        });
        Ok(())
    }
}
