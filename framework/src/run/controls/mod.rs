//! Controls: what a run's circuit is held against. The circuit and other selections, matched to it step by
//! step, are tuned from the same start, each with the same seeds; the summary has means over seeds with
//! their intervals, and what each control differs from the circuit by, seed by seed.

mod design;
mod interval;
mod settings;
mod summary;

pub use settings::{Controls, Seeds};
pub(super) use summary::Repeat;
pub use summary::{ControlSummary, ControlsSummary, Estimate, RepeatsSummary};
