//! Everything, shared parameters too: full fine-tuning. No circuit is discovered for it.

use circuit_framework::{Circuit, Model, ParamSelector, Result, Selection, register};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct All {}

impl ParamSelector for All {
    fn select(&self, _circuit: &Circuit, model: &dyn Model, _seed: u64) -> Result<Selection> {
        Ok(Selection::blocks(model.parameters(), |_, _| true))
    }

    fn needs_circuit(&self) -> bool {
        false
    }
}

register!(dyn ParamSelector, All, "all", "every parameter: full fine-tuning");
