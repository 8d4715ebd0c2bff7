//! The rows of a gradient that are not all zero. A metric read at a few positions leaves most rows of
//! its gradients zero near the end of the model, and padding leaves some everywhere; products are
//! formed for the others only.

use candle_core::{Result, Tensor};

use super::{Real, by_dtype, lanes, values};

/// Which rows of a gradient [rows, width] are worth working on.
pub(crate) enum Kept {
    All,
    /// These, of so many.
    Rows(Vec<usize>, usize),
}

impl Kept {
    /// The rows that are not all zero; all of them where few are.
    pub(crate) fn of(gradient: &Tensor) -> Result<Self> {
        by_dtype!(gradient, T => Self::of_values::<T>(gradient))
    }

    fn of_values<T: Real>(gradient: &Tensor) -> Result<Self> {
        let (rows, width) = gradient.dims2()?;
        let values = values::<T>(gradient)?;
        let kept: Vec<usize> = (values.chunks(width).enumerate())
            .filter(|(_, row)| !lanes::is_zero(row))
            .map(|(index, _)| index)
            .collect();
        // Copying rows to and fro costs something too.
        Ok(if kept.len() * 8 > rows * 7 { Self::All } else { Self::Rows(kept, rows) })
    }

    /// The rows [kept, width] of a tensor [rows, width].
    pub(crate) fn gather(&self, tensor: &Tensor) -> Result<Tensor> {
        match self {
            Self::All => Ok(tensor.clone()),
            Self::Rows(kept, _) => by_dtype!(tensor, T => gather::<T>(tensor, kept)),
        }
    }

    /// The same rows of zeros otherwise [rows, width], of a tensor [kept, width].
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
