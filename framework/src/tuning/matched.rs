//! The run that a control is matched to: its circuits by step, and what its selector chose of them. A control
//! tunes at every step as much as that run tuned at the same step.

use serde::{Deserialize, Serialize};

use crate::graph::circuit::{Circuit, Edge};
use crate::graph::scores::NodeScores;
use crate::model::Model;
use crate::tuning::selector::{ParamSelector, Reference};
use crate::weights::parameters::Selection;
use crate::{Result, refuse};

/// The file of a run folder that has its circuits, a [`DiscoveredAt`] a line.
pub const CIRCUITS: &str = "circuits.jsonl";

/// A circuit that a run discovered at a step: a line of [`CIRCUITS`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiscoveredAt {
    pub step: usize,
    /// Best first, each by its nodes' names and with its score, as in circuit files.
    pub edges: Vec<Edge>,
    /// What every node scores, where a control needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeScores>,
}

/// The run of a circuit, for its controls.
pub struct Matched<'a> {
    /// The selector of that run.
    pub selector: &'a dyn ParamSelector,
    /// In the order of steps.
    pub circuits: Vec<DiscoveredAt>,
}

impl Matched<'_> {
    /// The circuit that the run tuned at a step, and what a control selects in its place.
    ///
    /// # Errors
    /// If there was none yet, and as the selectors.
    pub(super) fn select(
        &self,
        step: usize,
        control: &dyn ParamSelector,
        model: &dyn Model,
        seed: u64,
    ) -> Result<(Circuit, Selection)> {
        let Some(found) = self.circuits.iter().rfind(|found| found.step <= step) else {
            refuse!("the circuit's own run has no circuit at step {step} to match a control to");
        };
        let own = |found: &DiscoveredAt| -> Result<(Circuit, Selection)> {
            let circuit = Circuit { edges: found.edges.clone() };
            let selection = self.selector.select(&circuit, model, seed)?;
            Ok((circuit, selection))
        };
        let (circuit, selection) = own(found)?;
        let (_, first) = own(&self.circuits[0])?;
        let nodes = found.nodes.as_ref();
        let tuned = Reference { circuit: &circuit, selection: &selection, first: &first, nodes };
        let selection = control.control(&tuned, model, seed)?;
        Ok((circuit, selection))
    }
}
