//! The fourth extension point: what of a circuit is trained.

use crate::Result;
use crate::graph::circuit::Circuit;
use crate::lora::Lora;
use crate::model::Model;
use crate::weights::parameters::Selection;

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

    /// Low-rank adapters to train beside the selected projections, which themselves stay frozen.
    fn lora(&self) -> Option<Lora> {
        None
    }

    /// Whether the selection depends on the circuit; without it nothing is discovered.
    fn needs_circuit(&self) -> bool {
        true
    }
}
