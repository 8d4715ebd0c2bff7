//! The framework of `circuit-tuning`: the five extension points ([`Model`], [`Task`],
//! [`PatchingMetric`], [`AttributionMethod`], [`ParamSelector`]), the registry that knows their
//! implementations, the graph of a model, passes with hooks, attribution and circuit tuning.
//!
//! It knows no concrete model, task, metric, method or selector. Each module builds on those above it:
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`ops`] | attention, norm, activation, cross-entropy, rotary: forward and backward |
//! | [`data`] | examples, batches, tokenizers, chat templates |
//! | [`graph`] | nodes and edges, scores, circuits, pruning |
//! | [`weights`] | parameters as rows that nodes own, selections, layout in files |
//! | [`pass`] | one forward pass and the way back: sites, hooks, interventions |
//! | [`model`] | [`Model`], [`Architecture`], checkpoints, the decoder builder |
//! | [`lora`] | low-rank adapters and PEFT's files |
//! | [`delta`] | what tuning changed of a model: kept, applied, reverted, added |
//! | [`evaluation`] | [`Task`], metrics, running a model over examples, circuits put to the test |
//! | [`analysis`] | what single nodes do: direct effects, attention, paths, roles |
//! | [`attribution`] | [`AttributionMethod`], and what methods are made of |
//! | [`results`] | files of scores and circuits and where they came from, drawings, other tools' formats |
//! | [`tuning`] | [`ParamSelector`], a step, the optimizer, the state between steps |
//! | [`plugin`] | the registry, the guard, the conformance suite |
//! | [`run`] | experiments, controls, sweeps, run folders, going on with a run |
//!
//! Terms are TransformerLens', EAP-IG's and Hugging Face's; what is computed is defined in the paper, arXiv
//! 2502.06106.

pub mod analysis;
pub mod attribution;
mod correlation;
pub mod data;
pub mod delta;
mod error;
pub mod evaluation;
pub mod files;
pub mod graph;
pub mod lora;
pub mod memory;
pub mod model;
pub mod ops;
pub mod panics;
pub mod pass;
pub mod peers;
pub mod plugin;
pub mod progress;
mod range;
pub mod results;
pub mod run;
pub mod text;
pub mod tuning;
pub mod weights;

// What plugins name in their own code, so that they have this very candle and serde.
pub use attribution::AttributionMethod;
pub use candle_core::{self, Device, Tensor};
pub use data::example::{Batch, Example, Key};
pub use delta::Delta;
pub use error::{Error, Result, suggestion};
pub use evaluation::Evaluation;
pub use evaluation::generation::Generation;
pub use evaluation::metric::{MeasuringMetric, PatchingMetric};
pub use evaluation::task::{Dataset, Figures, Setting, Split, Task};
pub use graph::Graph;
pub use graph::circuit::Circuit;
pub use graph::pruning::Pruning;
pub use graph::scores::Scores;
pub use lora::Lora;
pub use model::checkpoint::Checkpoint;
pub use model::{Architecture, Model};
pub use pass::{Pass, Readout};
pub use plugin::registry::{Options, Plugin};
pub use results::provenance::Provenance;
pub use tuning::selector::ParamSelector;
pub use weights::parameters::{Owner, Parameters, Selection};
pub use {inventory, schemars, serde, serde_json};
