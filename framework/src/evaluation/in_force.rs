//! A circuit alone in force: what of a model's passes is changed so that nothing but the circuit acts.
//! [`super::Evaluation`] puts it into every pass, so that it reaches every task and metric.

use crate::data::example::{Batch, Example};
use crate::evaluation::ablation::{AblatedValues, Ablation, values_over};
use crate::graph::edge_set::EdgeSet;
use crate::model::Model;
use crate::pass::{Ablated, AblatedEdges, Pass};
use crate::peers::Peers;
use crate::{Result, refuse};

/// A circuit that alone is in force: all other edges of the graph are ablated.
pub struct CircuitInForce {
    ablated: EdgeSet,
    ablation: Ablation,
    values: AblatedValues,
}

impl CircuitInForce {
    /// The circuit `kept` of the graph `all`. Means are of what the model writes on `examples`, run in
    /// batches of `batch_size`, which
    /// `peers` share.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn new(
        model: &dyn Model,
        (all, kept): (&EdgeSet, &EdgeSet),
        ablation: Ablation,
        examples: &[Example],
        batch_size: usize,
        peers: &dyn Peers,
    ) -> Result<Self> {
        let values = values_over(model, ablation, examples, batch_size, peers)?;
        Ok(Self { ablated: all.minus(kept), ablation, values })
    }

    /// The pass over a batch's tokens.
    pub(super) fn pass(&self, model: &dyn Model, batch: &Batch) -> Result<Pass> {
        batch.examples.iter().try_for_each(|example| self.ablation.check(example, None))?;
        Ok(self.ablating(model, Pass::forward_only(), self.values.of(model, batch)?))
    }

    /// A pass over tokens that are generated.
    pub(super) fn continuing(&self, model: &dyn Model, pass: Pass) -> Result<Pass> {
        match self.values.independent_of_tokens()? {
            Some(by) => Ok(self.ablating(model, pass, by)),
            None => refuse!(
                "with a circuit in force, ablation `corrupt` would need a counterfactual for every new \
                 token that is generated; use ablation `mean` or `zero`"
            ),
        }
    }

    fn ablating(&self, model: &dyn Model, pass: Pass, by: Ablated) -> Pass {
        let edges = AblatedEdges::new(model.graph(), by, |w, r| self.ablated.contains((w, r)));
        pass.ablating(edges.into())
    }
}
