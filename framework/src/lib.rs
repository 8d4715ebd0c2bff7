//! The framework of `circuit-tuning`: the five extension points ([`Model`], [`Task`],
//! [`PatchingMetric`], [`AttributionMethod`], [`ParamSelector`]), the registry that knows their
//! implementations, the graph of a model, passes with hooks, attribution and circuit tuning.
//!
//! It knows no concrete model, task, metric, method or selector. Terms are TransformerLens', EAP-IG's and
//! Hugging Face's; what is computed is defined in the paper, arXiv 2502.06106.

pub mod attribution;
pub mod data;
mod error;
pub mod evaluation;
pub mod files;
pub mod graph;
pub mod lora;
pub mod model;
pub mod ops;
pub mod pass;
pub mod plugin;
pub mod progress;
mod range;
pub mod run;
pub mod tuning;
pub mod weights;

// What plugins name in their own code, so that they have this very candle and serde.
pub use attribution::{Attribution, AttributionMethod};
pub use candle_core::{self, Device, Tensor};
pub use data::example::{Batch, Example, Key};
pub use error::{Error, Result, suggestion};
pub use evaluation::Evaluation;
pub use evaluation::generation::Generation;
pub use evaluation::metric::{MeasuringMetric, PatchingMetric};
pub use evaluation::task::{Dataset, Figures, Setting, Split, Task};
pub use graph::Graph;
pub use graph::circuit::{Circuit, Pruning};
pub use graph::scores::Scores;
pub use lora::Lora;
pub use model::checkpoint::Checkpoint;
pub use model::{Architecture, Model};
pub use pass::{Pass, Readout};
pub use plugin::registry::{Options, Plugin};
pub use run::provenance::Provenance;
pub use tuning::selector::ParamSelector;
pub use weights::parameters::{Owner, Parameters, Selection};
pub use {inventory, schemars, serde, serde_json};
