//! The parameter selectors: what of a circuit is tuned. One file each, its stem the registered
//! name.

mod all;
mod lora;
mod modules;
mod nodes;
mod random;
