//! The attribution methods, by which edges are scored, and the parameter selectors: what of a circuit is
//! tuned. One file each.

mod methods;
mod selectors;
