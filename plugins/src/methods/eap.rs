//! Edge attribution patching (Syed et al., 2023, arXiv 2310.10348): the gradient is taken on the clean
//! run. Tuning goes on with that run.

use circuit_framework::attribution::{AttributionMethod, Run, Scoring};
use circuit_framework::{Batch, Result, register};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Eap {}

impl AttributionMethod for Eap {
    fn add(&self, scoring: &mut Scoring, batch: &Batch) -> Result<Option<Run>> {
        let observation = scoring.observe(batch, false)?;
        let pass = scoring.watching(&observation, scoring.pass_with_gradients()?);
        let readout = scoring.model.forward(&pass, &batch.tokens)?;
        let difference = scoring.difference(observation)?;
        let share = scoring.share_of_mean(&readout, batch)?;
        scoring.count(&share)?;
        let captured = scoring.add_gradients(&pass, &share, batch, &difference, 1.0)?;
        Ok(Some(Run { pass, readout, share, captured }))
    }
}

register!(
    dyn AttributionMethod,
    Eap,
    "eap",
    "edge attribution patching: the gradient on the clean run"
);
