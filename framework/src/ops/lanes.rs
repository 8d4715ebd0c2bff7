//! Loops over a row in a shape that the compiler turns into vector instructions: sixteen partial
//! sums, added up in a fixed order, and for float32 an exponential without branches.

use candle_core::WithDType;
use num_traits::Float;
use pulp::{Arch, Simd, WithSimd};

/// What the operations compute in: float32, or float64 to check numbers to the last digit.
pub(crate) trait Real: WithDType + Float + std::iter::Sum {
    /// eˣ.
    fn exponential(self) -> Self;

    /// y += Σⱼ factors[j] · rows[j], in that order, where row j begins at `j · stride` and is as long
    /// as y, or longer.
    fn add_weighted(y: &mut [Self], factors: &[Self], rows: &[Self], stride: usize);
}

impl Real for f32 {
    #[inline(always)]
    fn exponential(self) -> Self {
        exp(self)
    }

    fn add_weighted(y: &mut [Self], factors: &[Self], rows: &[Self], stride: usize) {
        Arch::new().dispatch(AddWeighted { y, factors, rows, stride });
    }
}

impl Real for f64 {
    #[inline(always)]
    fn exponential(self) -> Self {
        self.exp()
    }

    fn add_weighted(y: &mut [Self], factors: &[Self], rows: &[Self], stride: usize) {
        for (factor, row) in factors.iter().zip(rows.chunks(stride)) {
            add_scaled(y, *factor, row);
        }
    }
}

/// The arguments of [`Real::add_weighted`], for the widest vector instructions that the processor has.
/// Products are not fused with sums, so the bits are the same with any.
struct AddWeighted<'a> {
    y: &'a mut [f32],
    factors: &'a [f32],
    rows: &'a [f32],
    stride: usize,
}

impl WithSimd for AddWeighted<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.y.len();
        let (vectors, tail) = S::as_mut_simd_f32s(self.y);
        let rows = || self.factors.iter().zip(self.rows.chunks(self.stride));
        let (fours, ones) = vectors.as_chunks_mut::<4>();
        let mut start = 0;
        // Sums stay in registers while the rows go by.
        for four in fours {
            let mut sums = *four;
            for (factor, row) in rows() {
                let factor = simd.splat_f32s(*factor);
                if let Some(row) = S::as_simd_f32s(&row[start..width]).0.first_chunk::<4>() {
                    for (sum, row) in sums.iter_mut().zip(row) {
                        *sum = simd.add_f32s(*sum, simd.mul_f32s(factor, *row));
                    }
                }
            }
            *four = sums;
            start += 4 * S::F32_LANES;
        }
        for one in ones {
            let mut sum = *one;
            for (factor, row) in rows() {
                let factor = simd.splat_f32s(*factor);
                if let Some(row) = S::as_simd_f32s(&row[start..width]).0.first() {
                    sum = simd.add_f32s(sum, simd.mul_f32s(factor, *row));
                }
            }
            *one = sum;
            start += S::F32_LANES;
        }
        for (factor, row) in rows() {
            add_scaled(tail, *factor, &row[start..width]);
        }
    }
}

/// Runs `f`, which must be inlined, compiled for the widest vector instructions that the processor
/// has. Sums keep their order and no product is fused with a sum, so the bits are the same as without.
#[inline(always)]
pub(crate) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(f)
}

/// A constant in the type at hand.
#[inline(always)]
pub(super) fn real<T: Real>(value: f64) -> T {
    T::from_f64(value)
}

/// Values a vector instruction works on, at most.
pub(super) const LANES: usize = 16;

/// Σ f(aᵢ, bᵢ).
#[inline(always)]
pub(super) fn sum2<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::zero(); LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: T =
        (a_blocks.remainder().iter().zip(b_blocks.remainder())).map(|(&a, &b)| f(a, b)).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for lane in 0..LANES {
            lanes[lane] += f(a[lane], b[lane]);
        }
    }
    lanes.into_iter().sum::<T>() + tail
}

/// Σ aᵢ bᵢ.
#[inline(always)]
pub(super) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    sum2(a, b, |a, b| a * b)
}

/// Σ f(aᵢ).
#[inline(always)]
pub(super) fn sum<T: Real>(a: &[T], f: impl Fn(T) -> T) -> T {
    sum2(a, a, |a, _| f(a))
}

/// y += factor · x.
#[inline(always)]
pub(super) fn add_scaled<T: Real>(y: &mut [T], factor: T, x: &[T]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * *x;
    }
}

/// Whether every value is zero: of a gradient, so that there is nothing to pull back.
#[inline(always)]
pub(super) fn is_zero<T: Real>(a: &[T]) -> bool {
    a.iter().all(|value| *value == T::zero())
}

/// The largest value.
#[inline(always)]
pub(super) fn max<T: Real>(a: &[T]) -> T {
    let mut lanes = [T::neg_infinity(); LANES];
    let blocks = a.chunks_exact(LANES);
    let tail = blocks.remainder().iter().copied().fold(T::neg_infinity(), Float::max);
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] = if block[lane] > lanes[lane] { block[lane] } else { lanes[lane] };
        }
    }
    lanes.into_iter().fold(tail, Float::max)
}

/// eˣ within 2 ulp for x in [−87, 88], and the value at the nearer end outside; NaN stays NaN.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, eʳ by the minimax polynomial of Cephes' `expf`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    let exponent = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    p * f32::from_bits((exponent.wrapping_add(127) << 23) as u32)
}

/// eˣ, or zero where products with it might be subnormal numbers: sums don't show the difference, but
/// processors take a hundred times longer over those.
#[inline(always)]
pub(super) fn exp_or_zero<T: Real>(x: T) -> T {
    let exp = x.exponential();
    if exp < T::min_positive_value() * real(1e8) { T::zero() } else { exp }
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(super) fn sigmoid<T: Real>(x: T) -> T {
    T::one() / (T::one() + (-x).exponential())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exp_is_within_two_ulp(x in -87f32..88.0) {
            let exact = f64::from(x).exp();
            let ulp = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
            prop_assert!((f64::from(super::exp(x)) - exact).abs() <= 2.0 * ulp);
        }

        /// Whatever vectors the processor has, the bits are those of the plain loop.
        #[test]
        fn weighted_sums_are_the_plain_loops(
            width in 0usize..150, gap in 0usize..5, count in 0usize..9, seed in 0f32..9.0,
        ) {
            let stride = width + gap + 1;
            let noise = |i: usize| (i as f32 * 12.9898 + seed).sin();
            let factors: Vec<f32> = (0..count).map(noise).collect();
            let rows: Vec<f32> = (0..count * stride).map(|i| noise(i + 1000)).collect();
            let mut y: Vec<f32> = (0..width).map(|i| noise(i + 5000)).collect();
            let mut expected = y.clone();
            for (factor, row) in factors.iter().zip(rows.chunks(stride)) {
                super::add_scaled(&mut expected, *factor, row);
            }
            <f32 as super::Real>::add_weighted(&mut y, &factors, &rows, stride);
            prop_assert_eq!(y, expected);
        }

        #[test]
        fn sums_agree_with_float64(values in prop::collection::vec(-1f32..1.0, 0..200)) {
            let exact: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            prop_assert!((f64::from(super::dot(&values, &values)) - exact).abs() <= 1e-4);
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(super::max(&values), largest);
        }
    }

    #[test]
    fn exp_keeps_nan() {
        assert!(super::exp(f32::NAN).is_nan());
        assert!(super::exp_or_zero(f32::NAN).is_nan());
    }
}
