//! EAP with the gradient averaged over the clean and the counterfactual run, both against the clean
//! answers (EAP-IG's `clean-corrupted`).

use circuit_framework::attribution::{
    AttributionMethod, Needs, Run, Scoring, counterfactual_tokens,
};
use circuit_framework::{Batch, Result, register};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct CleanCorrupted {}

impl AttributionMethod for CleanCorrupted {
    fn needs(&self) -> Needs {
        Needs { counterfactual: true, ..Needs::default() }
    }

    fn add(&self, scoring: &mut Scoring, batch: &Batch) -> Result<Option<Run>> {
        let observation = scoring.observe(batch, true)?;
        let pass = scoring.watching(&observation, scoring.pass_with_gradients()?);
        let readout = scoring.model.forward(&pass, &batch.tokens)?;
        let difference = scoring.difference(observation)?;
        let share = scoring.share_of_mean(&readout, batch)?;
        scoring.count(&share)?;
        scoring.add_gradients(&pass, &share, batch, &difference, 0.5)?;
        let pass = scoring.pass_with_gradients()?;
        let corrupted = counterfactual_tokens(scoring.model, batch)?;
        let readout = scoring.model.forward(&pass, &corrupted)?;
        let share = scoring.share_of_mean(&readout, batch)?;
        scoring.add_gradients(&pass, &share, batch, &difference, 0.5)?;
        Ok(None)
    }
}

register!(
    dyn AttributionMethod,
    CleanCorrupted,
    "clean-corrupted",
    "EAP, its gradient averaged over the clean and the counterfactual run"
);
