//! The share of keys for which the likeliest of all tokens is a right answer. A share of
//! hits has no gradient, so this only measures.

use circuit_framework::{
    Evaluation, Example, MeasuringMetric, Result, evaluation::answers, register,
};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Accuracy {}

impl MeasuringMetric for Accuracy {
    fn measure(&self, evaluation: &Evaluation, examples: &[Example]) -> Result<f64> {
        let (mut hits, mut keys) = (0, 0);
        evaluation.for_each_batch(examples, |_, batch, readout| {
            let here: Vec<_> = batch.keys().collect();
            let likeliest = answers::all_logits(readout, &here)?.argmax(1)?.to_vec1::<u32>()?;
            hits += here
                .iter()
                .zip(&likeliest)
                .filter(|((_, key, _), t)| key.correct.contains(t))
                .count();
            keys += likeliest.len();
            Ok(())
        })?;
        Ok(hits as f64 / keys as f64)
    }

    fn check(&self, example: &Example) -> Result<()> {
        answers::check_keys(example)
    }
}

register!(
    dyn MeasuringMetric,
    Accuracy,
    "accuracy",
    "the share of keys for which the likeliest token is a right answer"
);
