//! Products block by block: each head's values with its own rows of a projection. candle makes the wide
//! ones; those of a head's width are so small that handing them to candle would cost more than they do.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::product::Product;
use super::{Real, by_dtype, in_place, is_fused};

/// Rows of a block that are formed together.
const TILE: usize = 16;

/// Rows of a block's weight up to which a tile's passes over it find it in the cache.
const CACHED: usize = 256;

/// Puts values [rows, blocks × width] times weight [blocks × width, d], block by block, in a place
/// [blocks, rows, d].
pub(crate) fn multiply_blocks_into(values: &Tensor, weight: &Tensor, place: &Tensor) -> Result<()> {
    let (blocks, rows, d) = place.dims3()?;
    let width = weight.dim(0)? / blocks;
    if is_small(values, width) {
        return by_dtype!(values, T => multiply_blocks_then::<T>(values, weight, place, |_, _| ()));
    }
    let values = values.reshape((rows, blocks, width))?.transpose(0, 1)?.contiguous()?;
    place.slice_set(&values.matmul(&weight.reshape((blocks, width, d))?)?, 0, 0)
}

/// Whether products with blocks of so many rows are better made here than by candle.
pub(crate) fn is_small(values: &Tensor, width: usize) -> bool {
    is_fused(values) && width <= CACHED
}

/// [`multiply_blocks_into`] on the CPU, with `then(i, row)` done to every block's i-th row while it is in the cache.
pub(super) fn multiply_blocks_then<T: Real>(
    values: &Tensor,
    weight: &Tensor,
    place: &Tensor,
    then: impl Fn(usize, &mut [T]) + Sync,
) -> Result<()> {
    let (blocks, rows, d) = place.dims3()?;
    let total = values.dim(1)?;
    let width = total / blocks;
    let values = values.contiguous()?;
    let (values, weight) = (super::values::<T>(&values)?, super::values::<T>(weight)?);
    let tile = |block: usize, tile: usize, output: &mut [T]| {
        output.fill(T::zero());
        T::add_product(Product {
            rows: output.len() / d,
            c: output,
            c_stride: d,
            a: &values[tile * TILE * total + block * width..],
            a_stride: total,
            a_is_transposed: false,
            b: &weight[block * width * d..],
            b_stride: d,
            columns: width,
            width: d,
        });
        output.chunks_mut(d).enumerate().for_each(|(row, output)| then(tile * TILE + row, output));
    };
    in_place(place, |output: &mut [T]| {
        output.par_chunks_mut(rows * d).enumerate().for_each(|(block, output)| {
            let tiles = output.par_chunks_mut(TILE * d).enumerate();
            tiles.for_each(|(index, output)| tile(block, index, output));
        });
        Ok(())
    })
}
