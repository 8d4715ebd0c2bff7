//! Integration tests of the whole program, in one binary so that it links once.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![expect(
    clippy::iter_over_hash_type,
    reason = "what is checked of each does not depend on the order"
)]

// Linked for what they register.
use circuit_metrics as _;
use circuit_plugins as _;
use circuit_tasks as _;

mod analysis;
mod attention;
mod bfloat16;
mod bootstrap;
mod circuits;
mod command_line;
mod commands_analyze;
mod commands_circuit;
mod commands_draw;
mod commands_list;
mod commands_logits;
mod commands_output;
mod commands_settings;
mod commands_tokens;
mod conformance;
mod controls;
mod convert;
mod coverage;
mod delta;
mod documentation;
mod dynamics;
mod failures;
mod faithfulness;
mod faults;
mod files;
mod forgetting;
mod gemma3;
mod generation;
mod gguf;
mod graph;
mod hostile;
mod interventions;
mod loading;
mod lora;
mod messages;
mod methods;
mod methods_command;
mod metrics;
mod misbuilt;
mod models;
#[path = "fixtures/lab/my_qwen2.rs"]
mod my_qwen2;
mod notebook;
mod numbers;
mod oracles;
mod own_program;
mod pass;
mod peers;
mod plan;
#[cfg(feature = "runtime")]
mod plugins;
mod properties;
mod provenance;
mod reference;
mod relp;
mod report;
mod resume;
mod run_folders;
mod runs;
mod saved;
mod smollm2;
mod support;
mod tensorboard;
mod tokenizers;
mod work;
