//! SGD with momentum, Adam and AdamW as PyTorch defines them, on selected rows. Moments and step
//! counts are kept row by row, so a row that was not selected for a while goes on where it stopped;
//! rows that are not selected are not touched, bit for bit.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor, bail};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::Tuning;
use super::bounds::{Bounds, Rows};
use super::moments::{Moments, OfRows};
use super::rule::{Algorithm, Rule};
use crate::Result;
use crate::ops::{Real, is_fused, vectorized, weight};
use crate::tuning::gradients::Gradients;
use crate::weights::parameters::{ParamId, Parameter, Parameters};

/// The optimizer's state, for all parameters.
pub struct Optimizer {
    rule: Rule,
    states: Vec<Moments>,
    bounds: Bounds,
}

impl Optimizer {
    /// For these parameters, none of them updated yet.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn new(tuning: &Tuning, parameters: &Parameters) -> Result<Self> {
        Ok(Self {
            rule: Rule::of(tuning),
            states: std::iter::repeat_with(Moments::default).take(parameters.len()).collect(),
            bounds: Bounds::of(parameters, 0.0)?,
        })
    }

    /// Updates the selected rows in place; `norm` is the gradients' joint norm. If that would leave a
    /// weight that is no finite number, the weights stay as they are and the answer is false; the
    /// moments are of no use then. A selected row that no gradient reached counts as having gradient 0.
    ///
    /// # Errors
    /// If a tensor is neither float32 nor float64.
    pub fn update(
        &mut self,
        parameters: &Parameters,
        gradients: &Gradients,
        norm: f64,
        lr: f64,
    ) -> Result<bool> {
        self.bounds = self.bounds.after(&self.rule, lr, norm);
        if !self.bounds.are_finite() {
            let now = Bounds::of(parameters, self.first_moments_norm()?)?;
            self.bounds = now.after(&self.rule, lr, norm);
        }
        if self.bounds.are_finite() {
            self.update_rows(parameters, gradients, lr)?;
            return Ok(true);
        }
        let rows = Rows::copy(parameters, gradients.selection())?;
        self.update_rows(parameters, gradients, lr)?;
        let finite = rows.are_finite_in(parameters)?;
        if !finite {
            rows.put_back(parameters)?;
        }
        Ok(finite)
    }

    /// The joint norm of all first moments.
    fn first_moments_norm(&self) -> Result<f64> {
        let squares = self.states.iter().map(Moments::first_squared).sum::<Result<f64>>()?;
        Ok(squares.sqrt())
    }

    /// What is kept of a parameter.
    pub(super) fn moments(&self, id: ParamId) -> &Moments {
        &self.states[id.0]
    }

    /// Puts back what was kept of each parameter. The parameters' values must be back already.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub(super) fn put_back(
        &mut self,
        parameters: &Parameters,
        moments: impl Fn(ParamId, &Parameter) -> Result<Moments>,
    ) -> Result<()> {
        for (id, parameter) in parameters.iter() {
            self.states[id.0] = moments(id, parameter)?;
        }
        self.bounds = Bounds::of(parameters, self.first_moments_norm()?)?;
        Ok(())
    }

    fn update_rows(
        &mut self,
        parameters: &Parameters,
        gradients: &Gradients,
        lr: f64,
    ) -> Result<()> {
        for (id, parameter) in parameters.iter() {
            let ranges = gradients.selection().ranges(id);
            if ranges.is_empty() {
                continue;
            }
            let (rows, width) = (parameter.rows(), parameter.width());
            let state = &mut self.states[id.0];
            state.counts.resize(rows, 0);
            let selected: Vec<usize> = ranges.iter().cloned().flatten().collect();
            let gradient = match gradients.get(id) {
                Some(gradient) => gradient.contiguous()?,
                None => {
                    let dtype = weight::computing(parameter.tensor.dtype());
                    Tensor::zeros((selected.len(), width), dtype, parameter.tensor.device())?
                }
            };
            if !is_fused(&parameter.tensor) {
                self.rule.update_composed(&parameter.tensor, &gradient, ranges, state, lr)?;
                continue;
            }
            parameter.tensor.inplace_op2(
                &gradient,
                &Update {
                    rule: self.rule,
                    lr,
                    width,
                    selected: &selected,
                    state: Mutex::new(state),
                },
            )?;
        }
        Ok(())
    }
}

