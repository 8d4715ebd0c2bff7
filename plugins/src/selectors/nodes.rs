//! The rows that the circuit's nodes own: a writer its rows of the output projection, a reader its
//! rows of the projection it reads through and of that projection's bias (arXiv 2502.06106).

use circuit_framework::{Circuit, Model, ParamSelector, Result, Selection, register};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Nodes {}

impl ParamSelector for Nodes {
    fn select(&self, circuit: &Circuit, model: &dyn Model, _seed: u64) -> Result<Selection> {
        Ok(owned(circuit, model))
    }
}

/// The rows that a circuit's nodes own.
pub(super) fn owned(circuit: &Circuit, model: &dyn Model) -> Selection {
    let owners = circuit.owners();
    Selection::blocks(model.parameters(), |_, block| owners.contains(&block.owner))
}

register!(dyn ParamSelector, Nodes, "nodes", "the rows that the circuit's nodes own");
