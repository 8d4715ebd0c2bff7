//! Decoder-only transformers by description: an architecture says what its layers are and how Hugging
//! Face calls their weights, and gets the whole model: its graph, who owns which rows, its forward pass,
//! loading, saving and adapters. What a config.json of one family means is left to that family.

mod build;
mod features;
mod owners;
pub mod rope;
pub mod standard;
mod transformer;

use crate::Result;
use crate::model::Model;
use crate::model::checkpoint::Checkpoint;
use crate::ops::activation::Activation;
use crate::ops::attention::Attention;

/// A decoder: an embedding, layers of attention and an MLP around a residual stream, an unembedding.
/// Names are Hugging Face's.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// How many token ids there are.
    pub vocabulary: usize,
    /// The longest sequence, in tokens.
    pub context: usize,
    /// The width of the residual stream.
    pub d_model: usize,
    /// What token embeddings are multiplied with.
    pub embedding_scale: f64,
    /// The token embedding's weight.
    pub tokens: String,
    /// The weight of learned position embeddings.
    pub positions: Option<String>,
    pub norm: NormKind,
    /// What norms add to the variance.
    pub epsilon: f64,
    pub layers: Vec<Layer>,
    /// The norm before the unembedding.
    pub final_norm: String,
    /// The unembedding's weight.
    pub unembedding: String,
    /// Whether the unembedding is the token embedding.
    pub is_tied: bool,
    /// The soft cap on logits.
    pub cap: Option<f64>,
    /// Whether a layer's MLP reads what its attention reads, and not what that writes.
    pub is_parallel: bool,
    /// Splits each MLP into heads of so many neurons; without it an MLP is one node.
    pub mlp_head_width: Option<usize>,
    /// Whether files have projections [in, out], as GPT-2's `Conv1D` does.
    pub fan_in_fan_out: bool,
    /// What all names begin with in files that are saved, and may begin with in those that are read.
    pub prefix: &'static str,
    /// How the names of tensors end that files may hold and the model doesn't need.
    pub ignored: &'static [&'static str],
}

/// A layer: attention reads and writes, then an MLP, where there is one.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Heads, their width, rotary positions, window, cap; its norms come of `head_norms`.
    pub attention: Attention,
    pub attention_norms: Norms,
    pub query_key_value: QueryKeyValue,
    pub head_norms: Option<HeadNormNames>,
    pub attention_output: Linear,
    pub mlp: Option<Mlp>,
}

/// The norms of a sub-layer, by name.
#[derive(Clone, Debug, Default)]
pub struct Norms {
    /// The norm that is read through.
    pub before: Option<String>,
    /// The norm of what is written, which must be by the root mean square.
    pub after: Option<String>,
}

/// The norms on queries and keys, by name.
#[derive(Clone, Debug)]
pub struct HeadNormNames {
    pub query: String,
    pub key: String,
    /// Whether each head is normalised by itself; else all are together.
    pub is_per_head: bool,
}

/// The projections that attention reads through.
#[derive(Clone, Debug)]
pub enum QueryKeyValue {
    /// A module each.
    Separate([Linear; 3]),
    /// One module: all queries, then all keys, then all values.
    Stacked(Linear),
    /// One module: a head's queries, keys and values, then the next head's. Heads share none.
    ByHead(Linear),
}

/// An MLP of some hidden width.
#[derive(Clone, Debug)]
pub struct Mlp {
    pub norms: Norms,
    pub width: usize,
    /// The gate is read before the up projection where the activation is gated.
    pub inputs: Vec<Linear>,
    pub activation: Activation,
    pub output: Linear,
}

/// A linear map, by its module's name: `model.layers.0.mlp.down_proj`.
#[derive(Clone, Debug)]
pub struct Linear {
    pub name: String,
    pub has_bias: bool,
}

/// The kind of a decoder's norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Centred, with a weight and a bias.
    Layer,
    /// By the root mean square, with a weight.
    Rms,
    /// By the root mean square, with a weight that is stored less 1.
    RmsFromOne,
}

impl Norms {
    /// A norm that is read through, and none of what is written.
    pub fn before(name: impl Into<String>) -> Self {
        Self { before: Some(name.into()), after: None }
    }

    /// A norm of what is written, and none that is read through.
    pub fn after(name: impl Into<String>) -> Self {
        Self { before: None, after: Some(name.into()) }
    }
}

impl Linear {
    /// One without a bias.
    pub fn plain(name: impl Into<String>) -> Self {
        Self { name: name.into(), has_bias: false }
    }

    /// One with a bias.
    pub fn biased(name: impl Into<String>) -> Self {
        Self { name: name.into(), has_bias: true }
    }
}

impl QueryKeyValue {
    /// Its modules.
    pub fn modules_mut(&mut self) -> &mut [Linear] {
        match self {
            Self::Separate(modules) => modules,
            Self::Stacked(module) | Self::ByHead(module) => std::slice::from_mut(module),
        }
    }
}

impl Decoder {
    /// The model, its weights taken out of a checkpoint.
    ///
    /// # Errors
    /// If the description contradicts itself, or a tensor is missing, misshapen or left over, naming it.
    pub fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        Ok(Box::new(build::build(self, checkpoint)?))
    }
}
