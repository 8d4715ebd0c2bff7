//! The whole projection (query, key, value, output, gate, up, down) of a layer as soon as one of the
//! circuit's nodes owns rows of it.

use std::collections::BTreeSet;

use circuit_framework::{Circuit, Model, ParamSelector, Result, Selection, register};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Modules {}

impl ParamSelector for Modules {
    fn select(&self, circuit: &Circuit, model: &dyn Model, _seed: u64) -> Result<Selection> {
        let owners = circuit.owners();
        let mut modules = BTreeSet::new();
        for (id, parameter) in model.parameters().iter() {
            let blocks = parameter.blocks.iter().filter(|block| owners.contains(&block.owner));
            modules.extend(blocks.map(|block| (id, block.module)));
        }
        Ok(Selection::blocks(model.parameters(), |id, block| modules.contains(&(id, block.module))))
    }
}

register!(
    dyn ParamSelector,
    Modules,
    "modules",
    "a layer's whole projection as soon as one of the circuit's nodes is in it"
);
