//! The update rule of an optimizer, and its settings.

use serde::{Deserialize, Serialize};

use super::Tuning;

/// The update rule.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    Sgd,
    Adam,
    #[default]
    AdamW,
}

/// The settings of an update, as float64 like PyTorch's.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub(super) algorithm: Algorithm,
    pub(super) momentum: f64,
    pub(super) beta1: f64,
    pub(super) beta2: f64,
    pub(super) eps: f64,
    pub(super) weight_decay: f64,
}

impl Rule {
    pub(super) fn of(tuning: &Tuning) -> Self {
        Self {
            algorithm: tuning.optimizer,
            momentum: tuning.momentum,
            beta1: tuning.beta1,
            beta2: tuning.beta2,
            eps: tuning.eps,
            weight_decay: tuning.weight_decay,
        }
    }
}
