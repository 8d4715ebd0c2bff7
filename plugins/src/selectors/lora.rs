//! Low-rank adapters beside whole projections (Hu et al., 2021, arXiv 2106.09685): the baseline that
//! fine-tunes few parameters without a circuit. No circuit is discovered for it.

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
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, dropout: 0.0, targets: vec![ALL.to_owned()] }
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

    fn lora(&self) -> Option<Lora> {
        Some(Lora { rank: self.rank, alpha: self.alpha, dropout: self.dropout })
    }

    fn needs_circuit(&self) -> bool {
        false
    }
}

register!(
    dyn ParamSelector,
    LoraOptions,
    "lora",
    "low-rank adapters beside whole projections, in PEFT's layout"
);
