//! How a parameter stands in Hugging Face's files: under which names, with which of its rows, and which
//! way round. Loading, saving and the names of adapters follow from it.

use std::iter;
use std::ops::Range;

use candle_core::Tensor;

use crate::Result;

/// One tensor of a file, which holds a parameter's rows or some of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileTensor {
    /// `model.layers.0.self_attn.q_proj.weight`
    pub name: String,
    /// The parameter's rows that it holds, in its own order.
    pub rows: Vec<Range<usize>>,
    pub form: Form,
}

/// What a parameter's row is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A row.
    Rows,
    /// A column.
    Columns,
    /// The parameter is one row, or one number a row, and the file's tensor a vector.
    Vector,
}

impl FileTensor {
    /// One that holds the first so many rows, all of them, in order.
    pub fn whole(name: impl Into<String>, rows: usize, form: Form) -> Self {
        Self { name: name.into(), rows: iter::once(0..rows).collect(), form }
    }

    /// How many rows it holds.
    fn height(&self) -> usize {
        self.rows.iter().map(Range::len).sum()
    }

    /// Its shape in the file, of a parameter [rows, width].
    pub fn shape(&self, width: usize) -> Vec<usize> {
        match self.form {
            Form::Rows => vec![self.height(), width],
            Form::Columns => vec![width, self.height()],
            Form::Vector => vec![self.height() * width],
        }
    }

    /// The file's tensor, of the parameter [rows, width].
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn of(&self, parameter: &Tensor) -> Result<Tensor> {
        let parts = (self.rows.iter()).map(|rows| parameter.narrow(0, rows.start, rows.len()));
        let parts = parts.collect::<candle_core::Result<Vec<_>>>()?;
        let rows = match &parts[..] {
            [only] => only.clone(),
            _ => Tensor::cat(&parts, 0)?,
        };
        Ok(match self.form {
            Form::Rows => rows.contiguous()?,
            Form::Columns => rows.t()?.contiguous()?,
            Form::Vector => rows.flatten_all()?,
        })
    }

    /// The rows [rows it holds, width], in its own order, of the file's tensor.
    fn rows_of(&self, tensor: &Tensor, width: usize) -> Result<Tensor> {
        Ok(match self.form {
            Form::Rows => tensor.clone(),
            Form::Columns => tensor.t()?,
            Form::Vector => tensor.reshape((self.height(), width))?,
        })
    }
}

/// The parameter [rows, width] that files' tensors hold together, given in the order of `layout`.
///
/// # Errors
/// If a tensor operation fails.
pub fn assemble(layout: &[FileTensor], tensors: &[Tensor], width: usize) -> Result<Tensor> {
    let parts = layout.iter().zip(tensors).map(|(file, tensor)| file.rows_of(tensor, width));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    let ranges = || layout.iter().flat_map(|file| &file.rows);
    let rows = match &parts[..] {
        [only] => only.clone(),
        _ => Tensor::cat(&parts, 0)?,
    };
    let is_in_order = ranges().zip(ranges().skip(1)).all(|(a, b)| a.end == b.start);
    if is_in_order {
        return Ok(rows.contiguous()?);
    }
    let (rows, mut at) = (rows.contiguous()?, 0);
    let whole = rows.zeros_like()?;
    for range in ranges() {
        whole.slice_set(&rows.narrow(0, at, range.len())?, 0, range.start)?;
        at += range.len();
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is taken apart is put together again, whatever the order and the forms.
        #[test]
        fn files_hold_the_parameter(
            heights in prop::collection::vec(1..4usize, 1..6), width in 1..4usize,
            split in any::<prop::sample::Index>(), reversed in any::<bool>(), columns in any::<bool>(),
        ) {
            let mut start = 0;
            let mut ranges: Vec<Range<usize>> = (heights.iter())
                .map(|height| { start += height; start - height..start })
                .collect();
            if reversed {
                ranges.reverse();
            }
            let (first, second) = ranges.split_at(split.index(ranges.len()));
            let form = |vector| match (vector, columns) {
                (true, _) => Form::Vector,
                (_, true) => Form::Columns,
                _ => Form::Rows,
            };
            let layout: Vec<FileTensor> = [first, second].into_iter()
                .filter(|rows| !rows.is_empty())
                .map(|rows| FileTensor { name: "a".to_owned(), rows: rows.to_vec(), form: form(width == 1) })
                .collect();
            let parameter = Tensor::arange(0f64, (start * width) as f64, &Device::Cpu).unwrap()
                .reshape((start, width)).unwrap();
            let tensors: Vec<Tensor> = layout.iter().map(|file| file.of(&parameter).unwrap()).collect();
            for (file, tensor) in layout.iter().zip(&tensors) {
                prop_assert_eq!(file.shape(width), tensor.dims());
            }
            let again = assemble(&layout, &tensors, width).unwrap();
            prop_assert_eq!(again.to_vec2::<f64>().unwrap(), parameter.to_vec2::<f64>().unwrap());
        }
    }
}
