//! A decoder as it runs: its layers between an embedding and an unembedding.

use std::sync::Arc;

use candle_core::Tensor;

use crate::Result;
use crate::graph::Graph;
use crate::model::Model;
use crate::ops::activation::Activation;
use crate::ops::attention::Attention;
use crate::pass::{Embedding, Pass, Reading, Readout, Unembedding, Writing};
use crate::weights::parameters::Parameters;

/// A layer with its weights.
pub(super) struct Block {
    pub(super) attention: Attention,
    pub(super) attention_in: Arc<Reading>,
    pub(super) attention_out: Arc<Writing>,
    pub(super) mlp: Option<MlpBlock>,
}

/// An MLP with its weights.
pub(super) struct MlpBlock {
    pub(super) input: Arc<Reading>,
    /// What it does between reading and writing.
    pub(super) activation: Activation,
    pub(super) output: Arc<Writing>,
}

/// A decoder-only transformer.
pub(super) struct Transformer {
    /// Hugging Face's config.json.
    pub(super) config: serde_json::Value,
    pub(super) vocabulary: usize,
    pub(super) context: usize,
    pub(super) graph: Graph,
    pub(super) parameters: Parameters,
    pub(super) embedding: Arc<Embedding>,
    pub(super) blocks: Vec<Block>,
    pub(super) is_parallel: bool,
    pub(super) unembedding: Arc<Unembedding>,
}

impl Model for Transformer {
    fn graph(&self) -> &Graph {
        &self.graph
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn forward(&self, pass: &Pass, tokens: &Tensor) -> Result<Readout> {
        let (first, mut x) = match pass.begin(tokens)? {
            Some(begin) => begin,
            None => (0, pass.embed(&self.embedding, tokens)?),
        };
        let is_left_out = |(_, block): &(usize, &Block)| block.attention_in.site < first;
        for (index, block) in self.blocks.iter().enumerate().skip_while(is_left_out) {
            pass.enter(block.attention_in.site, &x);
            let qkv = pass.read(&block.attention_in, &x)?;
            let read_early = match &block.mlp {
                Some(mlp) if self.is_parallel => Some(pass.read(&mlp.input, &x)?),
                _ => None,
            };
            let z = pass.attend(index, &block.attention, &qkv)?;
            x = pass.write(&block.attention_out, &x, &z)?;
            if let Some(mlp) = &block.mlp {
                let hidden = match read_early {
                    Some(hidden) => hidden,
                    None => pass.read(&mlp.input, &x)?,
                };
                let z = pass.activate(mlp.activation, &hidden)?;
                x = pass.write(&mlp.output, &x, &z)?;
            }
        }
        pass.enter(self.unembedding.site, &x);
        pass.finish(&self.unembedding, &x)
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn context(&self) -> usize {
        self.context
    }

    fn config(&self) -> &serde_json::Value {
        &self.config
    }

    fn heads_share_a_norm(&self) -> bool {
        let norms = self.blocks.iter().filter_map(|block| block.attention.norms.as_ref());
        norms.into_iter().any(|norms| !norms.is_per_head)
    }

    fn features(&self) -> Vec<&'static str> {
        self.describe()
    }
}
