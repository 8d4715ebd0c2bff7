//! What makes a plugin of an implementation: the registry that knows it, the guard that turns its panics
//! into errors, and the conformance suite that its author's tests call.

pub mod conformance;
pub mod description;
pub mod guard;
pub(crate) mod misfit;
pub mod registry;
