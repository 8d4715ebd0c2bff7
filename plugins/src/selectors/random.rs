//! As many nodes of each kind as the circuit has, drawn at random: the control that tells what the
//! circuit is worth. The order in which nodes are drawn depends on the seed alone, so the same nodes
//! are tuned throughout, and as many parameters as with `nodes`.

use std::collections::{BTreeMap, BTreeSet};

use circuit_framework::graph::{Kind, Port};
use circuit_framework::{Circuit, Graph, Model, Owner, ParamSelector, Result, Selection, register};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Random {}

impl ParamSelector for Random {
    fn select(&self, circuit: &Circuit, model: &dyn Model, seed: u64) -> Result<Selection> {
        let mut wanted: BTreeMap<Sort, usize> = BTreeMap::new();
        for owner in circuit.owners() {
            *wanted.entry(sort_of(owner)).or_default() += 1;
        }
        let mut drawn = BTreeSet::new();
        for owner in shuffled(model.graph(), seed) {
            if let Some(missing @ 1..) = wanted.get_mut(&sort_of(owner)) {
                *missing -= 1;
                drawn.insert(owner);
            }
        }
        Ok(Selection::blocks(model.parameters(), |_, block| drawn.contains(&block.owner)))
    }
}

/// Nodes that own as many parameters as each other: writers of a kind, readers of a kind and port.
type Sort = (Option<Kind>, Option<Port>);

fn sort_of(owner: Owner) -> Sort {
    match owner {
        Owner::Writer(node) => (Some(node.kind()), None),
        Owner::Reader(input) => (Some(input.node.kind()), Some(input.port)),
        Owner::Shared => (None, None),
    }
}

/// Every writer and every reader of the graph, in an order drawn with the seed.
fn shuffled(graph: &Graph, seed: u64) -> Vec<Owner> {
    let writers = graph.writers().iter().map(|&node| Owner::Writer(node));
    let readers = graph.readers().iter().map(|&input| Owner::Reader(input));
    let mut owners: Vec<Owner> = writers.chain(readers).collect();
    owners.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    owners
}

register!(
    dyn ParamSelector,
    Random,
    "random",
    "as many nodes of each kind as the circuit has, drawn with the seed: a control"
);
