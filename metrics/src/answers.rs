//! The logits and log-probabilities at the key positions, for the metrics that look there.

use circuit_framework::{Batch, Example, Key, Readout, Result, Tensor, refuse};

/// Differentiable logits [keys, vocabulary], a row for each of [`Batch::keys`].
pub(crate) fn logits(readout: &Readout, batch: &Batch) -> Result<Tensor> {
    let rows: Vec<u32> = batch.keys().map(|(_, _, row)| row).collect();
    readout.logits(&rows)
}

/// Differentiable right answers' logits less the wrong ones' [keys, 1], without the other tokens'.
pub(crate) fn logit_differences(readout: &Readout, batch: &Batch) -> Result<Tensor> {
    let rows: Vec<u32> = batch.keys().map(|(_, _, row)| row).collect();
    let correct = readout.logits_of(&rows, &tokens(batch, |key| key.correct))?;
    let wrong = readout.logits_of(&rows, &tokens(batch, wrong))?;
    Ok((correct - wrong)?.unsqueeze(1)?)
}

/// log p [rows, vocabulary] of logits of that shape.
pub(crate) fn log_probs(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(1)?)?;
    let normaliser = shifted.exp()?.sum_keepdim(1)?.log()?;
    Ok(shifted.broadcast_sub(&normaliser)?)
}

/// The right answers' column [keys, 1] of values [keys, vocabulary].
pub(crate) fn of_correct(values: &Tensor, batch: &Batch) -> Result<Tensor> {
    of_token(values, batch, |key| key.correct)
}

/// The right answers' values less the wrong ones' [keys, 1], of values [keys, vocabulary].
pub(crate) fn correct_less_wrong(values: &Tensor, batch: &Batch) -> Result<Tensor> {
    let wrong = of_token(values, batch, wrong)?;
    Ok((of_correct(values, batch)? - wrong)?)
}

fn of_token(values: &Tensor, batch: &Batch, token: impl Fn(&Key) -> u32) -> Result<Tensor> {
    let tokens = tokens(batch, token);
    Ok(values.gather(&Tensor::new(tokens, values.device())?.unsqueeze(1)?, 1)?)
}

/// One token of every key.
fn tokens(batch: &Batch, token: impl Fn(&Key) -> u32) -> Vec<u32> {
    batch.keys().map(|(_, key, _)| token(key)).collect()
}

/// The wrong answer, which [`check_wrong_answers`] has seen to.
fn wrong(key: &Key) -> u32 {
    key.wrong.unwrap_or(key.correct)
}

/// Σ over the batch's examples of the mean over an example's keys of values [keys, 1].
pub(crate) fn sum_of_means(values: &Tensor, batch: &Batch) -> Result<Tensor> {
    let weights: Vec<f64> = (batch.keys())
        .map(|(example, ..)| 1.0 / batch.examples[example].keys.len() as f64)
        .collect();
    let weights = Tensor::new(weights, values.device())?.unsqueeze(1)?.to_dtype(values.dtype())?;
    Ok((values * weights)?.sum_all()?)
}

/// Refuses an example without keys.
pub(crate) fn check_keys(example: &Example) -> Result<()> {
    if example.keys.is_empty() {
        refuse!("there are no key positions");
    }
    Ok(())
}

/// Refuses an example without keys, or with a key that has no wrong answer.
pub(crate) fn check_wrong_answers(example: &Example) -> Result<()> {
    check_keys(example)?;
    if example.keys.iter().any(|key| key.wrong.is_none()) {
        refuse!("a key position has no wrong answer to compare with");
    }
    Ok(())
}
