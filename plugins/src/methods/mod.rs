//! The attribution methods, one file each; a registered name is its file's stem, with hyphens.

mod clean_corrupted;
mod eap;
mod eap_ig;
mod eap_ig_activations;
mod exact;
mod relp;
