//! The training loss: next-token cross-entropy, with more or all of the weight on the key tokens, or
//! the probability of the keys' right answers. The terms of examples that are to be forgotten have the other
//! sign: gradient ascent on them, descent on the rest (the gradient difference of Liu et al., 2022, arXiv 2203.12817).

use std::collections::BTreeSet;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Tuning;
use crate::data::example::{Batch, Example};
use crate::evaluation::answers::{self, Side};
use crate::ops::cross_entropy::Target;
use crate::pass::Readout;
use crate::{Result, refuse};

/// What is averaged to make the training loss.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// −log p of all predicted tokens.
    #[default]
    Standard,
    /// −log p of all predicted tokens, the key tokens' terms times 1/p; the divisor is unchanged.
    Weighted,
    /// −log p of the key tokens alone.
    Alone,
    /// −log Σp of each key's right answers, the mean over keys.
    Set,
}

/// What each term of one step's loss is multiplied by.
pub(super) enum Terms {
    /// Terms of tokens: of key tokens, and of the others.
    Tokens { key: f64, other: f64 },
    /// Terms of keys.
    Keys(f64),
}

impl Terms {
    /// For a step on these examples: the divisors count all of them, so that micro-batches add up.
    pub(super) fn of(tuning: &Tuning, examples: &[&Example]) -> Result<Self> {
        let predicted: usize = examples.iter().map(|example| example.predicted.len()).sum();
        let keys: usize = examples.iter().map(|example| key_positions(example).len()).sum();
        let sets: usize = examples.iter().map(|example| example.keys.len()).sum();
        let mean = 1.0 / predicted as f64;
        let (key, other) = match tuning.objective {
            Objective::Standard => (mean, mean),
            Objective::Weighted => (mean / tuning.key_weight_p, mean),
            Objective::Alone if keys == 0 => {
                refuse!("objective `alone` on examples without key tokens; use `standard`")
            }
            Objective::Alone => (1.0 / keys as f64, 0.0),
            Objective::Set if sets == 0 => {
                refuse!("objective `set` on examples without keys; use `standard`")
            }
            Objective::Set => return Ok(Self::Keys(1.0 / sets as f64)),
        };
        Ok(Self::Tokens { key, other })
    }

    /// The batch's share of the loss, a differentiable scalar.
    pub(super) fn loss(&self, batch: &Batch, readout: &Readout) -> Result<Tensor> {
        match *self {
            Self::Tokens { key, other } => tokens_loss(batch, readout, key, other),
            Self::Keys(factor) => keys_loss(batch, readout, factor),
        }
    }
}

/// −log p of the predicted tokens, key tokens' and others' each times their factor.
fn tokens_loss(batch: &Batch, readout: &Readout, key: f64, other: f64) -> Result<Tensor> {
    let keys: Vec<BTreeSet<usize>> =
        batch.examples.iter().map(|example| key_positions(example)).collect();
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (index, position, row) in batch.predicted() {
        let example = batch.examples[index];
        let weight = if keys[index].contains(&position) { key } else { other } * sign(example);
        if weight != 0.0 {
            let token = example.tokens[position];
            rows.push(row);
            targets.push(Target { token, weight });
        }
    }
    readout.cross_entropy(&rows, targets)
}

/// −log Σp of the keys' right answers, times the factor.
fn keys_loss(batch: &Batch, readout: &Readout, factor: f64) -> Result<Tensor> {
    let keys: Vec<_> = batch.keys().collect();
    if keys.is_empty() {
        return readout.cross_entropy(&[], Vec::new());
    }
    let log_probs = answers::log_probs(&answers::all_logits(readout, &keys)?)?;
    let right = answers::log_prob_of(&log_probs, &keys, Side::Right)?;
    let signs: Vec<f64> = keys.iter().map(|(index, _, _)| sign(batch.examples[*index])).collect();
    let signs = Tensor::new(signs, right.device())?.to_dtype(right.dtype())?;
    Ok(right.mul(&signs)?.sum_all()?.affine(-factor, 0.0)?)
}

/// Whether an example's terms are lowered or raised.
fn sign(example: &Example) -> f64 {
    if example.forget { -1.0 } else { 1.0 }
}

/// The predicted key tokens' positions, each once.
fn key_positions(example: &Example) -> BTreeSet<usize> {
    (example.keys.iter())
        .map(|key| key.position)
        .filter(|position| example.predicted.contains(position))
        .collect()
}
