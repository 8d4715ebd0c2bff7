//! As many rows as the circuit's nodes own, drawn at random from those of all nodes: the control that asks
//! whether it matters which nodes are tuned, and whether whole ones. The seed draws a permutation of the rows
//! of one width, and a row stands for its image at every step: so at each step, and over all steps
//! together, as many parameters are tuned as through the circuit.

use std::collections::BTreeMap;

use circuit_framework::tuning::selector::Reference;
use circuit_framework::weights::parameters::ParamId;
use circuit_framework::{Circuit, Model, Owner, ParamSelector, Result, Selection, register};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::nodes::owned;

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct RandomParameters {}

impl ParamSelector for RandomParameters {
    fn select(&self, circuit: &Circuit, model: &dyn Model, seed: u64) -> Result<Selection> {
        Ok(drawn(&owned(circuit, model), model, seed))
    }

    fn control(&self, tuned: &Reference, model: &dyn Model, seed: u64) -> Result<Selection> {
        Ok(drawn(tuned.selection, model, seed))
    }
}

/// The images of the rows selected; rows that no node owns stay.
fn drawn(selection: &Selection, model: &dyn Model, seed: u64) -> Selection {
    let parameters = model.parameters();
    let mut selected: Vec<Vec<bool>> =
        parameters.iter().map(|(_, parameter)| vec![false; parameter.rows()]).collect();
    for (id, _) in parameters.iter() {
        selection.ranges(id).iter().cloned().for_each(|rows| selected[id.0][rows].fill(true));
    }
    let mut chosen = selected.clone();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for rows in owned_rows(model).into_values() {
        let mut images = rows.clone();
        images.shuffle(&mut random);
        for (&(id, row), &(image_id, image)) in rows.iter().zip(&images) {
            chosen[image_id.0][image] = selected[id.0][row];
        }
    }
    Selection::rows_where(parameters, |id, row| chosen[id.0][row])
}

/// Every row that a node owns, by its width.
fn owned_rows(model: &dyn Model) -> BTreeMap<usize, Vec<(ParamId, usize)>> {
    let mut all: BTreeMap<usize, Vec<(ParamId, usize)>> = BTreeMap::new();
    for (id, parameter) in model.parameters().iter() {
        let owned = parameter.blocks.iter().filter(|block| block.owner != Owner::Shared);
        let rows = owned.flat_map(|block| block.rows.clone()).map(|row| (id, row));
        all.entry(parameter.width()).or_default().extend(rows);
    }
    all
}

register!(
    dyn ParamSelector,
    RandomParameters,
    "random_parameters",
    "as many rows as the circuit's nodes own, drawn from all nodes' with the seed: a control"
);
