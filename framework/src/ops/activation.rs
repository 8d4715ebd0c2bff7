//! What an MLP does between reading and writing: GELU (tanh) for GPT-2, SwiGLU for Llama.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use super::{Real, by_dtype, differentiable, lanes, values};

/// √(2/π) and the cubic term of the tanh approximation.
const SCALE: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

/// GELU in its tanh form (`gelu_new`), element by element; x of any shape.
///
/// ½x(1 + tanh u) = x·σ(2u), with u = √(2/π)(x + 0.044715 x³).
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    by_dtype!(x, T => gelu_tanh_in::<T>(x))
}

fn gelu_tanh_in<T: Real>(x: &Tensor) -> Result<Tensor> {
    let input = x.detach().contiguous()?;
    let width = input.dim(D::Minus1)?;
    let (scale, cubic) = (lanes::real::<T>(2.0 * SCALE), lanes::real::<T>(CUBIC));
    let slope_cubic = lanes::real::<T>(3.0 * CUBIC);
    let gate = move |x: T| lanes::sigmoid(scale * (x + cubic * x * x * x));
    let output = map_rows::<T>(&input, width, |_, y, x| {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * gate(x);
        }
    })?;
    differentiable(x, output, move |gradient| {
        let g = values::<T>(gradient)?;
        map_rows::<T>(&input, width, |row, y, x| {
            let g = &g[row * width..][..width];
            if lanes::is_zero(g) {
                return;
            }
            for ((y, &x), &g) in y.iter_mut().zip(x).zip(g) {
                let s = gate(x);
                let inner = scale * (T::one() + slope_cubic * x * x);
                *y = g * (s + x * s * (T::one() - s) * inner);
            }
        })
    })
}

/// SwiGLU: x [..., 2·width], the gate before the up projection → silu(gate) ⊙ up [..., width].
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    by_dtype!(x, T => swiglu_in::<T>(x))
}

fn swiglu_in<T: Real>(x: &Tensor) -> Result<Tensor> {
    let input = x.detach().contiguous()?;
    let width = input.dim(D::Minus1)? / 2;
    let output = map_rows::<T>(&input, width, |_, y, x| {
        let (gate, up) = x.split_at(width);
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate * lanes::sigmoid(gate) * up;
        }
    })?;
    differentiable(x, output, move |gradient| {
        let g = values::<T>(gradient)?;
        map_rows::<T>(&input, 2 * width, |row, y, x| {
            let (gate, up) = x.split_at(width);
            let (d_gate, d_up) = y.split_at_mut(width);
            let g = &g[row * width..][..width];
            if lanes::is_zero(g) {
                return;
            }
            for index in 0..width {
                let s = lanes::sigmoid(gate[index]);
                d_up[index] = g[index] * gate[index] * s;
                d_gate[index] =
                    g[index] * up[index] * s * (T::one() + gate[index] * (T::one() - s));
            }
        })
    })
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
    (output.par_chunks_mut(width).zip(x.par_chunks(input_width)).enumerate())
        .for_each(|(index, (y, x))| row(index, y, x));
    Tensor::from_vec(output, shape, input.device())
}
