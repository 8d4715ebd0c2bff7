//! What the circuit's own run tuned at its first step, tuned at every step: what following the circuit as it
//! changes is worth. A control and nothing else; it tunes as many parameters a step as that run did at its first,
//! and over all steps no others.

use circuit_framework::tuning::selector::Reference;
use circuit_framework::{Circuit, Model, ParamSelector, Result, Selection, refuse, register};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Static {}

impl ParamSelector for Static {
    fn select(&self, _circuit: &Circuit, _model: &dyn Model, _seed: u64) -> Result<Selection> {
        refuse!(
            "selector `static` is a control; write controls.kinds = [\"static\"], or for a run whose circuit stays \
             tuning.rediscover_every = 0"
        )
    }

    fn control(&self, tuned: &Reference, _model: &dyn Model, _seed: u64) -> Result<Selection> {
        Ok(tuned.first.clone())
    }

    fn is_control(&self) -> bool {
        true
    }
}

register!(
    dyn ParamSelector,
    Static,
    "static",
    "what the circuit's run tunes at its first step, at every step: a control"
);
