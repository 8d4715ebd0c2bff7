//! The rows of a gradient that are not all zero. A metric read at a few positions leaves most rows of
//! its gradients zero near the end of the model, and padding leaves some everywhere; products are
//! formed for the others only.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{Real, add_rows, by_dtype, is_fused, lanes, values};

/// Rows a thread takes at once, at least: one alone is less work than waking it.
const ROWS: usize = 64;

/// Which rows of a gradient [rows, width] are worth working on.
#[derive(Clone, Debug)]
pub enum Kept {
    All,
    /// These, in order, of so many.
    Rows(Arc<Vec<usize>>, usize),
}

impl Kept {
    /// The rows that are not all zero; all of them where few are.
    pub(crate) fn of(gradient: &Tensor) -> Result<Self> {
        match is_fused(gradient) {
            true => by_dtype!(gradient, T => Self::of_values::<T>(gradient)),
            false => Ok(Self::All),
        }
    }

    fn of_values<T: Real>(gradient: &Tensor) -> Result<Self> {
        let (rows, width) = gradient.dims2()?;
        let values = values::<T>(gradient)?;
        let kept: Vec<usize> = (values.par_chunks(width).enumerate().with_min_len(ROWS))
            .filter(|(_, row)| !lanes::is_zero(row))
            .map(|(index, _)| index)
            .collect();
        // Copying rows to and fro costs something too.
        Ok(if kept.len() * 8 > rows * 7 { Self::All } else { Self::Rows(Arc::new(kept), rows) })
    }

    /// The rows [kept, width] of a tensor [rows, width].
    pub(crate) fn gather(&self, tensor: &Tensor) -> Result<Tensor> {
        match self {
            Self::All => Ok(tensor.clone()),
            Self::Rows(kept, _) => by_dtype!(tensor, T => gather::<T>(tensor, kept)),
        }
    }

    /// Some rows [chosen, width] of what is zero but for a tensor's rows [kept, width].
    pub(crate) fn choose(&self, tensor: &Tensor, chosen: &[u32]) -> Result<Tensor> {
        let Self::Rows(kept, _) = self else {
            let all = chosen.len() == tensor.dim(0)?
                && chosen.iter().enumerate().all(|(index, &row)| index == row as usize);
            if all {
                return Ok(tensor.clone());
            }
            return tensor.index_select(&Tensor::new(chosen, tensor.device())?, 0);
        };
        let (mut places, mut from) = (Vec::new(), Vec::new());
        for (place, row) in chosen.iter().enumerate() {
            if let Ok(index) = kept.binary_search(&(*row as usize)) {
                places.push(place);
                from.push(index as u32);
            }
        }
        let rows = tensor.index_select(&Tensor::new(from, tensor.device())?, 0)?;
        Self::Rows(Arc::new(places), chosen.len()).scatter(rows)
    }

    /// `tensor` [rows, width] with `rows` [kept, width], which nobody else holds, added to these rows
    /// of it.
    pub(crate) fn add(&self, tensor: &Tensor, rows: Tensor) -> Result<Tensor> {
        match self {
            Self::All => add_rows(rows, Some(tensor), None),
            Self::Rows(kept, _) => by_dtype!(tensor, T => add::<T>(tensor, &rows, kept)),
        }
    }

    /// All rows [rows, width] of a tensor that has the kept ones [kept, width]; the others are zero.
    pub(crate) fn scatter(&self, tensor: Tensor) -> Result<Tensor> {
        match self {
            Self::All => Ok(tensor),
            Self::Rows(kept, rows) => by_dtype!(tensor, T => scatter::<T>(&tensor, kept, *rows)),
        }
    }
}

fn gather<T: Real>(tensor: &Tensor, kept: &[usize]) -> Result<Tensor> {
    let width = tensor.dim(1)?;
    let tensor = tensor.contiguous()?;
    let values = values::<T>(&tensor)?;
    let mut gathered = Vec::with_capacity(kept.len() * width);
    kept.iter().for_each(|row| gathered.extend_from_slice(&values[row * width..][..width]));
    Tensor::from_vec(gathered, (kept.len(), width), tensor.device())
}

fn add<T: Real>(tensor: &Tensor, rows: &Tensor, kept: &[usize]) -> Result<Tensor> {
    let width = tensor.dim(1)?;
    let (before, rows) = (values::<T>(tensor)?, values::<T>(rows)?);
    let mut sum = vec![T::zero(); before.len()];
    let all = sum.par_chunks_mut(width).zip(before.par_chunks(width)).enumerate();
    all.with_min_len(ROWS).for_each(|(row, (sum, before))| {
        sum.copy_from_slice(before);
        if let Ok(index) = kept.binary_search(&row) {
            lanes::vectorized(
                #[inline(always)]
                || lanes::add_scaled(sum, T::one(), &rows[index * width..][..width]),
            );
        }
    });
    Tensor::from_vec(sum, tensor.shape(), tensor.device())
}

fn scatter<T: Real>(tensor: &Tensor, kept: &[usize], rows: usize) -> Result<Tensor> {
    let width = tensor.dim(1)?;
    let tensor = tensor.contiguous()?;
    let values = values::<T>(&tensor)?;
    let mut scattered = vec![T::zero(); rows * width];
    for (row, values) in kept.iter().zip(values.chunks(width)) {
        scattered[row * width..][..width].copy_from_slice(values);
    }
    Tensor::from_vec(scattered, (rows, width), tensor.device())
}
