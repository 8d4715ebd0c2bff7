//! Right and wrong answers at the key positions as differentiable numbers: what the metrics that look
//! there, the objective `set` and the evaluations are made of. A key's answers are sets of tokens; a
//! number of a set is formed from its own tokens' logits, without the other tokens' where it can be.

use candle_core::Tensor;

use crate::data::example::{Batch, Example, Key};
use crate::pass::Readout;
use crate::{Result, refuse};

/// A key of a batch: its example's index there, the key itself, and the row that predicts it.
pub type KeyRow<'a> = (usize, &'a Key, u32);

/// Which of a key's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The right answers.
    Right,
    /// The wrong answers, which the right ones are compared with.
    Wrong,
}

impl Side {
    fn of(self, key: &Key) -> &[u32] {
        match self {
            Side::Right => &key.correct,
            Side::Wrong => &key.wrong,
        }
    }
}

/// The answers of one side of several keys as a rectangle: shorter sets are filled up with their own
/// first token, which `mask` takes out again.
struct Sets {
    width: usize,
    /// [keys × width]
    tokens: Vec<u32>,
    /// [keys × width], 1 for a token of the set, 0 for one that fills up.
    mask: Vec<f64>,
}

impl Sets {
    /// # Errors
    /// If a key has no answer on this side.
    fn new(keys: &[KeyRow], side: Side) -> Result<Self> {
        let width = keys.iter().map(|(_, key, _)| side.of(key).len()).max().unwrap_or(0);
        let (mut tokens, mut mask) = (Vec::new(), Vec::new());
        for (_, key, _) in keys {
            let set = side.of(key);
            let Some(&first) = set.first() else {
                refuse!("key position {} has no {side:?} answer", key.position);
            };
            tokens.extend(set.iter().copied().chain(std::iter::repeat(first)).take(width));
            mask.extend((0..width).map(|index| f64::from(index < set.len())));
        }
        Ok(Self { width, tokens, mask })
    }

    /// The mask [keys, width] in the type and on the device of `like`.
    fn mask(&self, like: &Tensor) -> Result<Tensor> {
        let mask = Tensor::new(&self.mask[..], like.device())?.reshape(((), self.width))?;
        Ok(mask.to_dtype(like.dtype())?)
    }

    /// The logits [keys, width] of the sets' tokens.
    fn logits(&self, readout: &Readout, keys: &[KeyRow]) -> Result<Tensor> {
        let rows = keys.iter().flat_map(|&(.., row)| std::iter::repeat_n(row, self.width));
        let logits = readout.logits_of(&rows.collect::<Vec<_>>(), &self.tokens)?;
        Ok(logits.reshape(((), self.width))?)
    }

    /// log Σ exp `[keys]` over each set of values [keys, width].
    fn log_sum_exp(&self, values: &Tensor) -> Result<Tensor> {
        let largest = values.detach().max_keepdim(1)?;
        let terms = (values.broadcast_sub(&largest)?.exp()? * self.mask(values)?)?;
        Ok((terms.sum(1)?.log()? + largest.squeeze(1)?)?)
    }
}

/// The mean logit `[keys]` of one side's answers.
///
/// # Errors
/// If a key has none, or a tensor operation fails.
pub fn mean_logits(readout: &Readout, keys: &[KeyRow], side: Side) -> Result<Tensor> {
    let sets = Sets::new(keys, side)?;
    let logits = sets.logits(readout, keys)?;
    let mask = sets.mask(&logits)?;
    let shares = mask.broadcast_div(&mask.sum_keepdim(1)?)?;
    Ok((logits * shares)?.sum(1)?)
}

/// The largest logit `[keys]` of one side's answers.
///
/// # Errors
/// As [`mean_logits`]'s.
pub fn best_logits(readout: &Readout, keys: &[KeyRow], side: Side) -> Result<Tensor> {
    // What fills a set up is one of its own tokens.
    Ok(Sets::new(keys, side)?.logits(readout, keys)?.max(1)?)
}

/// The right answers' mean logit less the wrong ones' `[keys]`.
///
/// # Errors
/// As [`mean_logits`]'s.
pub fn logit_differences(readout: &Readout, keys: &[KeyRow]) -> Result<Tensor> {
    let right = mean_logits(readout, keys, Side::Right)?;
    Ok((right - mean_logits(readout, keys, Side::Wrong)?)?)
}

/// log Σp(right) − log Σp(wrong) `[keys]`; the normaliser cancels, so that no other logits are formed.
///
/// # Errors
/// As [`mean_logits`]'s.
pub fn log_odds(readout: &Readout, keys: &[KeyRow]) -> Result<Tensor> {
    let of = |side: Side| {
        let sets = Sets::new(keys, side)?;
        sets.log_sum_exp(&sets.logits(readout, keys)?)
    };
    Ok((of(Side::Right)? - of(Side::Wrong)?)?)
}

/// Logits [keys, vocabulary].
///
/// # Errors
/// If a tensor operation fails.
pub fn all_logits(readout: &Readout, keys: &[KeyRow]) -> Result<Tensor> {
    readout.logits(&keys.iter().map(|&(.., row)| row).collect::<Vec<_>>())
}

/// log p [rows, vocabulary] of logits of that shape.
///
/// # Errors
/// If a tensor operation fails.
pub fn log_probs(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(1)?)?;
    let normaliser = shifted.exp()?.sum_keepdim(1)?.log()?;
    Ok(shifted.broadcast_sub(&normaliser)?)
}

/// log Σp `[keys]` of one side's answers, of log p [keys, vocabulary].
///
/// # Errors
/// As [`mean_logits`]'s.
pub fn log_prob_of(log_probs: &Tensor, keys: &[KeyRow], side: Side) -> Result<Tensor> {
    let sets = Sets::new(keys, side)?;
    let tokens = Tensor::new(&sets.tokens[..], log_probs.device())?.reshape(((), sets.width))?;
    sets.log_sum_exp(&log_probs.gather(&tokens, 1)?)
}

/// Σ over the batch's examples of the mean over an example's keys of values `[keys]`, one for each of
/// [`Batch::keys`].
///
/// # Errors
/// If a tensor operation fails.
pub fn sum_of_means(values: &Tensor, batch: &Batch) -> Result<Tensor> {
    let weights: Vec<f64> = (batch.keys())
        .map(|(example, ..)| 1.0 / batch.examples[example].keys.len() as f64)
        .collect();
    let weights = Tensor::new(weights, values.device())?.to_dtype(values.dtype())?;
    Ok((values * weights)?.sum_all()?)
}

/// Refuses an example without keys.
///
/// # Errors
/// If it has none.
pub fn check_keys(example: &Example) -> Result<()> {
    if example.keys.is_empty() {
        refuse!("there are no key positions");
    }
    Ok(())
}

/// Refuses an example without keys, or with a key that has no wrong answer.
///
/// # Errors
/// Saying which it lacks.
pub fn check_wrong_answers(example: &Example) -> Result<()> {
    check_keys(example)?;
    if example.keys.iter().any(|key| key.wrong.is_empty()) {
        refuse!("a key position has no wrong answer to compare with");
    }
    Ok(())
}
