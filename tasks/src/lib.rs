//! The tasks: what a circuit is searched for and tuned on. One file each, its stem the registered
//! name.

mod agreement;
mod tokens;
