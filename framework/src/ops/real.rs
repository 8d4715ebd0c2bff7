//! The numbers that the operations compute in, float32 and float64, and float32's exponential and tanh
//! without branches, which the compiler turns into vector instructions.

use bytemuck::Pod;
use candle_core::cpu::erf::{erf_f32, erf_f64};
use candle_core::{CpuStorage, WithDType};
use num_traits::Float;
use pulp::Arch;

use super::product::Product;

/// What the operations compute in: float32, or float64 to check numbers to the last digit.
pub(crate) trait Real: WithDType + Float + Pod + std::iter::Sum {
    /// eˣ.
    fn exponential(self) -> Self;

    /// tanh x.
    fn hyperbolic_tangent(self) -> Self;

    /// The error function, 2/√π ∫₀ˣ e^(−t²) dt.
    fn error_function(self) -> Self;

    /// Adds a·b to c; every sum runs over a's columns in order.
    fn add_product(product: Product<Self>);

    /// A storage's values, if they are of this type.
    fn values_of(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Real for f32 {
    #[inline(always)]
    fn exponential(self) -> Self {
        exp(self)
    }

    #[inline(always)]
    fn hyperbolic_tangent(self) -> Self {
        tanh(self)
    }

    fn error_function(self) -> Self {
        erf_f32(self)
    }

    fn add_product(product: Product<Self>) {
        Arch::new().dispatch(product);
    }

    fn values_of(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }
}

impl Real for f64 {
    #[inline(always)]
    fn exponential(self) -> Self {
        self.exp()
    }

    fn hyperbolic_tangent(self) -> Self {
        self.tanh()
    }

    fn error_function(self) -> Self {
        erf_f64(self)
    }

    fn add_product(product: Product<Self>) {
        product.add_plainly();
    }

    fn values_of(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F64(values) => Some(values),
            _ => None,
        }
    }
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

/// tanh x within 7 ulp, by the rational approximation of Eigen's `ptanh`; NaN stays NaN.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let x = x.clamp(-7.905_311, 7.905_311);
    let square = x * x;
    let mut p = -2.760_768_5e-16;
    p = p * square + 2.000_188e-13;
    p = p * square - 8.604_672e-11;
    p = p * square + 5.122_297e-8;
    p = p * square + 1.485_722_4e-5;
    p = p * square + 6.372_619e-4;
    p = p * square + 4.893_524_6e-3;
    let mut q = 1.198_258_4e-6;
    q = q * square + 1.185_347_1e-4;
    q = q * square + 2.268_434_6e-3;
    q = q * square + 4.893_525e-3;
    x * p / q
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

        #[test]
        fn tanh_is_within_seven_ulp(x in -12f32..12.0) {
            let exact = f64::from(x).tanh();
            let ulp = f64::from((exact.abs() as f32).next_up()) - f64::from(exact.abs() as f32);
            prop_assert!((f64::from(super::tanh(x)) - exact).abs() <= 7.0 * ulp);
        }
    }

    #[test]
    fn exp_keeps_nan() {
        assert!(super::tanh(f32::NAN).is_nan());
        assert!(super::exp(f32::NAN).is_nan());
    }
}
