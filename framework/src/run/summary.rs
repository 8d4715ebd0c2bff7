//! A run's outcome: what `summary.json` holds. Figures that aren't finite are strings there, as
//! [`crate::figures`] says.

use serde::{Deserialize, Serialize};

use crate::attribution::Bootstrap;
use crate::evaluation::figures;
use crate::evaluation::task::Figures;
use crate::run::CircuitSummary;

/// The file of a finished run's [`Summary`].
pub const SUMMARY: &str = "summary.json";

/// The result of a control.
#[derive(Serialize, Deserialize)]
pub(super) struct Control {
    #[serde(with = "figures")]
    pub(super) figures: Figures,
    pub(super) tuned_parameters: usize,
    pub(super) seconds: f64,
}

/// A run's outcome: `summary.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    pub experiment: String,
    /// The task's figures before tuning.
    #[serde(with = "figures")]
    pub before: Figures,
    /// The task's figures after tuning.
    #[serde(with = "figures")]
    pub after: Figures,
    /// The task's figures after tuning with the control's selector instead.
    #[serde(default, with = "figures::optional", skip_serializing_if = "Option::is_none")]
    pub control: Option<Figures>,
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
    /// The task's registered name.
    pub task: String,
    /// The selector's registered name.
    pub selector: String,
    /// The control's selector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_selector: Option<String>,
    pub parameters: usize,
    /// Parameters that any step tuned.
    pub tuned_parameters: usize,
    pub tuned_parameter_ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_tuned_parameter_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_tuned_parameters: Option<usize>,
    pub steps: usize,
    pub discovery_seconds: f64,
    pub tuning_seconds: f64,
    /// The control's discovery and tuning together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_seconds: Option<f64>,
    /// From the making of the folder to the end, evaluations and the control included; of a run that was
    /// resumed, of what was not done twice.
    pub seconds: f64,
}
