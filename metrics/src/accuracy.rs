//! The share of key tokens for which the right answer is the likeliest of all tokens. A share of
//! hits has no gradient, so this only reports.

use circuit_framework::{
    Evaluation, Example, Options, Plugin, ReportMetric, Result, inventory, origin,
};
use serde::{Deserialize, Serialize};

use crate::answers;

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Accuracy {}

impl ReportMetric for Accuracy {
    fn measure(&self, evaluation: &Evaluation, examples: &[Example]) -> Result<f64> {
        let (mut hits, mut keys) = (0, 0);
        evaluation.for_each_batch(examples, |_, batch, readout| {
            let likeliest = answers::logits(readout, batch)?.argmax(1)?.to_vec1::<u32>()?;
            hits +=
                batch.keys().zip(&likeliest).filter(|((_, key, _), t)| key.correct == **t).count();
            keys += likeliest.len();
            Ok(())
        })?;
        Ok(hits as f64 / keys as f64)
    }

    fn check(&self, example: &Example) -> Result<()> {
        answers::check_keys(example)
    }
}

impl Options<dyn ReportMetric> for Accuracy {
    fn build(self) -> Result<Box<dyn ReportMetric>> {
        Ok(Box::new(self))
    }
}

inventory::submit! {
    Plugin::<dyn ReportMetric>::new::<Accuracy>(
        "accuracy", "the share of key tokens whose right answer is the likeliest token", origin!(),
    )
}
