//! A run's outcome: what `summary.json` holds. Figures that aren't finite are strings there, as
//! [`crate::figures`] says.

use serde::{Deserialize, Serialize};

use crate::attribution::Bootstrap;
use crate::evaluation::figures;
use crate::evaluation::task::Figures;
use crate::run::CircuitSummary;
use crate::run::controls::ControlsSummary;

/// The file of a finished run's [`Summary`].
pub const SUMMARY: &str = "summary.json";

/// A run's outcome: `summary.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    pub experiment: String,
    /// The task's figures before tuning, with the experiment's own seed as all that stands here.
    #[serde(with = "figures")]
    pub before: Figures,
    /// The task's figures after tuning.
    #[serde(with = "figures")]
    pub after: Figures,
    /// What controls and other seeds came to, where `[controls]` asks for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controls: Option<ControlsSummary>,
    /// What the circuit before tuning came to, where `[faithfulness]` asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faithfulness_before: Option<CircuitSummary>,
    /// The same of the circuit after tuning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faithfulness_after: Option<CircuitSummary>,
    /// How sure the circuit before tuning is, where there was a bootstrap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap_before: Option<Bootstrap>,
    /// The same of the circuit after tuning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap_after: Option<Bootstrap>,
    /// The names of the figures that are shown, in this order; all where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shown: Vec<String>,
    /// The task's registered name.
    pub task: String,
    /// The selector's registered name.
    pub selector: String,
    pub parameters: usize,
    /// Parameters that any step tuned.
    pub tuned_parameters: usize,
    pub tuned_parameter_ratio: f64,
    pub steps: usize,
    pub discovery_seconds: f64,
    pub tuning_seconds: f64,
    /// From the making of the folder to the end, evaluations and controls included; of a run that was
    /// resumed, of what was not done twice.
    pub seconds: f64,
}
