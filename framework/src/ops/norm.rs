//! Layer norm and RMS norm over rows, and their pull-back.
//!
//! y = x̂ ⊙ γ (+ β), with x̂ = (x − mean x) / √(var x + ε) for layer norm and x̂ = x / √(mean x² + ε)
//! for RMS norm; an offset may be added to γ. With s the factor 1/√… and v = γ ⊙ g, the pull-back of g is
//! s (v − mean v − x̂ mean(v ⊙ x̂)), without the `mean v` for RMS norm; with s taken for a constant
//! ([`Rules::norm_scales`]) it is s (v − mean v).

use candle_core::{D, Result, Tensor, WithDType};
use rayon::prelude::*;

use super::backward::Rules;
use super::blocks::{is_small, multiply_blocks_then};
use super::{Real, by_dtype, composed, is_fused, lanes, multiply_blocks_into, values};
use crate::weights::parameters::Param;

/// A normalisation with its parameters, each [1, d_model].
#[derive(Clone, Debug)]
pub struct Norm {
    /// γ.
    pub weight: Param,
    /// β of a layer norm; an RMS norm has none.
    pub bias: Option<Param>,
    pub epsilon: f64,
    /// What is added to γ: 1 in Gemma, whose files have γ − 1.
    pub offset: f64,
}

/// The gradient [1, width] of a norm's weight.
#[derive(Clone, Debug)]
pub struct NormGradient {
    pub weight: Param,
    pub gradient: Tensor,
}

/// mean and 1/√(variance + ε) of a row; an RMS norm's mean is 0.
#[inline(always)]
fn statistics<T: Real>(x: &[T], centred: bool, epsilon: f64) -> (T, T) {
    let d = lanes::real::<T>(x.len() as f64);
    let mean = if centred { lanes::sum(x, |x| x) / d } else { T::zero() };
    let variance = lanes::sum(x, |x| (x - mean) * (x - mean)) / d;
    (mean, lanes::real(1.0 / (WithDType::to_f64(variance) + epsilon).sqrt()))
}

/// A normalisation of single rows, with γ and its offset, and β of a layer norm.
pub(super) struct Row<T> {
    gain: Vec<T>,
    bias: Option<Vec<T>>,
    epsilon: f64,
}

impl<T: Real> Row<T> {
    /// Puts y in the place of x.
    pub(super) fn forward(&self, x: &mut [T]) {
        lanes::vectorized(
            #[inline(always)]
            || {
                let (mean, scale) = statistics(x, self.bias.is_some(), self.epsilon);
                for (x, gain) in x.iter_mut().zip(&self.gain) {
                    *x = (*x - mean) * scale * *gain;
                }
                if let Some(bias) = &self.bias {
                    lanes::add_scaled(x, T::one(), bias);
                }
            },
        );
    }
}

impl Norm {
    fn centred(&self) -> bool {
        self.bias.is_some()
    }

