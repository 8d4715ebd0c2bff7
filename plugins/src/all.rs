//! Everything, shared parameters too: full fine-tuning. No circuit is discovered for it.

use circuit_framework::{
    Circuit, Model, Options, ParamSelector, Plugin, Result, Selection, inventory, origin,
};
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

impl Options<dyn ParamSelector> for All {
    fn build(self) -> Result<Box<dyn ParamSelector>> {
        Ok(Box::new(self))
    }
}

inventory::submit! {
    Plugin::<dyn ParamSelector>::new::<All>("all", "every parameter: full fine-tuning", origin!())
}
