//! A few positions of one head at a time: their products with all positions before, and the softmax over
//! these. A tile stays in the processor's cache.

use std::ops::Range;

use crate::ops::product::Product;
use crate::ops::{Real, lanes};

/// Vectors of one sequence the other way round, [d_head, seq], so that one vector's products with all
/// of them are sums of whole rows.
pub(super) struct Transposed<T> {
    /// [d_head][stride], zero behind the sequence's end.
    pub(super) columns: Vec<T>,
    pub(super) stride: usize,
}

impl<T: Real> Transposed<T> {
    /// Of vectors [seq, d_head].
    #[inline(always)]
    pub(super) fn of(vectors: &[T], d_head: usize) -> Self {
        let stride = (vectors.len() / d_head).next_multiple_of(lanes::LANES);
        let mut columns = vec![T::zero(); d_head * stride];
        for (position, vector) in vectors.chunks(d_head).enumerate() {
            for (column, value) in vector.iter().enumerate() {
                columns[column * stride + position] = *value;
            }
        }
        Self { columns, stride }
    }
}

/// Positions that are worked on together.
const TILE: usize = 32;

/// What a few positions have to do with each one up to the last of them: scores, probabilities or their
/// gradients.
pub(super) struct Tile<T> {
    /// [rows, width], zero in the columns behind a row's own position.
    pub(super) values: Vec<T>,
    /// The positions of the rows.
    positions: Range<usize>,
    /// The positions up to the last row's, and a few more, so that rows are whole vectors.
    width: usize,
}

impl<T: Real> Tile<T> {
    /// The products of the positions' `vectors`, rows `stride` apart, with those of all others.
    #[inline(always)]
    pub(super) fn products(
        positions: Range<usize>,
        vectors: &[T],
        stride: usize,
        others: &Transposed<T>,
    ) -> Self {
        let width = positions.end.next_multiple_of(lanes::LANES);
        let mut values = vec![T::zero(); positions.len() * width];
        T::add_product(Product {
            c: &mut values,
            c_stride: width,
            a: vectors,
            a_stride: stride,
            a_is_transposed: false,
            b: &others.columns,
            b_stride: others.stride,
            rows: positions.len(),
            columns: others.columns.len() / others.stride,
            width,
        });
        Self { values, positions, width }
    }

    /// Softmax of each row over the positions up to its own, or the last `window` of them.
    #[inline(always)]
    pub(super) fn softmax(&mut self, window: Option<usize>) {
        for (row, position) in self.values.chunks_mut(self.width).zip(self.positions.clone()) {
            row[position + 1..].fill(T::neg_infinity());
            if let Some(window) = window {
                row[..(position + 1).saturating_sub(window)].fill(T::neg_infinity());
            }
            let largest = lanes::max(row);
            row.iter_mut().for_each(|score| *score = lanes::exp_or_zero(*score - largest));
            let factor = T::one() / lanes::sum(row, |p| p);
            row.iter_mut().for_each(|p| *p *= factor);
        }
    }

    /// From the gradients at the probabilities to those at the scores:
    /// ∂L/∂scoreⱼ = pⱼ (∂L/∂pⱼ − Σᵢ pᵢ ∂L/∂pᵢ).
    #[inline(always)]
    pub(super) fn back_through_softmax(&mut self, probabilities: &Self) {
        let rows = self.values.chunks_mut(self.width);
        for (row, p) in rows.zip(probabilities.values.chunks(self.width)) {
            let mean = lanes::dot(p, row);
            row.iter_mut().zip(p).for_each(|(d_score, p)| *d_score = *p * (*d_score - mean));
        }
    }

    /// sums [rows, d] += these · vectors [positions, d].
    #[inline(always)]
    pub(super) fn add_times(&self, vectors: &[T], d: usize, sums: &mut [T]) {
        T::add_product(Product {
            c: sums,
            c_stride: d,
            a: &self.values,
            a_stride: self.width,
            a_is_transposed: false,
            b: vectors,
            b_stride: d,
            rows: self.positions.len(),
            columns: self.positions.end,
            width: d,
        });
    }

    /// sums [positions, d] += theseᵀ · vectors [rows, d], whose rows are `stride` apart, from position
    /// `from` on.
    #[inline(always)]
    pub(super) fn add_transposed_times(
        &self,
        vectors: &[T],
        stride: usize,
        d: usize,
        from: usize,
        sums: &mut [T],
    ) {
        T::add_product(Product {
            c: &mut sums[from * d..],
            c_stride: d,
            a: &self.values[from..],
            a_stride: self.width,
            a_is_transposed: true,
            b: vectors,
            b_stride: stride,
            rows: self.positions.end - from,
            columns: self.positions.len(),
            width: d,
        });
    }
}

/// The positions from `from` on, a few at a time.
#[inline(always)]
pub(super) fn tiles(from: usize, end: usize) -> impl Iterator<Item = Range<usize>> {
    (from..end).step_by(TILE).map(move |start| start..end.min(start + TILE))
}
