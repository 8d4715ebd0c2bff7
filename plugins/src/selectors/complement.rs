//! The nodes that score lowest, up to as many parameters as the circuit's own run tunes at the step: what a
//! circuit has to do better than. A control and nothing else: the scores of all nodes come from that run.

use std::collections::BTreeMap;
use std::ops::Range;

use circuit_framework::tuning::selector::Reference;
use circuit_framework::weights::parameters::ParamId;
use circuit_framework::{
    Circuit, Model, Owner, ParamSelector, Result, Selection, refuse, register,
};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Complement {}

impl ParamSelector for Complement {
    fn select(&self, _circuit: &Circuit, _model: &dyn Model, _seed: u64) -> Result<Selection> {
        refuse!(
            "selector `complement` is a control, matched to a circuit; write controls.kinds = \
             [\"complement\"]"
        )
    }

    fn control(&self, tuned: &Reference, model: &dyn Model, _seed: u64) -> Result<Selection> {
        let Some(nodes) = tuned.nodes else {
            refuse!("control `complement` needs every node's score, and nothing was discovered");
        };
        let writers = nodes.writers.iter().map(|(&node, &score)| (score, Owner::Writer(node)));
        let readers = nodes.readers.iter().map(|(&input, &score)| (score, Owner::Reader(input)));
        let mut lowest: Vec<(f32, Owner)> = writers.chain(readers).collect();
        lowest.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let parameters = model.parameters();
        let owned = blocks_by_owner(model);
        let mut left = tuned.selection.count(parameters);
        let mut chosen = Vec::new();
        // Of the last node only the first rows are left.
        for (id, rows) in lowest.iter().filter_map(|(_, owner)| owned.get(owner)).flatten() {
            let width = parameters.get(*id).width();
            let fit = rows.len().min(left / width);
            chosen.push((*id, rows.start..rows.start + fit));
            left -= fit * width;
        }
        Ok(Selection::of_rows(parameters, chosen))
    }

    fn needs_node_scores(&self) -> bool {
        true
    }
}

/// The rows that each node owns.
fn blocks_by_owner(model: &dyn Model) -> BTreeMap<Owner, Vec<(ParamId, Range<usize>)>> {
    let mut all: BTreeMap<Owner, Vec<(ParamId, Range<usize>)>> = BTreeMap::new();
    for (id, parameter) in model.parameters().iter() {
        for block in parameter.blocks.iter().filter(|block| block.owner != Owner::Shared) {
            all.entry(block.owner).or_default().push((id, block.rows.clone()));
        }
    }
    all
}

register!(
    dyn ParamSelector,
    Complement,
    "complement",
    "the lowest-scored nodes, up to as many parameters as the circuit's run tunes: a control"
);
