//! The patching metrics: what an edge's worth is measured by. One file each, its stem the
//! registered name.

mod answers;
mod log_prob_diff;
mod logit_diff;
mod loss;
