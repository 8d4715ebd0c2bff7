//! The differentiable operations a transformer is made of, each with its backward pass written by
//! hand, because candle's own fused ones have none: the gradient would silently stop there.
//!
//! Fused ones run on the CPU; on other devices each is composed of candle's own ([`composed`]).
//!
//! One operation a file. Each takes and returns float32 tensors, or float64 ones where numbers are to be
//! checked to the last digit; a loop over rows is split between
//! threads at row boundaries and summed inside a row in a fixed order, so results are the same
//! bits on any number of threads.

pub mod activation;
pub mod attention;
pub mod backward;
mod blocks;
pub(crate) mod cap;
pub mod composed;
pub mod cross_entropy;
mod function;
mod kept;
mod lanes;
mod matmul;
mod matrix;
pub mod norm;
mod product;
mod reader_inputs;
mod real;
pub mod rotary;
#[cfg(test)]
mod tests;
pub(crate) mod weight;

pub(crate) use blocks::{is_small, multiply_blocks_into};
pub(crate) use composed::is_fused;
pub(crate) use function::{by_dtype, differentiable, in_place, values};
pub use kept::Kept;
pub(crate) use lanes::vectorized;
pub(crate) use matmul::matmul;
pub(crate) use matrix::{
    add_by_place, add_rows, select_columns, squared_norm, sum_all_rows, sum_rows,
};
pub(crate) use reader_inputs::{Apart, Sums, subtract_from};
pub(crate) use real::Real;
