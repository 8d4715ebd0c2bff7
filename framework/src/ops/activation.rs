//! What an MLP does between reading and writing: GELU (tanh) for GPT-2, SwiGLU for Llama.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{contiguous_f32, differentiable, lanes};

/// √(2/π) and the cubic term of the tanh approximation.
const SCALE: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// GELU in its tanh form (`gelu_new`), element by element; x of any shape.
///
/// ½x(1 + tanh u) = x·σ(2u), with u = √(2/π)(x + 0.044715 x³).
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    let input = x.detach().contiguous()?;
    let gate = |x: f32| lanes::sigmoid(2.0 * SCALE * (x + CUBIC * x * x * x));
    let output = map_rows(&input, input.dim(candle_core::D::Minus1)?, |y, x| {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * gate(x);
        }
    })?;
    differentiable(x, output, move |gradient| {
        let width = input.dim(candle_core::D::Minus1)?;
        let g = contiguous_f32(gradient)?;
        map_rows_indexed(&input, width, |row, y, x| {
            for ((y, &x), g) in y.iter_mut().zip(x).zip(&g[row * width..]) {
                let s = gate(x);
                let slope = s + x * s * (1.0 - s) * 2.0 * SCALE * (1.0 + 3.0 * CUBIC * x * x);
                *y = g * slope;
            }
        })
    })
}

/// SwiGLU: x [..., 2·width], the gate before the up projection → silu(gate) ⊙ up [..., width].
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    let input = x.detach().contiguous()?;
    let width = input.dim(candle_core::D::Minus1)? / 2;
    let output = map_rows(&input, width, |y, x| {
        let (gate, up) = x.split_at(width);
        for ((y, &gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate * lanes::sigmoid(gate) * up;
        }
    })?;
    differentiable(x, output, move |gradient| {
        let g = contiguous_f32(gradient)?;
        map_rows_indexed(&input, 2 * width, |row, y, x| {
            let (gate, up) = x.split_at(width);
            let (d_gate, d_up) = y.split_at_mut(width);
            let g = &g[row * width..][..width];
            for index in 0..width {
                let s = lanes::sigmoid(gate[index]);
                d_up[index] = g[index] * gate[index] * s;
                d_gate[index] = g[index] * up[index] * s * (1.0 + gate[index] * (1.0 - s));
            }
        })
    })
}

/// `row(y, x)` for each last-dimension row of `input`, y being `width` long.
fn map_rows(
    input: &Tensor,
    width: usize,
    row: impl Fn(&mut [f32], &[f32]) + Sync,
) -> Result<Tensor> {
    map_rows_indexed(input, width, |_, y, x| row(y, x))
}

fn map_rows_indexed(
    input: &Tensor,
    width: usize,
    row: impl Fn(usize, &mut [f32], &[f32]) + Sync,
) -> Result<Tensor> {
    let mut shape = input.dims().to_vec();
    let rank = shape.len();
    let input_width = std::mem::replace(&mut shape[rank - 1], width);
    let x = contiguous_f32(input)?;
    let mut output = vec![0f32; x.len() / input_width * width];
    (output.par_chunks_mut(width).zip(x.par_chunks(input_width)).enumerate())
        .for_each(|(index, (y, x))| row(index, y, x));
    Tensor::from_vec(output, shape, input.device())
}
