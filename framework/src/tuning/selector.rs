//! The fourth extension point: what of a circuit is trained.

use crate::Result;
use crate::graph::circuit::Circuit;
use crate::graph::scores::NodeScores;
use crate::lora::Lora;
use crate::model::Model;
use crate::weights::parameters::Selection;

/// What a control is matched to: what the circuit's own run found and tuned at a step.
#[derive(Clone, Copy)]
pub struct Reference<'a> {
    pub circuit: &'a Circuit,
    /// The rows that the run's selector chose of it.
    pub selection: &'a Selection,
    /// The rows that the run's selector chose of its first circuit.
    pub first: &'a Selection,
    /// None where [`ParamSelector::needs_node_scores`] is false.
    pub nodes: Option<&'a NodeScores>,
}

/// From a circuit and the parameters' ownership to the rows to train.
///
/// ```
/// use circuit_framework::{Circuit, Model, Owner, ParamSelector, Result, Selection};
/// use circuit_framework::register;
///
/// /// Only what the circuit's writers own.
/// #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
/// #[serde(default, deny_unknown_fields)]
/// struct Writers {}
///
/// impl ParamSelector for Writers {
///     fn select(&self, circuit: &Circuit, model: &dyn Model, _seed: u64) -> Result<Selection> {
///         let writers = circuit.writers();
///         Ok(Selection::blocks(model.parameters(), |_, block| {
///             matches!(block.owner, Owner::Writer(node) if writers.contains(&node))
///         }))
///     }
/// }
///
/// register!(dyn ParamSelector, Writers, "writers", "what the writers own");
///
/// let plugin = circuit_framework::plugin::registry::find::<dyn ParamSelector>("writers")?;
/// assert!(plugin.build(&Default::default()).is_ok());
/// # Ok::<(), circuit_framework::Error>(())
/// ```
pub trait ParamSelector: Send + Sync {
    /// The rows to train; the same for the same arguments. Any randomness comes from `seed`.
    ///
    /// # Errors
    /// If the circuit can't be served on this model.
    fn select(&self, circuit: &Circuit, model: &dyn Model, seed: u64) -> Result<Selection>;

    /// As a control: the rows to train in place of those that the circuit's own run tuned at the same step.
    /// A selector that isn't matched to them selects from the circuit, as everywhere else.
    ///
    /// # Errors
    /// As [`ParamSelector::select`]'s.
    fn control(&self, tuned: &Reference, model: &dyn Model, seed: u64) -> Result<Selection> {
        self.select(tuned.circuit, model, seed)
    }

    /// Whether the selector is a control and nothing else.
    fn is_control(&self) -> bool {
        self.needs_node_scores()
    }

    /// Whether [`ParamSelector::control`] reads the scores of all nodes. Such a selector is a control and
    /// nothing else.
    fn needs_node_scores(&self) -> bool {
        false
    }

    /// Low-rank adapters to train beside the selected projections, which themselves stay frozen.
    ///
    /// # Errors
    /// If adapters of these settings can't be had for this model.
    fn lora(&self, model: &dyn Model) -> Result<Option<Lora>> {
        let _ = model;
        Ok(None)
    }

    /// Whether the selection depends on the circuit; without it nothing is discovered.
    fn needs_circuit(&self) -> bool {
        true
    }
}
