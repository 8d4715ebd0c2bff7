//! A model: an attention-only transformer (Elhage et al., 2021, "A Mathematical Framework for
//! Transformer Circuits"), with learned positions and layer norms. A checkpoint is a folder with
//! config.json, whose `model_type` is the registered name, and model.safetensors.

use circuit_framework::model::config;
use circuit_framework::model::decoder::{Decoder, Layer, Linear, NormKind, Norms, QueryKeyValue};
use circuit_framework::ops::attention::Attention;
use circuit_framework::{Architecture, Checkpoint, Model, Result, refuse, register};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct AttentionOnly {}

/// config.json.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
}

impl Config {
    /// A layer, with what its weights are called in files. A module's weight is `NAME.weight`.
    fn layer(&self, index: usize) -> Layer {
        Layer {
            attention: Attention::new(self.n_head, self.n_head, self.n_embd / self.n_head),
            attention_norms: Norms::before(format!("blocks.{index}.ln")),
            query_key_value: QueryKeyValue::Stacked(Linear::plain(format!("blocks.{index}.qkv"))),
            head_norms: None,
            attention_output: Linear::plain(format!("blocks.{index}.out")),
            mlp: None,
        }
    }
}

impl Architecture for AttentionOnly {
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        let config: Config = config::parse(&checkpoint)?;
        if config.n_head == 0 || !config.n_embd.is_multiple_of(config.n_head) {
            refuse!(
                "{}: config.json: n_embd {} is no multiple of n_head {}",
                checkpoint.origin,
                config.n_embd,
                config.n_head
            );
        }
        let decoder = Decoder {
            vocabulary: config.vocab_size,
            context: config.n_positions,
            d_model: config.n_embd,
            embedding_scale: 1.0,
            tokens: "embed.weight".to_owned(),
            positions: Some("positions.weight".to_owned()),
            norm: NormKind::Layer,
            epsilon: 1e-5,
            layers: (0..config.n_layer).map(|index| config.layer(index)).collect(),
            final_norm: "ln_final".to_owned(),
            unembedding: "unembed.weight".to_owned(),
            is_tied: false,
            cap: None,
            is_parallel: false,
            mlp_head_width: None,
            fan_in_fan_out: false,
            prefix: "",
            ignored: &[],
        };
        decoder.build(checkpoint)
    }
}

register!(
    dyn Architecture,
    AttentionOnly,
    "attention_only",
    "attention layers without MLPs, with learned positions"
);

#[cfg(test)]
mod tests {
    use super::*;
    use circuit_framework::plugin::conformance;

    #[test]
    fn it_conforms() {
        let config = serde_json::from_str(include_str!("../config.json")).unwrap();
        conformance::architecture(&AttentionOnly {}, &config, 0).unwrap();
    }
}
