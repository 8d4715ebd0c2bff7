//! Smoothing of |score| over steps, as in sensitivity-and-uncertainty pruning (PLATON, AdaLoRA):
//! I = β₁·I′ + (1−β₁)·|s|, U = β₂·U′ + (1−β₂)·||s| − I|, both from zero, ranked by I·U.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::range::Range;

/// The two decay factors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Smoothing {
    /// The decay of the smoothed |score|.
    pub beta1: f32,
    /// The decay of its uncertainty.
    pub beta2: f32,
}

impl Smoothing {
    /// Refuses decay factors that don't decay.
    ///
    /// # Errors
    /// Naming the setting and what would be right.
    pub fn check(&self) -> Result<()> {
        Range::FromZeroToBelowOne.check("tuning.smoothing.beta1", self.beta1)?;
        Range::FromZeroToBelowOne.check("tuning.smoothing.beta2", self.beta2)
    }
}

const SENSITIVITY: &str = "sensitivity";
const UNCERTAINTY: &str = "uncertainty";

/// The running averages.
#[derive(Clone, Debug)]
pub struct Smoother {
    smoothing: Smoothing,
    sensitivity: Vec<f32>,
    uncertainty: Vec<f32>,
}

impl Smoother {
    pub fn new(smoothing: Smoothing) -> Self {
        Self { smoothing, sensitivity: Vec::new(), uncertainty: Vec::new() }
    }

    /// The running averages by name, for a checkpoint.
    pub(crate) fn averages(&self) -> [(&'static str, &[f32]); 2] {
        [(SENSITIVITY, &self.sensitivity), (UNCERTAINTY, &self.uncertainty)]
    }

    /// Puts back the running averages of a checkpoint, by name.
    pub(crate) fn restore(&mut self, average: impl Fn(&str) -> Option<Vec<f32>>) {
        self.sensitivity = average(SENSITIVITY).unwrap_or_default();
        self.uncertainty = average(UNCERTAINTY).unwrap_or_default();
    }

    /// Takes a step's |score| in; returns what the edges are ranked by, in the same layout.
    pub fn update(&mut self, magnitudes: &[f32]) -> Vec<f32> {
        let Smoothing { beta1, beta2 } = self.smoothing;
        self.sensitivity.resize(magnitudes.len(), 0.0);
        self.uncertainty.resize(magnitudes.len(), 0.0);
        let averages = self.sensitivity.iter_mut().zip(&mut self.uncertainty);
        (averages.zip(magnitudes))
            .map(|((i, u), s)| {
                *i = beta1 * *i + (1.0 - beta1) * s;
                *u = beta2 * *u + (1.0 - beta2) * (s - *i).abs();
                *i * *u
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by hand: β₁ = ½, β₂ = ¼, |s| = 4 then 2.
    #[test]
    fn two_steps() {
        let mut smoother = Smoother::new(Smoothing { beta1: 0.5, beta2: 0.25 });
        // I = 2, U = ¾·|4 − 2| = 1.5.
        assert_eq!(smoother.update(&[4.0]), [3.0]);
        // I = 1 + 1 = 2, U = 0.375 + ¾·|2 − 2| = 0.375.
        assert_eq!(smoother.update(&[2.0]), [0.75]);
    }
}
