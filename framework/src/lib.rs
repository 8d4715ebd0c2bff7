//! The framework of `circuit-tuning`: the five extension points ([`Model`], [`Task`],
//! [`PatchingMetric`], [`AttributionMethod`], [`ParamSelector`]), the registry that knows their
//! implementations, the graph of a model, passes with hooks, attribution and circuit tuning.
//!
//! It knows no concrete model, task, metric, method or selector. Terms are TransformerLens', EAP-IG's and
//! Hugging Face's; what is computed is defined in the paper, arXiv 2502.06106.

pub mod answers;
pub mod attribution;
pub mod cache;
pub mod chat;
pub mod checkpoint;
pub mod circuit;
pub mod conformance;
pub mod data;
pub mod drawing;
mod error;
pub mod evaluation;
pub mod example;
pub mod experiment;
pub mod figures;
pub mod files;
pub mod generation;
pub mod gradients;
pub mod graph;
pub mod guard;
pub mod lora;
pub mod matrix;
pub mod metric;
pub mod model;
pub mod ops;
pub mod parameters;
pub mod pass;
pub mod progress;
pub mod provenance;
mod range;
pub mod registry;
pub mod run;
pub mod scores;
pub mod selector;
pub mod settings;
pub mod task;
pub mod tokenizer;
pub mod tuning;

// What plugins name in their own code, so that they have this very candle and serde.
pub use attribution::{Attribution, AttributionMethod};
pub use candle_core::{self, Device, Tensor};
pub use checkpoint::Checkpoint;
pub use circuit::{Circuit, Pruning};
pub use error::{Error, Result, suggestion};
pub use evaluation::Evaluation;
pub use example::{Batch, Example, Key};
pub use generation::Generation;
pub use graph::Graph;
pub use lora::Lora;
pub use metric::{MeasuringMetric, PatchingMetric};
pub use model::{Architecture, Model};
pub use parameters::{Owner, Parameters, Selection};
pub use pass::{Pass, Readout};
pub use provenance::Provenance;
pub use registry::{Options, Plugin};
pub use scores::Scores;
pub use selector::ParamSelector;
pub use task::{Dataset, Figures, Setting, Split, Task};
pub use {inventory, schemars, serde, serde_json};
