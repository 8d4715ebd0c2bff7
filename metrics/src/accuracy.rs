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
        let [hits, keys] = evaluation.sums(examples, |batch, readout| {
            let keys: Vec<_> = batch.keys().collect();
            let likeliest = answers::all_logits(readout, &keys)?.argmax(1)?.to_vec1::<u32>()?;
            let hits = (keys.iter().zip(&likeliest))
                .filter(|((_, key, _), token)| key.correct.contains(token))
                .count();
            Ok([hits as f64, keys.len() as f64])
        })?;
        Ok(hits / keys)
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
