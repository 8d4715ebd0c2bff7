//! Products of matrices on the CPU, through the crate whose kernels candle uses too, with three things
//! that candle's own call does otherwise: threads form blocks of the result where it lies, none of them
//! bringing a whole weight into shape for the others; the result isn't cleared before it is written; and
//! the number of threads isn't read from a file of the system's at every product, which takes as long as
//! a small one.

#![expect(
    unsafe_code,
    reason = "the kernels take pointers; `Matrix` holds them within their values"
)]

use candle_core::{DType, Layout, Result, Storage, Tensor, WithDType};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::is_fused;

/// Columns or rows that a thread's block has at least. So large a block takes the kernel's way through a
/// sum's terms that the whole product would take, so that the bits are the same on any number of threads.
const BLOCK: usize = 96;

/// Rows and columns up to which the kernel treats a product as one with vectors, in another order.
const NARROW: usize = 8;

/// a [n, k] times b [k, width], of any strides. Gradients don't flow through it.
pub(crate) fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let is_ours = is_fused(a)
        && b.device().is_cpu()
        && a.dtype() == b.dtype()
        && !(a.track_op() || b.track_op())
        && a.dim(1)? == b.dim(0)?;
    match a.dtype() {
        DType::F32 if is_ours => product::<f32>(a, b),
        DType::F64 if is_ours => product::<f64>(a, b),
        // On other devices and in other types candle's; errors of shape and type are its own too.
        _ => a.matmul(b),
    }
}

fn product<T: WithDType>(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (rows, columns) = (a.dim(0)?, b.dim(1)?);
    if rows * columns * a.dim(1)? == 0 {
        return Tensor::zeros((rows, columns), a.dtype(), a.device());
    }
    let mut values = Vec::<T>::with_capacity(rows * columns);
    {
        let ((a_storage, a_layout), (b_storage, b_layout)) =
            (a.storage_and_layout(), b.storage_and_layout());
        let a = Matrix::<T>::new(&a_storage, a_layout)?;
        let b = Matrix::<T>::new(&b_storage, b_layout)?;
        let result = Place(values.as_mut_ptr());
        blocks(rows, columns).into_par_iter().for_each(|block| {
            // SAFETY: the place holds rows × columns values, and no two blocks overlap.
            unsafe { block.form(a, b, result, columns) }
        });
    }
    // SAFETY: the blocks together are the whole result, and each wrote all of its values.
    unsafe { values.set_len(rows * columns) };
    Tensor::from_vec(values, (rows, columns), a.device())
}

/// The values of a matrix on the CPU.
#[derive(Clone, Copy)]
struct Matrix<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
    /// From one row to the next, and from one column to the next.
    strides: [usize; 2],
}

impl<'a, T: WithDType> Matrix<'a, T> {
    fn new(storage: &'a Storage, layout: &Layout) -> Result<Self> {
        let (Storage::Cpu(storage), &[rows, columns], &[row, column]) =
            (storage, layout.dims(), layout.stride())
        else {
            candle_core::bail!("expected a matrix on the CPU, got {:?}", layout.dims());
        };
        let values = &T::cpu_storage_as_slice(storage)?[layout.start_offset()..];
        // What the kernel reads ends with the last value of the last row.
        assert!((rows - 1) * row + (columns - 1) * column < values.len());
        Ok(Self { values, rows, columns, strides: [row, column] })
    }
}

/// Where the result goes, row by row.
#[derive(Clone, Copy)]
struct Place<T>(*mut T);

// SAFETY: threads write to blocks that don't overlap.
unsafe impl<T: Send> Send for Place<T> {}
unsafe impl<T: Send> Sync for Place<T> {}

/// A rectangle of the result.
#[derive(Clone, Copy)]
struct Block {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
}

/// A block for each thread, as many side by side as there is room for.
fn blocks(rows: usize, columns: usize) -> Vec<Block> {
    let is_narrow = rows.min(columns) <= NARROW;
    let threads = if is_narrow { 1 } else { rayon::current_num_threads() };
    let beside = (columns / BLOCK).clamp(1, threads);
    let below = (rows / BLOCK).clamp(1, threads.div_ceil(beside));
    let cut = |length: usize, parts: usize| {
        (0..parts).map(move |part| (part * length / parts, (part + 1) * length / parts))
    };
    let rows = cut(rows, below);
    rows.flat_map(|(row, end)| {
        let block =
            move |(column, until)| Block { row, rows: end - row, column, columns: until - column };
        cut(columns, beside).map(block)
    })
    .collect()
}

