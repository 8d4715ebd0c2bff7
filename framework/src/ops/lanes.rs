//! Loops over a row in a shape that the compiler turns into vector instructions: sixteen partial
//! sums, added up in a fixed order, and for float32 an exponential without branches.

use num_traits::Float;
use pulp::Arch;

use super::Real;

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

/// The lanes made one, halves with halves.
#[inline(always)]
fn join<T: Real>(mut lanes: [T; LANES], f: impl Fn(T, T) -> T) -> T {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = f(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

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
    join(lanes, |a, b| a + b) + tail
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
    Float::max(join(lanes, |a, b| if b > a { b } else { a }), tail)
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
        fn sums_agree_with_float64(values in prop::collection::vec(-1f32..1.0, 0..200)) {
            let exact: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            prop_assert!((f64::from(super::dot(&values, &values)) - exact).abs() <= 1e-4);
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(super::max(&values), largest);
        }
    }

    #[test]
    fn exp_or_zero_keeps_nan() {
        assert!(super::exp_or_zero(f32::NAN).is_nan());
    }
}
