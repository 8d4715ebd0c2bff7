//! The tasks: what a circuit is searched for and tuned on, or a model is evaluated on. One file each,
//! its stem the registered name.

mod agreement;
mod arithmetic;
mod bias;
mod generated;
mod greater_than;
mod instruction;
mod ioi;
mod logic;
mod math;
mod mcqa;
mod mixture;
mod multiple_choice;
mod perplexity;
mod prompt;
mod reading;
mod rows;
mod tokens;

#[cfg(test)]
mod tests;

// The documents' examples are compiled and run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../../docs/plugins.md")]
struct Plugins;
