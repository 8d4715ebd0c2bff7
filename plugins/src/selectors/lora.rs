//! Low-rank adapters beside whole projections (Hu et al., 2021, arXiv 2106.09685): the baseline that
//! fine-tunes few parameters without a circuit. No circuit is discovered for it.
//!
//! With `rank_by = "edge_change"` layers whose edges an earlier run changed more get adapters of higher rank (Wang
//! et al., 2025, arXiv 2502.11812). The paper gives a few layers one higher rank; here a layer's rank grows with its
//! changes, and all layers together have the rank that they would have evenly, so that as many parameters are tuned.

use std::path::{Path, PathBuf};

use circuit_framework::graph::comparison::Comparison;
use circuit_framework::{Circuit, Lora, Model, ParamSelector, Result, Selection, refuse, register};
use serde::{Deserialize, Serialize};

/// What every linear map of the model is called, in PEFT's settings and here.
const ALL: &str = "all-linear";

/// The adapters' size and place.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct LoraOptions {
    /// r: the adapters' rank.
    rank: usize,
    /// α: an adapter's output is multiplied by α/r.
    alpha: f64,
    /// The share of its inputs that an adapter doesn't see in a training pass.
    dropout: f64,
    /// The projections, by the last part of their Hugging Face names, or `all-linear`.
    targets: Vec<String>,
    /// How layers share the rank: `even`, each has `rank`, or `edge_change`, by how many edges into a layer were
    /// in only one of the circuits before and after the run `change_of`. The mean over layers is `rank`.
    rank_by: RankBy,
    /// The folder of an earlier run, for `edge_change`.
    #[serde(skip_serializing_if = "Option::is_none")]
    change_of: Option<PathBuf>,
}

/// How layers share the rank.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
enum RankBy {
    /// Each has the same.
    #[default]
    Even,
    /// Those whose edges changed more have more.
    EdgeChange,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            targets: vec![ALL.to_owned()],
            rank_by: RankBy::Even,
            change_of: None,
        }
    }
}

impl ParamSelector for LoraOptions {
    fn select(&self, _circuit: &Circuit, model: &dyn Model, _seed: u64) -> Result<Selection> {
        let projections = model.projections();
        let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
        for target in self.targets.iter().filter(|target| *target != ALL) {
            if projections.iter().all(|projection| last(&projection.name) != *target) {
                let mut known: Vec<String> =
                    projections.iter().map(|projection| last(&projection.name)).collect();
                known.sort();
                known.dedup();
                refuse!(
                    "selector.targets: the model has no projection `{target}`; known: {ALL}, {}",
                    known.join(", ")
                );
            }
        }
        let wanted =
            |name: &str| self.targets.iter().any(|target| target == ALL || *target == last(name));
        Ok(Selection::blocks(model.parameters(), |id, block| {
            (projections.iter()).any(|projection| {
                projection.parameter == id
                    && projection.contains(&block.rows)
                    && wanted(&projection.name)
            })
        }))
    }

    fn lora(&self, model: &dyn Model) -> Result<Option<Lora>> {
        let layers = match (self.rank_by, &self.change_of) {
            (RankBy::Even, None) => Vec::new(),
            (RankBy::EdgeChange, Some(run)) => ranks(&changes(run, model)?, self.rank),
            (RankBy::Even, Some(_)) => {
                refuse!(
                    "selector.change_of goes with selector.rank_by = \"edge_change\"; leave it out"
                )
            }
            (RankBy::EdgeChange, None) => refuse!(
                "selector.rank_by = \"edge_change\" needs an earlier run's circuits; write selector.change_of = \
                 \"runs/NAME\""
            ),
        };
        let Self { rank, alpha, dropout, .. } = *self;
        Ok(Some(Lora { rank, alpha, dropout, layers }))
    }

    fn needs_circuit(&self) -> bool {
        false
    }
}

/// Returns for each layer how many edges into it are in only one of a run's circuits, before and after.
fn changes(run: &Path, model: &dyn Model) -> Result<Vec<usize>> {
    let circuit = |when: &str| {
        let file = run.join(format!("circuit-{when}.json"));
        if !file.is_file() {
            refuse!(
                "{}: is not there; selector.change_of wants the folder of a finished run that found its circuits: its \
                 selector needs one, or analyses = [\"roles\"] does",
                file.display()
            );
        }
        Circuit::load(&file, model, model.graph())
    };
    let comparison = Comparison::of(&circuit("before")?, &circuit("after")?);
    let layers = model.graph().writers().iter().filter_map(|node| node.layer()).max();
    let mut changes = vec![0; layers.map_or(0, |last| last + 1)];
    for (layer, counts) in comparison.by_layer() {
        if let Some(change) = layer.and_then(|layer| changes.get_mut(layer)) {
            *change = counts.first_only + counts.second_only;
        }
    }
    Ok(changes)
}

/// Returns a rank for each layer: 1, and a share of what is left of `rank` a layer in proportion to its change. What
/// whole numbers leave over goes to the layers with the largest remainders, of those to the first.
fn ranks(changes: &[usize], rank: usize) -> Vec<usize> {
    let all: usize = changes.iter().sum();
    if all == 0 || rank == 0 {
        return vec![rank; changes.len()];
    }
    let left = (rank - 1) * changes.len();
    let mut ranks: Vec<usize> = changes.iter().map(|change| 1 + left * change / all).collect();
    let mut order: Vec<usize> = (0..changes.len()).collect();
    order.sort_by_key(|&layer| std::cmp::Reverse(left * changes[layer] % all));
    let over = rank * changes.len() - ranks.iter().sum::<usize>();
    order.iter().take(over).for_each(|&layer| ranks[layer] += 1);
    ranks
}

register!(
    dyn ParamSelector,
    LoraOptions,
    "lora",
    "low-rank adapters beside whole projections, in PEFT's layout"
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranks_by_hand() {
        assert_eq!(ranks(&[0, 0, 0], 3), [3, 3, 3]);
        assert_eq!(ranks(&[6, 0, 2], 3), [6, 1, 2]);
        // 2 of 3 changes are 2 2/3 of 4, 1 is 1 1/3.
        assert_eq!(ranks(&[1, 2], 3), [2, 4]);
    }

    proptest! {
        /// The ranks add up to the even ones, so that as many parameters are tuned; no layer is without an adapter,
        /// and one that changed more has no lower rank.
        #[test]
        fn ranks_have_the_even_ones_sum(changes in prop::collection::vec(0..40usize, 1..12), rank in 1..20usize) {
            let ranks = ranks(&changes, rank);
            prop_assert_eq!(ranks.iter().sum::<usize>(), rank * changes.len());
            prop_assert!(ranks.iter().all(|&rank| rank >= 1));
            for (a, change_a) in ranks.iter().zip(&changes) {
                for (b, change_b) in ranks.iter().zip(&changes) {
                    prop_assert!(change_a <= change_b || a >= b, "{ranks:?} of {changes:?}");
                }
            }
        }
    }
}