    /// x [rows, d_model] → y [rows, d_model].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !is_fused(x) {
            return self.composed(x, Rules::default());
        }
        by_dtype!(x, T => self.forward_in::<T>(x))
    }

    fn composed(&self, x: &Tensor, rules: Rules) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(|bias| &bias.tensor);
        composed(x, &self.gain()?, bias, self.epsilon, rules)
    }

    /// What normalised rows are multiplied with [1, d_model]: γ with the offset.
    pub(crate) fn gain(&self) -> Result<Tensor> {
        match self.offset == 0.0 {
            true => Ok(self.weight.tensor.clone()),
            false => self.weight.tensor.affine(1.0, self.offset),
        }
    }

    /// The factor 1/√(mean x² + ε) of each row of x [rows, d_model], [rows, 1], of an RMS norm.
    pub(crate) fn scales(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, d) = x.dims2()?;
        if !is_fused(x) {
            return (x.sqr()?.mean_keepdim(1)? + self.epsilon)?.sqrt()?.recip();
        }
        by_dtype!(x, T => {
            let x = x.contiguous()?;
            let statistics = self.statistics(&values::<T>(&x)?, d);
            let scales: Vec<T> = statistics.into_iter().map(|(_, scale)| scale).collect();
            Tensor::from_vec(scales, (rows, 1), self.weight.tensor.device())
        })
    }

    /// The gradient of γ, as [`Norm::parameter_gradients`] forms it.
    pub(crate) fn weight_gradient(&self, x: &Tensor, gradient: &Tensor) -> Result<NormGradient> {
        let (gradient, _) = self.parameter_gradients(x, gradient)?;
        Ok(NormGradient { weight: self.weight.clone(), gradient })
    }

    fn forward_in<T: Real>(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, d) = x.dims2()?;
        let x = x.contiguous()?;
        let x = values::<T>(&x)?;
        let row = self.row::<T>()?;
        let mut y = vec![T::zero(); rows * d];
        y.par_chunks_mut(d).zip(x.par_chunks(d)).for_each(|(y, x)| {
            y.copy_from_slice(x);
            row.forward(y);
        });
        Tensor::from_vec(y, (rows, d), self.weight.tensor.device())
    }

    /// The norm of single rows, on the CPU.
    pub(super) fn row<T: Real>(&self) -> Result<Row<T>> {
        let of = |tensor: &Tensor| Ok::<_, candle_core::Error>(values::<T>(tensor)?.to_vec());
        let bias = self.bias.as_ref().map(|bias| of(&bias.tensor)).transpose()?;
        Ok(Row { gain: of(&self.gain()?)?, bias, epsilon: self.epsilon })
    }

    /// Pulls gradients at y back to x: x [rows, d_model], gradients [n·rows, d_model] where row i
    /// belongs to row i mod rows of x.
    pub fn pull_back(&self, x: &Tensor, gradients: &Tensor, rules: Rules) -> Result<Tensor> {
        if !is_fused(x) {
            let x = x.repeat((gradients.dim(0)? / x.dim(0)?.max(1), 1))?;
            return composed::pull_back(&x, gradients, |x| self.composed(x, rules));
        }
        by_dtype!(x, T => self.pull_back_in::<T>(x, gradients, rules))
    }

    fn pull_back_in<T: Real>(
        &self,
        x: &Tensor,
        gradients: &Tensor,
        rules: Rules,
    ) -> Result<Tensor> {
        let (rows, d) = x.dims2()?;
        let (x, gradients) = (x.contiguous()?, gradients.contiguous()?);
        let shape = gradients.shape().clone();
        let (x, g) = (values::<T>(&x)?, values::<T>(&gradients)?);
        let gain = self.gain()?;
        let weight = values::<T>(&gain)?;
        let statistics = self.statistics(&x, d);
        let mut out = vec![T::zero(); g.len()];
        let rows_of = out.par_chunks_mut(d).zip(g.par_chunks(d)).enumerate();
        rows_of.for_each(|(index, (out, g))| {
            out.copy_from_slice(g);
            let x = &x[index % rows * d..][..d];
            self.pull_back_row(out, x, &weight, statistics[index % rows], rules);
        });
        Tensor::from_vec(out, shape, gradients.device())
    }

    /// From the gradient at y, in `row`, to that at x.
    fn pull_back_row<T: Real>(
        &self,
        row: &mut [T],
        x: &[T],
        weight: &[T],
        (mean, scale): (T, T),
        rules: Rules,
    ) {
        lanes::vectorized(
            #[inline(always)]
            || {
                let width = lanes::real::<T>(x.len() as f64);
                for (v, weight) in row.iter_mut().zip(weight) {
                    *v *= *weight;
                }
                let along = match rules.norm_scales {
                    true => T::zero(),
                    false => lanes::sum2(row, x, |v, x| v * (x - mean)) * scale / width,
                };
                let centre =
                    if self.centred() { lanes::sum(row, |v| v) / width } else { T::zero() };
                for (v, x) in row.iter_mut().zip(x) {
                    *v = scale * (*v - centre - (*x - mean) * scale * along);
                }
            },
        );
    }

    /// Pulls back to x [rows, d_model] what values [rows, blocks × width] times weight [blocks × width,
    /// d_model] amount to at y, block by block, and puts it in a place [blocks, rows, d_model].
    pub(crate) fn pull_back_blocks_into(
        &self,
        x: &Tensor,
        values: &Tensor,
        weight: &Tensor,
        place: &Tensor,
        rules: Rules,
    ) -> Result<()> {
        if is_small(x, weight.dim(0)? / place.dim(0)?) {
            return by_dtype!(x, T => self.pull_back_small::<T>(x, values, weight, place, rules));
        }
        multiply_blocks_into(values, weight, place)?;
        let pulled = self.pull_back(x, &place.reshape(((), x.dim(1)?))?, rules)?;
        place.slice_set(&pulled.reshape(place.shape())?, 0, 0)
    }

    fn pull_back_small<T: Real>(
        &self,
        x: &Tensor,
        gradients: &Tensor,
        projection: &Tensor,
        place: &Tensor,
        rules: Rules,
    ) -> Result<()> {
        let d = x.dim(1)?;
        let x = x.contiguous()?;
        let gain = self.gain()?;
        let (x, weight) = (values::<T>(&x)?, values::<T>(&gain)?);
        let statistics = self.statistics(&x, d);
        multiply_blocks_then::<T>(gradients, projection, place, |row, values| {
            self.pull_back_row(values, &x[row * d..][..d], &weight, statistics[row], rules);
        })
    }

    /// Mean and 1/√(variance + ε) of each row.
    fn statistics<T: Real>(&self, x: &[T], d: usize) -> Vec<(T, T)> {
        x.par_chunks(d).map(|x| statistics(x, self.centred(), self.epsilon)).collect()
    }

    /// The gradients of γ and β [1, d_model], from x and the gradient at y, both [rows, d_model].
    pub fn parameter_gradients(&self, x: &Tensor, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
        if !is_fused(x) {
            return self.composed_parameter_gradients(x, gradient);
        }
        by_dtype!(x, T => self.parameter_gradients_in::<T>(x, gradient))
    }

    fn composed_parameter_gradients(
        &self,
        x: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let bias = self.bias.as_ref().map(|bias| &bias.tensor);
        let d_weight = composed::pull_back(&self.gain()?, gradient, |weight| {
            composed(x, weight, bias, self.epsilon, Rules::default())
        })?;
        Ok((d_weight, gradient.sum_keepdim(0)?))
    }

    fn parameter_gradients_in<T: Real>(
        &self,
        x: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let d = x.dims2()?.1;
        let (x, gradient) = (x.contiguous()?, gradient.contiguous()?);
        let (x, g) = (values::<T>(&x)?, values::<T>(&gradient)?);
        let (mut weight, mut bias) = (vec![T::zero(); d], vec![T::zero(); d]);
        for (x, g) in x.chunks(d).zip(g.chunks(d)) {
            let (mean, scale) = statistics(x, self.centred(), self.epsilon);
            for ((weight, g), x) in weight.iter_mut().zip(g).zip(x) {
                *weight += *g * (*x - mean) * scale;
            }
            lanes::add_scaled(&mut bias, T::one(), g);
        }
        let tensor = |values| Tensor::from_vec(values, (1, d), gradient.device());
        Ok((tensor(weight)?, tensor(bias)?))
    }
}

/// x [..., d_model] normalised, with γ and β [1, d_model].
pub(super) fn composed(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    epsilon: f64,
    rules: Rules,
) -> Result<Tensor> {
    let x = match bias {
        Some(_) => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
        None => x.clone(),
    };
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?;
    let scale = composed::held(scale, rules.norm_scales);
    let y = x.broadcast_div(&scale)?.broadcast_mul(weight)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}
