//! What an MLP does between reading and writing: GELU for GPT-2 (its tanh form) and GPT-NeoX, SwiGLU for
//! Llama, GEGLU for Gemma.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use super::backward::{Rules, Running};
use super::{Real, by_dtype, composed, differentiable, is_fused, lanes, values};

/// √(2/π) and the cubic term of the tanh approximation.
const SCALE: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

/// An activation, of the last dimension's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU in its tanh form (`gelu_new`), element by element.
    ///
    /// ½x(1 + tanh u) = x·σ(2u), with u = √(2/π)(x + 0.044715 x³).
    GeluTanh,
    /// GELU itself, element by element: x·Φ(x), Φ being the normal distribution.
    Gelu,
    /// x [..., 2·width], the gate before the up projection → silu(gate) ⊙ up [..., width].
    Swiglu,
    /// x [..., 2·width], the gate before the up projection → gelu(gate) ⊙ up, GELU in its tanh form.
    GegluTanh,
}

impl Activation {
    /// Whether it reads a gate before its input.
    pub fn is_gated(self) -> bool {
        matches!(self, Self::Swiglu | Self::GegluTanh)
    }

    /// The differentiable value.
    ///
    /// # Errors
    /// If x is neither float32 nor float64.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        self.apply_with(x, &Running::default())
    }

    /// [`Activation::apply`], whose backward pass goes as `running` says by then.
    pub(crate) fn apply_with(self, x: &Tensor, running: &Running) -> Result<Tensor> {
        let input = x.detach().contiguous()?;
        let output = match is_fused(&input) {
            true => by_dtype!(input, T => self.forward::<T>(&input))?,
            false => self.composed(&input, Rules::default())?,
        };
        let running = running.clone();
        differentiable(x, output, move |gradient| {
            self.pull_back(&input, gradient, running.get().rules)
        })
    }

    fn composed(self, input: &Tensor, rules: Rules) -> Result<Tensor> {
        match self {
            Self::GeluTanh => composed_gelu_tanh(input, rules),
            Self::Gelu => composed_gelu(input, rules),
            Self::Swiglu => composed_swiglu(input, rules),
            Self::GegluTanh => composed_geglu_tanh(input, rules),
        }
    }

    fn forward<T: Real>(self, input: &Tensor) -> Result<Tensor> {
        let input_width = input.dim(D::Minus1)?;
        match self {
            Self::GeluTanh => map_rows::<T>(
                input,
                input_width,
                #[inline(always)]
                |_, y, x| {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = x * gelu_gate(x);
                    }
                },
            ),
            Self::Gelu => map_rows::<T>(
                input,
                input_width,
                #[inline(always)]
                |_, y, x| {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = x * normal_distribution(x);
                    }
                },
            ),
            Self::Swiglu => map_rows::<T>(
                input,
                input_width / 2,
                #[inline(always)]
                |_, y, x| {
                    let (gate, up) = x.split_at(input_width / 2);
                    for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                        *y = gate * lanes::sigmoid(gate) * up;
                    }
                },
            ),
            Self::GegluTanh => map_rows::<T>(
                input,
                input_width / 2,
                #[inline(always)]
                |_, y, x| {
                    let (gate, up) = x.split_at(input_width / 2);
                    for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                        *y = gate * gelu_gate(gate) * up;
                    }
                },
            ),
        }
    }

    /// The gradient at the contiguous input, of that at the output.
    pub(crate) fn pull_back(
        self,
        input: &Tensor,
        gradient: &Tensor,
        rules: Rules,
    ) -> Result<Tensor> {
        let gradient = &match self {
            Self::Swiglu | Self::GegluTanh if rules.activation_factors => (gradient * 0.5)?,
            _ => gradient.clone(),
        };
        if !is_fused(input) {
            return composed::pull_back(input, gradient, |input| self.composed(input, rules));
        }
        by_dtype!(input, T => self.backward::<T>(input, gradient, rules.activation_factors))
    }

    fn backward<T: Real>(
        self,
        input: &Tensor,
        gradient: &Tensor,
        constant: bool,
    ) -> Result<Tensor> {
        let g = values::<T>(gradient)?;
        let (input_width, width) = (input.dim(D::Minus1)?, gradient.dim(D::Minus1)?);
        map_rows::<T>(
            input,
            input_width,
            #[inline(always)]
            |row, y, x| {
                let g = &g[row * width..][..width];
                if lanes::is_zero(g) {
                    return;
                }
                match self {
                    Self::GeluTanh if constant => gelu_backward_of_constant(y, x, g),
                    Self::GeluTanh => gelu_backward(y, x, g),
                    Self::Gelu => exact_gelu_backward(y, x, g, constant),
                    Self::Swiglu => swiglu_backward(y, x, g, constant),
                    Self::GegluTanh => geglu_backward(y, x, g, constant),
                }
            },
        )
    }
}

/// σ(2u).
#[inline(always)]
fn gelu_gate<T: Real>(x: T) -> T {
    lanes::sigmoid(lanes::real::<T>(2.0 * SCALE) * (x + lanes::real::<T>(CUBIC) * x * x * x))
}

