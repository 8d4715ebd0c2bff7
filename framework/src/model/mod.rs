//! The first extension point: a model as the framework sees it.

pub mod checkpoint;
pub mod config;
pub mod decoder;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::graph::Graph;
use crate::model::checkpoint::{Checkpoint, Stored, Weights};
use crate::pass::{Pass, Readout};
use crate::weights::parameters::Parameters;
use crate::weights::projection::Projection;
use crate::{Error, Result, refuse};

/// A decoder-only transformer that reads and writes its residual stream through a [`Pass`].
///
/// ```
/// use std::sync::Arc;
///
/// use circuit_framework::graph::{Input, Node, Port};
/// use circuit_framework::ops::norm::Norm;
/// use circuit_framework::pass::{Embedding, Unembedding};
/// use circuit_framework::{Device, Graph, Model, Parameters, Pass, Readout, Result, Tensor};
///
/// /// The next token from the last alone: one edge, from the embedding to the unembedding.
/// struct Bigram {
///     graph: Graph,
///     parameters: Parameters,
///     embedding: Arc<Embedding>,
///     unembedding: Arc<Unembedding>,
///     config: serde_json::Value,
/// }
///
/// impl Bigram {
///     fn new(weight: Tensor) -> Result<Self> {
///         let logits = Input { node: Node::Logits, port: Port::Input };
///         let graph = Graph::new([(vec![], vec![Node::Embed]), (vec![logits], vec![])]);
///         let mut parameters = Parameters::default();
///         let gain = Tensor::ones(weight.dim(1)?, weight.dtype(), weight.device())?;
///         let tokens = parameters.add_shared("embed", weight.copy()?)?;
///         let weight = parameters.add_shared("unembed", weight)?;
///         let gain = parameters.add_shared("norm", gain)?;
///         let norm = Norm { weight: gain, bias: None, epsilon: 1e-5, offset: 0.0 };
///         Ok(Self {
///             graph,
///             parameters,
///             embedding: Arc::new(Embedding { tokens, positions: None, scale: 1.0 }),
///             unembedding: Arc::new(Unembedding { site: 1, norm, weight, cap: None }),
///             config: serde_json::json!({ "model_type": "bigram" }),
///         })
///     }
/// }
///
/// impl Model for Bigram {
///     fn graph(&self) -> &Graph {
///         &self.graph
///     }
///     fn parameters(&self) -> &Parameters {
///         &self.parameters
///     }
///     fn forward(&self, pass: &Pass, tokens: &Tensor) -> Result<Readout> {
///         let x = pass.embed(&self.embedding, tokens)?;
///         pass.finish(&self.unembedding, &x)
///     }
///     fn vocabulary(&self) -> usize {
///         self.parameters.get(self.unembedding.weight.id).rows()
///     }
///     fn context(&self) -> usize {
///         64
///     }
///     fn config(&self) -> &serde_json::Value {
///         &self.config
///     }
/// }
///
/// let weight = Tensor::arange(0f64, 24., &Device::Cpu)?.reshape((6, 4))?.affine(0.1, -1.0)?;
/// let model = Bigram::new(weight)?;
/// assert_eq!(model.graph().edge_count(), 1);
/// circuit_framework::plugin::conformance::model(&model, 0)?;
/// # Ok::<(), circuit_framework::Error>(())
/// ```
pub trait Model: Send + Sync {
    /// The nodes in computation order, `embed` and `logits` included.
    fn graph(&self) -> &Graph;

    /// Every weight with its owners. Updates are made in place and take effect at once.
    fn parameters(&self) -> &Parameters;

    /// Runs tokens u32 [batch, seq], padded on the right, through the model: what it returns reads
    /// logits at any of the batch·seq rows. Every site of the graph is announced to the pass, in
    /// order.
    ///
    /// # Errors
    /// If the sequence is longer than the context, or a tensor operation fails.
    fn forward(&self, pass: &Pass, tokens: &Tensor) -> Result<Readout>;

    /// The number of token ids.
    fn vocabulary(&self) -> usize;

