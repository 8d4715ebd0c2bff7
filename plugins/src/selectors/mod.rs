//! The selectors: what of a circuit is trained. A file each.

mod all;
mod complement;
mod lora;
mod modules;
mod nodes;
mod random;
mod random_parameters;
mod r#static;
