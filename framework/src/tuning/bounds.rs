//! Updates that leave every weight a finite number, or nothing changed. To undo an update its rows have
//! to be copied before, which would take as much memory as they do, and a part of every step's time. So
//! they are copied only where the largest weight that the update could leave may be out of range, by a
//! bound that a step's gradient norm and the settings give for a dozen multiplications. It grows from step
//! to step; where it has grown too large, it is formed anew of weights and moments as they are.

use std::ops::Range;

use candle_core::Tensor;

use super::rule::{Algorithm, Rule};
use crate::Result;
use crate::ops::{squared_norm, weight};
use crate::weights::parameters::{ParamId, Parameters, Selection};

/// What the updates so far can have made of the trained parameters, at the most.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// No weight is larger than this.
    weight: f64,
    /// No first moment is larger than this.
    first: f64,
    /// Whether every number that the last update formed is finite, in float32, which files are in, and
    /// in bfloat16 too.
    finite: bool,
}

/// Numbers below it are finite in float32, however their bound is off by rounding.
const LARGEST: f64 = f32::MAX as f64 / 16.0;

/// More than a step's own rounding in float32.
const ROUNDING: f64 = 1.0 + 1e-6;

impl Bounds {
    /// Of weights and of first moments as they are: their joint norms are no less than any of them.
    pub(super) fn of(parameters: &Parameters, first: f64) -> Result<Self> {
        let mut squares = 0.0;
        for (_, parameter) in parameters.iter() {
            squares += squared_norm(&weight::widened(&parameter.tensor)?)?;
        }
        Ok(Self { weight: squares.sqrt(), first, finite: true })
    }

    /// After an update by gradients of this joint norm.
    pub(super) fn after(self, rule: &Rule, lr: f64, gradient: f64) -> Self {
        let Rule { algorithm, momentum, beta1, weight_decay, .. } = *rule;
        let decay = weight_decay * self.weight;
        let (gradient, shrink) = match algorithm {
            Algorithm::AdamW => (gradient, (1.0 - lr * weight_decay).abs()),
            _ => (gradient + decay, 1.0),
        };
        let (first, rate) = match algorithm {
            Algorithm::Sgd => (momentum * self.first + gradient, lr),
            _ => (beta1 * self.first + (1.0 - beta1) * gradient, lr / (1.0 - beta1)),
        };
        let first = first * ROUNDING;
        let step = rate * divided(rule, first);
        let weight = (self.weight * shrink + step) * ROUNDING;
        let formed = [
            weight,
            first,
            step,
            rate,
            rate * first,
            shrink,
            decay,
            weight_decay,
            gradient.powi(2),
        ];
        Self { weight, first, finite: formed.into_iter().all(|number| number < LARGEST) }
    }

    pub(super) fn are_finite(&self) -> bool {
        self.finite
    }
}

/// What becomes at the most of a first moment of this size by the division through √v + eps.
fn divided(rule: &Rule, first: f64) -> f64 {
    let Rule { algorithm, beta1, beta2, eps, .. } = *rule;
    if algorithm == Algorithm::Sgd {
        return first;
    }
    // Both moments are sums over the same gradients g: m = (1 − β₁)·Σ β₁ᵏ·g, v = (1 − β₂)·Σ β₂ᵏ·g². By
    // Cauchy and Schwarz |m| ≤ (1 − β₁)·√(v / ((1 − β₂)·(1 − β₁²/β₂))), where that root is real.
    let decay = beta1.powi(2) / beta2;
    let of_root = (1.0 - beta1) / ((1.0 - beta2) * (1.0 - decay)).sqrt();
    // float32 may have no such eps but 0; and what v loses there by underflow is below 1e-20 as √v.
    let eps = f64::from(eps as f32);
    let lost = 1.0 + 1e-20 / eps;
    match decay < 1.0 {
        true => (first / eps).min(of_root * lost),
        false => first / eps,
    }
}

/// Copies of the rows that an update is about to change.
pub(super) struct Rows(Vec<(ParamId, Range<usize>, Tensor)>);

impl Rows {
    pub(super) fn copy(parameters: &Parameters, selection: &Selection) -> Result<Self> {
        let rows = parameters.iter().flat_map(|(id, parameter)| {
            selection.ranges(id).iter().map(move |range| {
                let rows = parameter.tensor.narrow(0, range.start, range.len())?.copy()?;
                Ok((id, range.clone(), rows))
            })
        });
        Ok(Self(rows.collect::<Result<_>>()?))
    }

    /// Whether the rows are finite numbers now.
    pub(super) fn are_finite_in(&self, parameters: &Parameters) -> Result<bool> {
        for (id, range, _) in &self.0 {
            let rows = parameters.get(*id).tensor.narrow(0, range.start, range.len())?;
            if !weight::is_finite(&rows)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts the rows back.
    pub(super) fn put_back(&self, parameters: &Parameters) -> Result<()> {
        for (id, range, rows) in &self.0 {
            parameters.get(*id).tensor.slice_set(rows, 0, range.start)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuning::Tuning;

    fn bounds() -> Bounds {
        Bounds { weight: 1e3, first: 0.0, finite: true }
    }

    #[test]
    fn usual_updates_are_known_to_be_finite() {
        for (optimizer, lr) in
            [(Algorithm::Sgd, 0.1), (Algorithm::Adam, 0.1), (Algorithm::AdamW, 0.1)]
        {
            let tuning = Tuning { optimizer, weight_decay: 0.001, ..Tuning::default() };
            let rule = Rule::of(&tuning);
            let after = (0..1000).fold(bounds(), |bounds, _| bounds.after(&rule, lr, 100.0));
            assert!(after.are_finite(), "{optimizer:?}");
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_not() {
        let rule = |eps| Rule::of(&Tuning { eps, ..Tuning::default() });
        for (eps, lr, gradient) in
            [(1e-8, 1e300, 1.0), (0.0, 1e-3, 1.0), (1e-8, 1e-3, f64::NAN), (1e-8, 1e-3, 1e20)]
        {
            assert!(
                !bounds().after(&rule(eps), lr, gradient).are_finite(),
                "{eps} {lr} {gradient}"
            );
        }
    }
}
