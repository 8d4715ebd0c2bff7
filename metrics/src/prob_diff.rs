//! Σp(right) − Σp(wrong) at each key position, averaged over an example's key positions, then over
//! examples (Hanna et al., 2023, arXiv 2305.00586).

use circuit_framework::evaluation::answers::{self, Side};
use circuit_framework::{Batch, Example, PatchingMetric, Readout, Result, Tensor, register};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct ProbDiff {}

impl PatchingMetric for ProbDiff {
    fn sum(&self, readout: &Readout, batch: &Batch) -> Result<Tensor> {
        let keys: Vec<_> = batch.keys().collect();
        let log_probs = answers::log_probs(&answers::all_logits(readout, &keys)?)?;
        let of =
            |side| -> Result<Tensor> { Ok(answers::log_prob_of(&log_probs, &keys, side)?.exp()?) };
        answers::sum_of_means(&(of(Side::Right)? - of(Side::Wrong)?)?, batch)
    }

    fn check(&self, example: &Example) -> Result<()> {
        answers::check_wrong_answers(example)
    }
}

register!(dyn PatchingMetric, ProbDiff, "prob_diff", "Σp(right) − Σp(wrong) at the key positions");
