//! The right answers' mean logit less the wrong ones' at each key position, averaged over an example's
//! key positions, then over examples (Wang et al., 2022, arXiv 2211.00593).

use circuit_framework::{
    Batch, Example, PatchingMetric, Readout, Result, Tensor, evaluation::answers, register,
};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct LogitDiff {}

impl PatchingMetric for LogitDiff {
    fn sum(&self, readout: &Readout, batch: &Batch) -> Result<Tensor> {
        let keys: Vec<_> = batch.keys().collect();
        answers::sum_of_means(&answers::logit_differences(readout, &keys)?, batch)
    }

    fn check(&self, example: &Example) -> Result<()> {
        answers::check_wrong_answers(example)
    }
}

register!(
    dyn PatchingMetric,
    LogitDiff,
    "logit_diff",
    "the right answers' mean logit less the wrong ones'"
);
