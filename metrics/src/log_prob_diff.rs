//! log p(correct) − log p(wrong) at each key position. The normaliser cancels, so this is
//! [`logit_diff`](crate::logit_diff) with the same gradient; it is there under the name papers use.

use circuit_framework::{
    Batch, Example, Options, PatchingMetric, Plugin, Readout, Result, Tensor, inventory, origin,
};
use serde::{Deserialize, Serialize};

use crate::answers;

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct LogProbDiff {}

impl PatchingMetric for LogProbDiff {
    fn sum(&self, readout: &Readout, batch: &Batch) -> Result<Tensor> {
        let log_probs = answers::log_probs(&answers::logits(readout, batch)?)?;
        answers::sum_of_means(&answers::correct_less_wrong(&log_probs, batch)?, batch)
    }

    fn check(&self, example: &Example) -> Result<()> {
        answers::check_wrong_answers(example)
    }
}

impl Options<dyn PatchingMetric> for LogProbDiff {
    fn build(self) -> Result<Box<dyn PatchingMetric>> {
        Ok(Box::new(self))
    }
}

inventory::submit! {
    Plugin::<dyn PatchingMetric>::new::<LogProbDiff>(
        "log_prob_diff", "log p(correct) − log p(wrong) at the key positions", origin!(),
    )
}