impl Rule {
    /// The update made of candle's own operations: what runs on a GPU.
    fn update_composed(
        &self,
        weight: &Tensor,
        gradient: &Tensor,
        ranges: &[Range<usize>],
        state: &mut Moments,
        lr: f64,
    ) -> Result<()> {
        let Self { algorithm, momentum, beta1, beta2, eps, weight_decay } = *self;
        let [first, second, master] = match state.tensors.take() {
            Some(tensors) => tensors,
            None => {
                // Without bfloat16 the weight is its own master.
                let master = weight::widened(weight)?;
                [master.zeros_like()?, master.zeros_like()?, master]
            }
        };
        let selected = |tensor: &Tensor| -> Result<Tensor> {
            let rows = ranges.iter().map(|range| tensor.narrow(0, range.start, range.len()));
            Ok(Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
        };
        let put_back = |tensor: &Tensor, rows: &Tensor| -> Result<()> {
            let mut start = 0;
            for range in ranges {
                let rows = rows.narrow(0, start, range.len())?.to_dtype(tensor.dtype())?;
                let rows = rows.contiguous()?;
                tensor.slice_set(&rows, 0, range.start)?;
                start += range.len();
            }
            Ok(())
        };
        let (w, m) = (selected(&master)?, selected(&first)?);
        let counts = ranges.iter().cloned().flatten().map(|row| {
            state.counts[row] += 1;
            f64::from(state.counts[row])
        });
        let counts: Vec<f64> = counts.collect();
        let by_row = |of: &dyn Fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f64> = counts.iter().map(|&count| of(count)).collect();
            let column = Tensor::from_vec(values, (counts.len(), 1), &Device::Cpu)?;
            Ok(column.to_dtype(master.dtype())?.to_device(weight.device())?)
        };
        if algorithm == Algorithm::Sgd {
            let m = ((m * momentum)? + (gradient + (&w * weight_decay)?)?)?;
            put_back(&master, &(w - (&m * lr)?)?)?;
            put_back(&first, &m)?;
        } else {
            let v = selected(&second)?;
            let (gradient, w) = match algorithm {
                Algorithm::AdamW => (gradient.clone(), (w * (1.0 - lr * weight_decay))?),
                _ => ((gradient + (&w * weight_decay)?)?, w),
            };
            let m = ((m * beta1)? + (&gradient * (1.0 - beta1))?)?;
            let v = ((v * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
            let rate = by_row(&|count| lr / (1.0 - beta1.powf(count)))?;
            let scale = by_row(&|count| 1.0 / (1.0 - beta2.powf(count)).sqrt())?;
            let step = (m.broadcast_mul(&rate)? / (v.sqrt()?.broadcast_mul(&scale)? + eps)?)?;
            put_back(&master, &(w - step)?)?;
            put_back(&first, &m)?;
            put_back(&second, &v)?;
        }
        if weight.dtype() == DType::BF16 {
            put_back(weight, &selected(&master)?)?;
        }
        state.tensors = Some([first, second, master]);
        Ok(())
    }
}

/// The update of one parameter's selected rows.
struct Update<'a> {
    rule: Rule,
    lr: f64,
    width: usize,
    selected: &'a [usize],
    state: Mutex<&'a mut Moments>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "optimizer update"
    }

    fn cpu_fwd(
        &self,
        weight: &mut CpuStorage,
        weight_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (at, from) = (weight_layout.start_offset(), gradient_layout.start_offset());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Moments { counts, f32, f64, master, .. } = &mut **state;
        match (weight, gradient) {
            (CpuStorage::F32(weight), CpuStorage::F32(gradient)) => {
                self.update_rows(&mut weight[at..], &gradient[from..], counts, f32);
            }
            (CpuStorage::F64(weight), CpuStorage::F64(gradient)) => {
                self.update_rows(&mut weight[at..], &gradient[from..], counts, f64);
            }
            (CpuStorage::BF16(weight), CpuStorage::F32(gradient)) => {
                let weight = &mut weight[at..][..counts.len() * self.width];
                self.widen_new_rows(weight, counts, master);
                self.update_rows(master, &gradient[from..], counts, f32);
                self.narrow(master, weight);
            }
            _ => bail!("the optimizer updates float32, float64 and bfloat16 weights"),
        }
        Ok(())
    }
}

