//! The metrics, one file each, its stem the registered name: patching metrics, which an edge's worth
//! is measured by, and two that only measure.

mod accuracy;
mod answer_log_prob;
mod kl_divergence;
mod log_prob_diff;
mod logit_diff;
mod loss;
mod prob_diff;
