//! A model's weights: parameters as rows that nodes own, and selections of them.

pub mod layout;
pub mod parameters;
pub mod projection;
pub(crate) mod rows;
