//! Right against wrong answers at the key positions, for the metrics that compare them.

use circuit_framework::{Batch, Example, Result, Tensor, refuse};

/// Σ over the batch's examples of the mean over an example's keys of value(correct) − value(wrong);
/// `values` [keys, vocabulary], a row for each of [`Batch::keys`].
pub(crate) fn sum_of_differences(values: &Tensor, batch: &Batch) -> Result<Tensor> {
    let device = values.device();
    let (mut correct, mut wrong, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for (example, key, _) in batch.keys() {
        correct.push(key.correct);
        wrong.push(key.wrong.unwrap_or(key.correct));
        weights.push(1.0 / batch.examples[example].keys.len() as f64);
    }
    let column = |answers: Vec<u32>| Tensor::new(answers, device)?.unsqueeze(1);
    let difference = (values.gather(&column(correct)?, 1)? - values.gather(&column(wrong)?, 1)?)?;
    let weights = Tensor::new(weights, device)?.unsqueeze(1)?.to_dtype(values.dtype())?;
    Ok((difference * weights)?.sum_all()?)
}

/// The rows at which the batch's key tokens are predicted.
pub(crate) fn key_rows(batch: &Batch) -> Vec<u32> {
    batch.keys().map(|(_, _, row)| row).collect()
}

/// Refuses an example without keys, or with a key that has no wrong answer.
pub(crate) fn check(metric: &str, example: &Example) -> Result<()> {
    if example.keys.is_empty() {
        refuse!("metric `{metric}` needs key positions; metric `loss` does not");
    }
    if example.keys.iter().any(|key| key.wrong.is_none()) {
        refuse!(
            "metric `{metric}` needs a wrong answer at each key position; metric `loss` does not"
        );
    }
    Ok(())
}
