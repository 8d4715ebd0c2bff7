//! KL(untuned ‖ tuned) of the next token's distribution, in nats: how far tuning has moved the model.
//! Its gradient is zero at the untuned model, so nothing can be discovered with it and it only
//! reports.

use candle_core::DType;
use circuit_framework::attribution::Positions;
use circuit_framework::{
    Batch, Evaluation, Example, MeasuringMetric, Readout, Result, Tensor, evaluation::answers,
    refuse, register,
};
use serde::{Deserialize, Serialize};

/// Where the distributions are compared.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct KlDivergence {
    /// Where a key token is predicted (`key`), or wherever the loss is taken (`all`).
    positions: Positions,
}

/// Log-probabilities that are kept at once: a quarter of a gigabyte in float32.
const KEPT: usize = 1 << 26;

impl KlDivergence {
    fn rows(&self, batch: &Batch) -> Vec<u32> {
        match self.positions {
            Positions::Key => batch.keys().map(|(_, _, row)| row).collect(),
            Positions::All => batch.predicted().map(|(_, _, row)| row).collect(),
        }
    }

    /// The number of places in an example where the distributions are compared.
    fn places(&self, example: &Example) -> usize {
        match self.positions {
            Positions::Key => example.keys.len(),
            Positions::All => example.predicted.len(),
        }
    }

    /// log p [places, vocabulary] of a batch.
    fn log_probs(&self, batch: &Batch, readout: &Readout) -> Result<Tensor> {
        answers::log_probs(&readout.logits(&self.rows(batch))?)
    }

    /// KL summed over the places of some examples. The untuned weights are put in place once.
    fn sum(&self, evaluation: &Evaluation, examples: &[Example]) -> Result<f64> {
        let mut untuned = Vec::new();
        evaluation.untuned(|| {
            evaluation.sums(examples, |batch, readout| {
                untuned.push(self.log_probs(batch, readout)?);
                Ok([])
            })
        })?;
        let mut untuned = untuned.into_iter();
        let [sum] = evaluation.sums(examples, |batch, readout| {
            let tuned = self.log_probs(batch, readout)?;
            let Some(untuned) = untuned.next() else {
                refuse!(
                    "kl_divergence: the model was run on fewer batches before tuning than after"
                );
            };
            let terms: Tensor = (untuned.exp()? * (&untuned - tuned)?)?;
            Ok([terms.to_dtype(DType::F64)?.sum_all()?.to_scalar()?])
        })?;
        Ok(sum)
    }
}

impl MeasuringMetric for KlDivergence {
    fn measure(&self, evaluation: &Evaluation, examples: &[Example]) -> Result<f64> {
        if evaluation.untuned.is_none() {
            return Ok(0.0);
        }
        let most = KEPT / evaluation.model.vocabulary();
        let mut sum = 0.0;
        for portion in portions(examples, most, |example| self.places(example)) {
            sum += self.sum(evaluation, portion)?;
        }
        let places: usize = examples.iter().map(|example| self.places(example)).sum();
        Ok(sum / places as f64)
    }

    fn check(&self, example: &Example) -> Result<()> {
        match self.positions {
            Positions::Key => answers::check_keys(example),
            Positions::All => Ok(()),
        }
    }

    fn needs_untuned(&self) -> bool {
        true
    }
}

/// Successive examples with at most so many places together, or a single one with more.
fn portions(
    examples: &[Example],
    most: usize,
    places: impl Fn(&Example) -> usize,
) -> Vec<&[Example]> {
    let (mut portions, mut start, mut sum) = (Vec::new(), 0, 0);
    for (index, example) in examples.iter().enumerate() {
        if index > start && sum + places(example) > most {
            portions.push(&examples[start..index]);
            (start, sum) = (index, 0);
        }
        sum += places(example);
    }
    portions.push(&examples[start..]);
    portions
}

register!(
    dyn MeasuringMetric,
    KlDivergence,
    "kl_divergence",
    "KL(untuned ‖ tuned) of the next token's distribution, in nats"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_are_as_large_as_they_may_be() {
        let example = |length: usize| Example {
            tokens: vec![0; length],
            predicted: 0..length,
            keys: Vec::new(),
            origin: String::new(),
            ..Example::default()
        };
        let examples: Vec<Example> = [2, 3, 1, 9, 4, 1].map(example).into();
        let lengths = |most: usize| -> Vec<usize> {
            let portions = portions(&examples, most, |example| example.predicted.len());
            portions.iter().map(|portion| portion.len()).collect()
        };
        assert_eq!(lengths(5), [2, 1, 1, 2]);
        assert_eq!(lengths(0), [1; 6]);
        assert_eq!(lengths(usize::MAX), [6]);
    }
}
