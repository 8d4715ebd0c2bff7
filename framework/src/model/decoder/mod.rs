//! Decoder-only transformers by description: an architecture says what its layers are and how Hugging
//! Face calls their weights, and gets the whole model: its graph, who owns which rows, its forward pass,
//! loading, saving and adapters. What a config.json of one family means is left to that family.

mod build;
mod nodes;
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
    /// Splits each MLP into heads of so many neurons; without it an MLP is one node.
    pub mlp_head_width: Option<usize>,
    /// Whether files have projections [in, out], as GPT-2's `Conv1D` does.
    pub fan_in_fan_out: bool,
    /// What all names begin with in files that are saved, and may begin with in those that are read.
    pub prefix: &'static str,
    /// How the names of tensors end that files may hold and the model doesn't need.
    pub ignored: &'static [&'static str],
}

/// A layer: attention reads and writes, then an MLP.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Heads, their width, rotary positions.
    pub attention: Attention,
    /// The norm that attention reads through.
    pub attention_norm: String,
    pub query_key_value: QueryKeyValue,
    pub attention_output: Linear,
    /// The norm that the MLP reads through.
    pub mlp_norm: String,
    pub mlp: Mlp,
}

/// The projections that attention reads through.
#[derive(Clone, Debug)]
pub enum QueryKeyValue {
    /// A module each.
    Separate([Linear; 3]),
    /// One module: all queries, then all keys, then all values.
    Stacked(Linear),
}

/// An MLP of some hidden width.
#[derive(Clone, Debug)]
pub struct Mlp {
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
            Self::Stacked(module) => std::slice::from_mut(module),
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
