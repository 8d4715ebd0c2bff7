//! A product of matrices so small that handing it to candle would cost more than it does: one head's
//! queries with its keys, its probabilities with its values, its share of a projection.

use pulp::{Simd, WithSimd};

/// Three matrices, of which c [rows, width] is to get a [rows, columns] times b [columns, width].
pub(crate) struct Product<'a, T> {
    pub(super) c: &'a mut [T],
    /// From one row of c to the next.
    pub(super) c_stride: usize,
    pub(super) a: &'a [T],
    /// From one row of a to the next; of its transpose where that is what is given.
    pub(super) a_stride: usize,
    pub(super) a_is_transposed: bool,
    pub(super) b: &'a [T],
    pub(super) b_stride: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) width: usize,
}

impl Product<'_, f64> {
    /// As it is defined.
    pub(super) fn add_plainly(self) {
        for row in 0..self.rows {
            let c = &mut self.c[row * self.c_stride..][..self.width];
            for column in 0..self.columns {
                let factor = match self.a_is_transposed {
                    true => self.a[column * self.a_stride + row],
                    false => self.a[row * self.a_stride + column],
                };
                for (c, b) in c.iter_mut().zip(&self.b[column * self.b_stride..]) {
                    *c += factor * *b;
                }
            }
        }
    }
}

/// With the widest vector instructions that the processor has.
impl WithSimd for Product<'_, f32> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut row = 0;
        while row < self.rows {
            row += match self.rows - row {
                4.. => self.add_rows::<S, 4>(simd, row),
                2.. => self.add_rows::<S, 2>(simd, row),
                _ => self.add_rows::<S, 1>(simd, row),
            };
        }
    }
}

impl Product<'_, f32> {
    #[inline(always)]
    fn add_rows<S: Simd, const ROWS: usize>(&mut self, simd: S, row: usize) -> usize {
        let mut start = 0;
        while start < self.width {
            start += match (self.width - start) / S::F32_LANES {
                4.. => self.add_block::<S, ROWS, 4, true>(simd, row, start),
                2.. => self.add_block::<S, ROWS, 2, true>(simd, row, start),
                1 => self.add_block::<S, ROWS, 1, true>(simd, row, start),
                _ => self.add_block::<S, ROWS, 1, false>(simd, row, start),
            };
        }
        ROWS
    }

    /// So many rows and vectors of c, whose sums stay in registers while a's columns go by. A vector
    /// that isn't `WHOLE` ends where the row does.
    #[inline(always)]
    fn add_block<S: Simd, const ROWS: usize, const VECTORS: usize, const WHOLE: bool>(
        &mut self,
        simd: S,
        row: usize,
        start: usize,
    ) -> usize {
        let width = (VECTORS * S::F32_LANES).min(self.width - start);
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        for (r, sums) in sums.iter_mut().enumerate() {
            let c = &self.c[(row + r) * self.c_stride + start..][..width];
            *sums = load::<S, VECTORS, WHOLE>(simd, c);
        }
        let b = self.b.chunks(self.b_stride).take(self.columns);
        if self.a_is_transposed {
            for (a, b) in self.a.chunks(self.a_stride).zip(b) {
                if let Some(factors) = a[row..].first_chunk() {
                    add(
                        simd,
                        &mut sums,
                        factors,
                        load::<S, VECTORS, WHOLE>(simd, &b[start..start + width]),
                    );
                }
            }
        } else {
            let mut a = [&[][..]; ROWS];
            for (r, a) in a.iter_mut().enumerate() {
                *a = &self.a[(row + r) * self.a_stride..][..self.columns];
            }
            for (column, b) in b.enumerate() {
                let mut factors = [0.0; ROWS];
                factors.iter_mut().zip(a).for_each(|(factor, a)| *factor = a[column]);
                add(
                    simd,
                    &mut sums,
                    &factors,
                    load::<S, VECTORS, WHOLE>(simd, &b[start..start + width]),
                );
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            let c = &mut self.c[(row + r) * self.c_stride + start..][..width];
            for (c, sum) in c.chunks_mut(S::F32_LANES).zip(sums) {
                simd.partial_store_f32s(c, sum);
            }
        }
        width
    }
}

/// The vectors that a slice consists of, or the one that it is the beginning of.
#[inline(always)]
fn load<S: Simd, const VECTORS: usize, const WHOLE: bool>(
    simd: S,
    values: &[f32],
) -> [S::f32s; VECTORS] {
    match S::as_simd_f32s(values).0.first_chunk::<VECTORS>() {
        Some(vectors) if WHOLE => *vectors,
        _ => [simd.partial_load_f32s(values); VECTORS],
    }
}

/// Adds each row's factor times the vectors to its sums.
#[inline(always)]
fn add<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    sums: &mut [[S::f32s; VECTORS]; ROWS],
    factors: &[f32; ROWS],
    vectors: [S::f32s; VECTORS],
) {
    for row in 0..ROWS {
        let factor = simd.splat_f32s(factors[row]);
        for vector in 0..VECTORS {
            sums[row][vector] = simd.mul_add_e_f32s(factor, vectors[vector], sums[row][vector]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Real;
    use super::Product;

    proptest! {
        /// Odd sizes, strided and transposed, against the same sums in float64.
        #[test]
        fn products_agree_with_float64(
            rows in 0usize..10, columns in 0usize..9, width in 1usize..150, gap in 0usize..5,
            a_is_transposed in any::<bool>(), seed in 0f64..9.0,
        ) {
            let noise = |count: usize, at: f64| -> Vec<f64> {
                (0..count).map(|i| f64::from(((i as f64 + at) * 12.9898 + seed).sin() as f32)).collect()
            };
            let stride = width + gap;
            let (a, b) = (noise(rows * columns, 0.0), noise(columns * stride, 1000.0));
            let c = noise(rows * stride, 5000.0);
            let a_stride = if a_is_transposed { rows } else { columns };
            let (mut expected, single) = (c.clone(), |values: &[f64]| {
                values.iter().map(|&v| v as f32).collect::<Vec<f32>>()
            });
            let (single_a, single_b, mut c) = (single(&a), single(&b), single(&c));
            let (c_stride, b_stride) = (stride, stride);
            let (a, b) = (&a[..], &b[..]);
            f64::add_product(Product {
                c: &mut expected, c_stride, a, a_stride, a_is_transposed, b, b_stride, rows, columns, width,
            });
            let (a, b) = (&single_a[..], &single_b[..]);
            f32::add_product(Product {
                c: &mut c, c_stride, a, a_stride, a_is_transposed, b, b_stride, rows, columns, width,
            });
            for (found, expected) in c.iter().zip(&expected) {
                prop_assert!((f64::from(*found) - expected).abs() <= 1e-5, "{} for {}", found, expected);
            }
        }
    }
}
