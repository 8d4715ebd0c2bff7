//! log Σp(right) − log Σp(wrong) at each key position, averaged over an example's key positions, then
//! over examples. Of single answers the normaliser leaves [`logit_diff`](crate::logit_diff), its gradient
//! too.

use circuit_framework::{
    Batch, Example, PatchingMetric, Readout, Result, Tensor, evaluation::answers, register,
};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct LogProbDiff {}

impl PatchingMetric for LogProbDiff {
    fn sum(&self, readout: &Readout, batch: &Batch) -> Result<Tensor> {
        let keys: Vec<_> = batch.keys().collect();
        answers::sum_of_means(&answers::log_odds(readout, &keys)?, batch)
    }

    fn check(&self, example: &Example) -> Result<()> {
        answers::check_wrong_answers(example)
    }
}

register!(
    dyn PatchingMetric,
    LogProbDiff,
    "log_prob_diff",
    "log Σp(right) − log Σp(wrong) at the key positions"
);