impl Update<'_> {
    /// Has a master of every row that is updated for the first time.
    fn widen_new_rows(&self, weight: &[bf16], counts: &[u32], master: &mut Vec<f32>) {
        if master.is_empty() {
            *master = vec![0.0; weight.len()];
        }
        for &row in self.selected.iter().filter(|row| counts[**row] == 0) {
            let of = row * self.width..(row + 1) * self.width;
            weight[of.clone()].convert_to_f32_slice(&mut master[of]);
        }
    }

    /// Rounds the masters of the updated rows to the weights.
    fn narrow(&self, master: &[f32], weight: &mut [bf16]) {
        for &row in self.selected {
            let of = row * self.width..(row + 1) * self.width;
            weight[of.clone()].convert_from_f32_slice(&master[of]);
        }
    }

    fn update_rows<T: Real>(
        &self,
        weight: &mut [T],
        gradient: &[T],
        counts: &mut [u32],
        moments: &mut OfRows<T>,
    ) {
        let (width, entries) = (self.width, counts.len() * self.width);
        let OfRows { first, second } = moments;
        // All at once, so that the system gives pages only to the rows that are updated.
        if first.is_empty() {
            *first = vec![T::zero(); entries];
        }
        if second.is_empty() && self.rule.algorithm != Algorithm::Sgd {
            *second = vec![T::zero(); entries];
        }
        // Marks which compact gradient row belongs to which row, so that rows run in parallel.
        let mut compact = vec![usize::MAX; counts.len()];
        for (index, &row) in self.selected.iter().enumerate() {
            compact[row] = index;
        }
        // SGD has no second moment; an empty slice a row stands in.
        let second_rows: Vec<&mut [T]> = match second.is_empty() {
            true => counts.iter().map(|_| &mut [][..]).collect(),
            false => second.chunks_mut(width).collect(),
        };
        (weight.par_chunks_mut(width).zip(first.par_chunks_mut(width)))
            .zip(second_rows)
            .zip(counts)
            .zip(&compact)
            .with_min_len(64)
            .filter(|(_, compact)| **compact != usize::MAX)
            .for_each(|((((weight, first), second), count), compact)| {
                let gradient = &gradient[compact * width..][..width];
                *count += 1;
                vectorized(
                    #[inline(always)]
                    || self.update_row(weight, first, second, *count, gradient),
                );
            });
    }

    #[inline(always)]
    fn update_row<T: Real>(
        &self,
        weight: &mut [T],
        first: &mut [T],
        second: &mut [T],
        count: u32,
        gradient: &[T],
    ) {
        let Rule { algorithm, momentum, beta1, beta2, eps, weight_decay } = self.rule;
        let real = T::from_f64;
        let (lr, decay) = (real(self.lr), real(weight_decay));
        if algorithm == Algorithm::Sgd {
            let momentum = real(momentum);
            for ((weight, buffer), &gradient) in weight.iter_mut().zip(first).zip(gradient) {
                *buffer = momentum * *buffer + gradient + decay * *weight;
                *weight -= lr * *buffer;
            }
            return;
        }
        let (coupled, shrink) = match algorithm {
            Algorithm::AdamW => (T::zero(), real(1.0 - self.lr * weight_decay)),
            _ => (decay, T::one()),
        };
        let rate = real(self.lr / (1.0 - beta1.powi(count as i32)));
        let scale = real(1.0 / (1.0 - beta2.powi(count as i32)).sqrt());
        let (keep1, add1) = (real(beta1), real(1.0 - beta1));
        let (keep2, add2, eps) = (real(beta2), real(1.0 - beta2), real(eps));
        let moments = first.iter_mut().zip(second);
        for ((weight, (first, second)), &gradient) in weight.iter_mut().zip(moments).zip(gradient) {
            let gradient = gradient + coupled * *weight;
            *first = keep1 * *first + add1 * gradient;
            *second = keep2 * *second + add2 * gradient * gradient;
            *weight = *weight * shrink - rate * *first / (second.sqrt() * scale + eps);
        }
    }
}
