//! How a backward pass goes: how far back, and which factors it takes for constants.
//!
//! Relevance patching (RelP, arXiv 2508.21258) writes layer-wise relevance propagation as a gradient
//! with some factors held constant; [`Rules`] are these.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The factors that a backward pass takes for constants. By default none: it forms the gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// A norm's scale 1/√…; a layer norm's centring is none.
    pub norm_scales: bool,
    /// f(x)/x of an activation f. Each factor of a gated product gets half its gradient.
    pub activation_factors: bool,
    /// Attention probabilities: gradients go through the values alone.
    pub attention: bool,
}

impl Rules {
    /// Whether a backward pass forms the gradient itself.
    pub(crate) fn form_the_gradient(self) -> bool {
        self == Self::default()
    }
}

/// How a backward pass goes. By default it forms the gradient at all positions.
#[derive(Clone, Debug, Default)]
pub struct Backward {
    /// The first position of each sequence that gradients are needed at; empty where all are. Those
    /// before it mean nothing. None behind depends on one before, so those needed are whole.
    pub from: Vec<usize>,
    /// What it takes for constants.
    pub rules: Rules,
}

/// What operations that candle goes back through are told of the backward pass that is running.
#[derive(Clone, Debug, Default)]
pub(crate) struct Running(Arc<Mutex<Backward>>);

impl Running {
    pub(crate) fn set(&self, backward: Backward) {
        *self.lock() = backward;
    }

    pub(crate) fn get(&self) -> Backward {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Backward> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