    /// The longest sequence, in tokens.
    fn context(&self) -> usize;

    /// The configuration as Hugging Face's config.json.
    fn config(&self) -> &serde_json::Value;

    /// The weights under Hugging Face's names and in its layout and shapes, for saving.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn state_dict(&self) -> Result<BTreeMap<String, Tensor>> {
        self.parameters().state_dict()
    }

    /// The linear maps that a low-rank adapter can stand beside: all matrices that nodes own and files
    /// call a module's weight.
    fn projections(&self) -> Vec<Projection> {
        Projection::all(self.parameters())
    }

    /// Whether a layer's queries, or its keys, are normalised all together, so that each head's depend on
    /// what the others read.
    fn heads_share_a_norm(&self) -> bool {
        false
    }

    /// What sets it apart among decoders, each in a few words: `list models` shows it.
    fn features(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Where the weights are, and tokens have to be.
    fn device(&self) -> Device {
        let weight = self.parameters().iter().next();
        weight.map_or(Device::Cpu, |(_, parameter)| parameter.tensor.device().clone())
    }
}

/// What a model computes in.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float64 for models of up to 100,000 parameters, which it costs nothing; float32 for all others.
    #[default]
    Auto,
    Float32,
    Float64,
    /// float32, of weights kept in bfloat16: half the memory. Rows that are tuned have float32 masters.
    Bfloat16,
}

/// What a model computes on: `cpu`, `cuda` or `cuda:N`, or `auto`, the first GPU where the program
/// was built with CUDA and there is one, else the CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Place(pub String);

impl Default for Place {
    fn default() -> Self {
        Self("auto".to_owned())
    }
}

impl Place {
    /// # Errors
    /// If it is none of these, or there is no such GPU for this program.
    pub fn device(&self) -> Result<Device> {
        let name = &self.0;
        let number = match name.split_once(':') {
            None if name == "cpu" => return Ok(Device::Cpu),
            None if name == "auto" => {
                return Ok(Device::cuda_if_available(0).unwrap_or(Device::Cpu));
            }
            None if name == "cuda" => Some(0),
            Some(("cuda", number)) => number.parse().ok(),
            _ => None,
        };
        let Some(number) = number else {
            refuse!("device `{name}`: give cpu, cuda, cuda:N or auto");
        };
        if !candle_core::utils::cuda_is_available() {
            refuse!(
                "device `{name}`: this program was built without CUDA; `cargo build --release \
                 --features cuda` builds it in (see docs/cuda.md), --device cpu does without"
            );
        }
        Device::new_cuda(number).map_err(|error| {
            let error = error.to_string();
            let cause = error.lines().next().unwrap_or_default();
            Error::input(format!(
                "device `{name}`: there is no usable GPU or driver ({cause}); use --device cpu"
            ))
        })
    }
}

/// Models of at most so many parameters compute in float64 by themselves.
const SMALL: usize = 100_000;

impl Precision {
    /// The type that a model with these weights computes in.
    pub fn dtype(self, weights: &Weights) -> DType {
        match (self, weights) {
            (Self::Float64, _) => DType::F64,
            (Self::Bfloat16, _) => DType::BF16,
            (Self::Auto, Weights::Stored(tensors)) => {
                let count = |tensor: &Stored| tensor.shape.iter().product::<usize>();
                match tensors.values().map(count).sum::<usize>() {
                    ..=SMALL => DType::F64,
                    _ => DType::F32,
                }
            }
            _ => DType::F32,
        }
    }
}

/// Builds a model of one architecture; what a model plugin registers. Options are the fields of
/// the type that implements it.
pub trait Architecture: Send + Sync {
    /// The model of a checkpoint, its weights in the checkpoint's dtype.
    ///
    /// # Errors
    /// If a tensor is missing or misshapen, or the configuration asks for what this architecture
    /// can't do; each names what and where.
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>>;

    /// A small config.json that asks for all that this architecture can do. `list models` shows the features of
    /// its model, where there is one.
    fn example(&self) -> Option<serde_json::Value> {
        None
    }
}
