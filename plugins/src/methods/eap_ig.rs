//! EAP with integrated gradients (Hanna et al., 2024, arXiv 2403.17806): the gradient is averaged over
//! inputs between the counterfactual's embeddings and the clean ones, `discovery.ig_steps` of them: at
//! corrupted + k/steps · (clean − corrupted), k = 0 … steps − 1.

use circuit_framework::attribution::{AttributionMethod, Needs, Run, Scoring};
use circuit_framework::pass::{Replacement, Written};
use circuit_framework::{Batch, Pass, Result, register};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct EapIg {}

impl AttributionMethod for EapIg {
    fn needs(&self) -> Needs {
        Needs { counterfactual: true, ..Needs::default() }
    }

    fn add(&self, scoring: &mut Scoring, batch: &Batch) -> Result<Option<Run>> {
        let observation = scoring.observe(batch, true)?;
        let pass = scoring.watching(&observation, Pass::forward_only());
        let readout = scoring.model.forward(&pass, &batch.tokens)?;
        scoring.count(&scoring.share_of_mean(&readout, batch)?)?;
        let [corrupted, clean] = observation.embeddings()?;
        let difference = scoring.difference(observation)?;
        let steps = scoring.options.ig_steps;
        for step in 0..steps {
            let share = step as f64 / steps as f64;
            let input = (corrupted.affine(1.0 - share, 0.0)? + clean.affine(share, 0.0)?)?;
            let pass = scoring.pass_with_gradients()?.replacing(move |written| {
                let is_embedding = matches!(written, Written::Embedding { .. });
                Ok(is_embedding.then(|| Replacement::Site(input.clone())))
            });
            let readout = scoring.model.forward(&pass, &batch.tokens)?;
            let share = scoring.share_of_mean(&readout, batch)?;
            scoring.add_gradients(&pass, &share, batch, &difference, 1.0 / steps as f64)?;
        }
        Ok(None)
    }
}

register!(
    dyn AttributionMethod,
    EapIg,
    "eap-ig",
    "EAP, its gradient averaged between the counterfactual input and the clean one"
);
