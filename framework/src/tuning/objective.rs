//! The training loss: next-token cross-entropy, with more or all of the weight on the key tokens.

use std::collections::BTreeSet;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Tuning;
use crate::example::{Batch, Example};
use crate::ops::cross_entropy::Target;
use crate::pass::Readout;
use crate::{Result, refuse};

/// Which tokens' −log p are averaged.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// All predicted tokens.
    #[default]
    Standard,
    /// All predicted tokens, the key tokens' terms times 1/p; the divisor is unchanged.
    Weighted,
    /// The key tokens alone.
    Alone,
}

/// The factors of the terms in one step's loss.
pub(super) struct Terms {
    key: f64,
    other: f64,
}

impl Terms {
    /// For a step on these examples: the divisors count all of them, so that micro-batches add up.
    pub(super) fn of(tuning: &Tuning, examples: &[&Example]) -> Result<Self> {
        let predicted: usize = examples.iter().map(|example| example.predicted.len()).sum();
        let keys: usize = examples.iter().map(|example| key_positions(example).len()).sum();
        let mean = 1.0 / predicted as f64;
        let (key, other) = match tuning.objective {
            Objective::Standard => (mean, mean),
            Objective::Weighted => (mean / tuning.key_weight_p, mean),
            Objective::Alone if keys == 0 => {
                refuse!("objective `alone` on examples without key tokens; use `standard`")
            }
            Objective::Alone => (1.0 / keys as f64, 0.0),
        };
        Ok(Self { key, other })
    }

    /// The batch's share of the loss, a differentiable scalar.
    pub(super) fn loss(&self, batch: &Batch, readout: &Readout) -> Result<Tensor> {
        let keys: Vec<BTreeSet<usize>> =
            batch.examples.iter().map(|example| key_positions(example)).collect();
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (index, position, row) in batch.predicted() {
            let weight = if keys[index].contains(&position) { self.key } else { self.other };
            if weight != 0.0 {
                let token = batch.examples[index].tokens[position];
                rows.push(row);
                targets.push(Target { token, weight });
            }
        }
        readout.cross_entropy(&rows, targets)
    }
}

/// The predicted key tokens' positions, each once.
fn key_positions(example: &Example) -> BTreeSet<usize> {
    (example.keys.iter())
        .map(|key| key.position)
        .filter(|position| example.predicted.contains(position))
        .collect()
}