/// The slope of x·σ(2u) where σ(2u) is s.
#[inline(always)]
fn gelu_slope<T: Real>(x: T, s: T) -> T {
    let (scale, slope) = (lanes::real::<T>(2.0 * SCALE), lanes::real::<T>(3.0 * CUBIC));
    s + x * s * (T::one() - s) * scale * (T::one() + slope * x * x)
}

#[inline(always)]
fn gelu_backward<T: Real>(y: &mut [T], x: &[T], g: &[T]) {
    for ((y, &x), &g) in y.iter_mut().zip(x).zip(g) {
        *y = g * gelu_slope(x, gelu_gate(x));
    }
}

/// Φ(x).
#[inline(always)]
fn normal_distribution<T: Real>(x: T) -> T {
    let half = lanes::real::<T>(0.5);
    half + half * (x * lanes::real(std::f64::consts::FRAC_1_SQRT_2)).error_function()
}

#[inline(always)]
fn exact_gelu_backward<T: Real>(y: &mut [T], x: &[T], g: &[T], constant: bool) {
    // What the slope of Φ counts.
    let counted = if constant { T::zero() } else { T::one() };
    // 1/√(2π).
    let density =
        lanes::real::<T>(0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2);
    for ((y, &x), &g) in y.iter_mut().zip(x).zip(g) {
        let slope = density * (x * x * lanes::real(-0.5)).exponential();
        *y = g * (normal_distribution(x) + counted * x * slope);
    }
}

#[inline(always)]
fn geglu_backward<T: Real>(y: &mut [T], x: &[T], g: &[T], constant: bool) {
    let width = g.len();
    let (gate, up) = x.split_at(width);
    let (d_gate, d_up) = y.split_at_mut(width);
    for index in 0..width {
        let s = gelu_gate(gate[index]);
        d_up[index] = g[index] * gate[index] * s;
        let slope = if constant { s } else { gelu_slope(gate[index], s) };
        d_gate[index] = g[index] * up[index] * slope;
    }
}

/// σ(2u) is what x is multiplied with, ½ at 0 too.
#[inline(always)]
fn gelu_backward_of_constant<T: Real>(y: &mut [T], x: &[T], g: &[T]) {
    for ((y, &x), &g) in y.iter_mut().zip(x).zip(g) {
        *y = g * gelu_gate(x);
    }
}

#[inline(always)]
fn swiglu_backward<T: Real>(y: &mut [T], x: &[T], g: &[T], constant: bool) {
    // What the slope of silu(x)/x counts.
    let slope = if constant { T::zero() } else { T::one() };
    let width = g.len();
    let (gate, up) = x.split_at(width);
    let (d_gate, d_up) = y.split_at_mut(width);
    for index in 0..width {
        let s = lanes::sigmoid(gate[index]);
        d_up[index] = g[index] * gate[index] * s;
        d_gate[index] =
            g[index] * up[index] * s * (T::one() + slope * gate[index] * (T::one() - s));
    }
}

/// `row(index, y, x)` for each last-dimension row of `input`, y being `width` long.
fn map_rows<T: Real>(
    input: &Tensor,
    width: usize,
    row: impl Fn(usize, &mut [T], &[T]) + Sync,
) -> Result<Tensor> {
    let mut shape = input.dims().to_vec();
    let rank = shape.len();
    let input_width = std::mem::replace(&mut shape[rank - 1], width);
    let x = values::<T>(input)?;
    let mut output = vec![T::zero(); x.len() / input_width * width];
    (output.par_chunks_mut(width).zip(x.par_chunks(input_width)).enumerate()).for_each(
        |(index, (y, x))| {
            lanes::vectorized(
                #[inline(always)]
                || row(index, y, x),
            );
        },
    );
    Tensor::from_vec(output, shape, input.device())
}

fn composed_sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// x·σ(2u), with u = √(2/π)(x + 0.044715 x³).
fn composed_gelu_tanh(x: &Tensor, rules: Rules) -> Result<Tensor> {
    let u = ((x + (x * x.sqr()?)?.affine(CUBIC, 0.0)?)? * SCALE)?;
    x * composed::held(composed_sigmoid(&(u * 2.0)?)?, rules.activation_factors)
}

/// x·Φ(x), Φ being the normal distribution.
fn composed_gelu(x: &Tensor, rules: Rules) -> Result<Tensor> {
    let phi = ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?.affine(0.5, 0.0)?;
    x * composed::held(phi, rules.activation_factors)
}

/// The gate and the up projection, side by side in x.
fn gate_and_up(x: &Tensor) -> Result<[Tensor; 2]> {
    let width = x.dim(D::Minus1)? / 2;
    let half = |start| x.narrow(D::Minus1, start, width)?.contiguous();
    Ok([half(0)?, half(width)?])
}

/// silu(gate) ⊙ up, of both side by side.
fn composed_swiglu(x: &Tensor, rules: Rules) -> Result<Tensor> {
    let [gate, up] = gate_and_up(x)?;
    (&gate * composed::held(composed_sigmoid(&gate)?, rules.activation_factors))? * up
}

/// gelu(gate) ⊙ up, with GELU in its tanh form, of both side by side.
fn composed_geglu_tanh(x: &Tensor, rules: Rules) -> Result<Tensor> {
    let [gate, up] = gate_and_up(x)?;
    composed_gelu_tanh(&gate, rules)? * up
}
