//! As many nodes of each kind in each layer as the circuit has, drawn at random: the control that tells what
//! the circuit is worth. The seed draws a permutation of the nodes of a kind in a layer, and a node's rows
//! stand for its image's, at every step: so at each step, and over all steps together, as many parameters
//! are tuned as through the circuit.

use std::collections::BTreeMap;

use circuit_framework::graph::{Kind, Port};
use circuit_framework::tuning::selector::Reference;
use circuit_framework::weights::parameters::ParamId;
use circuit_framework::{
    Circuit, Graph, Model, Owner, ParamSelector, Parameters, Result, Selection, register,
};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::nodes::owned;

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Random {}

impl ParamSelector for Random {
    fn select(&self, circuit: &Circuit, model: &dyn Model, seed: u64) -> Result<Selection> {
        Ok(drawn(&owned(circuit, model), model, seed))
    }

    fn control(&self, tuned: &Reference, model: &dyn Model, seed: u64) -> Result<Selection> {
        Ok(drawn(tuned.selection, model, seed))
    }
}

/// The rows in the place of those selected, in the nodes that the permutation puts in the place of theirs.
fn drawn(selection: &Selection, model: &dyn Model, seed: u64) -> Selection {
    let parameters = model.parameters();
    let images = permutation(model.graph(), seed);
    let mut chosen = Vec::new();
    for (id, parameter) in parameters.iter() {
        for block in &parameter.blocks {
            for range in selection.ranges(id) {
                let rows = range.start.max(block.rows.start)..range.end.min(block.rows.end);
                if rows.is_empty() {
                    continue;
                }
                let image = images.get(&block.owner).unwrap_or(&block.owner);
                // Nodes of a kind and layer own alike blocks of the same parameters.
                let to = first_row(parameters, id, *image, block.module);
                let to = to.unwrap_or(block.rows.start) + rows.start - block.rows.start;
                chosen.push((id, to..to + rows.len()));
            }
        }
    }
    Selection::of_rows(parameters, chosen)
}

/// Where the block of an owner in a module of a parameter begins.
fn first_row(parameters: &Parameters, id: ParamId, owner: Owner, module: usize) -> Option<usize> {
    let mut blocks = parameters.get(id).blocks.iter();
    let block = blocks.find(|block| block.owner == owner && block.module == module)?;
    Some(block.rows.start)
}

/// Nodes that own as many parameters as each other: writers of a kind and layer, readers of a kind, layer
/// and port.
type Sort = (Kind, Option<usize>, Option<Port>);

/// What stands in the place of each writer and each reader: a permutation of every sort, drawn with the seed.
fn permutation(graph: &Graph, seed: u64) -> BTreeMap<Owner, Owner> {
    let mut sorts: BTreeMap<Sort, Vec<Owner>> = BTreeMap::new();
    for &node in graph.writers() {
        sorts.entry((node.kind(), node.layer(), None)).or_default().push(Owner::Writer(node));
    }
    for &input in graph.readers() {
        let sort = (input.node.kind(), input.node.layer(), Some(input.port));
        sorts.entry(sort).or_default().push(Owner::Reader(input));
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut images = BTreeMap::new();
    for owners in sorts.into_values() {
        let mut shuffled = owners.clone();
        shuffled.shuffle(&mut random);
        images.extend(owners.into_iter().zip(shuffled));
    }
    images
}

register!(
    dyn ParamSelector,
    Random,
    "random",
    "as many nodes of each kind and layer as the circuit has, drawn with the seed: a control"
);
