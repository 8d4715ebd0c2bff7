//! log Σp(right), averaged over an example's key tokens, then over examples: what `outcome` guidance
//! discovers the mathematics task with (arXiv 2502.06106, section 4.2).

use circuit_framework::evaluation::answers::{self, Side};
use circuit_framework::{Batch, Example, PatchingMetric, Readout, Result, Tensor, register};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct AnswerLogProb {}

impl PatchingMetric for AnswerLogProb {
    fn sum(&self, readout: &Readout, batch: &Batch) -> Result<Tensor> {
        let keys: Vec<_> = batch.keys().collect();
        let log_probs = answers::log_probs(&answers::all_logits(readout, &keys)?)?;
        answers::sum_of_means(&answers::log_prob_of(&log_probs, &keys, Side::Right)?, batch)
    }

    fn check(&self, example: &Example) -> Result<()> {
        answers::check_keys(example)
    }
}

register!(
    dyn PatchingMetric,
    AnswerLogProb,
    "answer_log_prob",
    "log Σp(right), the mean over the keys"
);
