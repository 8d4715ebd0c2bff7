//! Run-time plugins. This crate is the framework as one shared library, `libcircuit_runtime.so`: the
//! program and every plugin link it, and so have one registry and one candle between them. (A plugin
//! with a candle of its own would number its tensors from 0 again, and gradients of two tensors with
//! one number would mix silently.) [`compile`] builds a plugin against the running program,
//! [`fingerprint`] tells whether one was, [`load`] opens it.
//!
//! The library's Rust interface is only valid between artefacts of one build, so nothing is opened
//! that doesn't carry this very library's hash.

pub mod compile;
pub mod fingerprint;
pub mod load;

pub use circuit_framework::*;
