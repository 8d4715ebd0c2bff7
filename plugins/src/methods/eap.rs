//! Edge attribution patching (Syed et al., 2023, arXiv 2310.10348): the gradient is taken on the clean
//! run. Tuning goes on with that run.

use circuit_framework::attribution::{Attribution, AttributionMethod, Discovered, Run, Scoring};
use circuit_framework::{Batch, Result, register};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Eap {}

impl AttributionMethod for Eap {
    fn start<'a>(&self, scoring: Scoring<'a>) -> Result<Box<dyn Attribution + 'a>> {
        Ok(Box::new(Scored(scoring)))
    }
}

/// A scoring under way.
struct Scored<'a>(Scoring<'a>);

impl Attribution for Scored<'_> {
    fn add(&mut self, batch: &Batch) -> Result<Option<Run>> {
        let scoring = &mut self.0;
        let observation = scoring.observe(batch, false)?;
        let pass = scoring.watching(&observation, scoring.pass_with_gradients()?);
        let readout = scoring.model.forward(&pass, &batch.tokens)?;
        let difference = scoring.difference(observation)?;
        let share = scoring.share_of_mean(&readout, batch)?;
        scoring.count(&share)?;
        let captured = scoring.add_gradients(&pass, &share, batch, &difference, 1.0)?;
        Ok(Some(Run { pass, readout, share, captured }))
    }

    fn metric(&self) -> f64 {
        self.0.metric()
    }

    fn finish(self: Box<Self>) -> Result<Discovered> {
        self.0.finish()
    }
}

register!(
    dyn AttributionMethod,
    Eap,
    "eap",
    "edge attribution patching: the gradient on the clean run"
);
