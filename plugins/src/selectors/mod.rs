//! The selectors: what of a circuit is trained. A file each.

mod all;
mod lora;
mod modules;
mod nodes;
mod random;