impl Block {
    /// Forms this rectangle of a times b in a result of so many columns.
    ///
    /// # Safety
    ///
    /// `result` must have room for a's rows times `width` values, and no other thread may use this
    /// rectangle of it.
    unsafe fn form<T: WithDType>(self, a: Matrix<T>, b: Matrix<T>, result: Place<T>, width: usize) {
        debug_assert!(self.row + self.rows <= a.rows && self.column + self.columns <= b.columns);
        debug_assert!(a.columns == b.rows && width == b.columns);
        let [a_row, a_column] = a.strides;
        let [b_row, b_column] = b.strides;
        // SAFETY: `Matrix::new` has held the last value of each against its slice, this rectangle lies
        // in both, and the kernel writes rows × columns values of the result without reading them.
        unsafe {
            gemm(
                self.rows,
                self.columns,
                a.columns,
                result.0.add(self.row * width + self.column),
                1,
                width as isize,
                false,
                a.values.as_ptr().add(self.row * a_row),
                a_column as isize,
                a_row as isize,
                b.values.as_ptr().add(self.column * b_column),
                b_column as isize,
                b_row as isize,
                T::zero(),
                T::one(),
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use proptest::prelude::*;

    use super::matmul;

    /// A matrix of pseudo-random values, in the middle of a larger one, or transposed.
    fn matrix(rows: usize, columns: usize, is_transposed: bool, gap: usize, seed: f64) -> Tensor {
        let (height, width) = if is_transposed { (columns, rows) } else { (rows, columns) };
        let wide = width + 2 * gap;
        let value = |i: usize| ((i as f64 + 1.0) * 12.9898 + seed).sin();
        let values: Vec<f64> = (0..height * wide).map(value).collect();
        let whole = Tensor::from_vec(values, (height, wide), &Device::Cpu).unwrap();
        let part = whole.narrow(1, gap, width).unwrap();
        if is_transposed { part.t().unwrap() } else { part }
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Any size and stride, against sums term by term, and with the same bits on any number of threads.
        #[test]
        fn products_are_right_on_any_number_of_threads(
            rows in prop_oneof![1usize..12, 60usize..70, 90usize..210],
            inner in prop_oneof![1usize..12, 500usize..540],
            columns in prop_oneof![1usize..12, 60usize..70, 90usize..420],
            transposed in any::<[bool; 2]>(), gap in 0usize..3, seed in 0f64..9.0,
        ) {
            let a = matrix(rows, inner, transposed[0], gap, seed);
            let b = matrix(inner, columns, transposed[1], gap, seed + 1.0);
            let found = matmul(&a, &b).unwrap();
            prop_assert_eq!(found.dims(), [rows, columns]);
            let (a, b, found) = (
                a.to_vec2::<f64>().unwrap(), b.to_vec2::<f64>().unwrap(), found.to_vec2::<f64>().unwrap(),
            );
            for row in 0..rows {
                for column in 0..columns {
                    let expected: f64 = (0..inner).map(|i| a[row][i] * b[i][column]).sum();
                    prop_assert!((found[row][column] - expected).abs() <= 1e-11);
                }
            }
        }

        #[test]
        fn bits_do_not_depend_on_threads(
            rows in prop_oneof![1usize..12, 60usize..70, 90usize..210],
            inner in prop_oneof![1usize..12, 500usize..1100],
            columns in prop_oneof![1usize..12, 60usize..70, 90usize..420],
            transposed in any::<[bool; 2]>(),
        ) {
            let single = |tensor: Tensor| tensor.to_dtype(DType::F32).unwrap();
            let a = single(matrix(inner, rows, false, 0, 0.0));
            let b = single(matrix(columns, inner, false, 0, 1.0));
            let (a, b) = (a.t().unwrap(), b.t().unwrap());
            let a = if transposed[0] { a } else { a.contiguous().unwrap() };
            let b = if transposed[1] { b } else { b.contiguous().unwrap() };
            let on = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| bits(&matmul(&a, &b).unwrap()))
            };
            let one = on(1);
            for threads in [2, 3, 8] {
                prop_assert_eq!(&one, &on(threads), "{} threads", threads);
            }
        }
    }
}
