//! The model that is built in: a small GPT-2 trained by this engine on generated sentences of the tasks
//! `agreement`, `ioi` and `bias`, so that the default experiment needs no download. `circuit-tuning run
//! embedded-model` makes its weights anew.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::model::checkpoint::Weights;
use circuit_framework::{Checkpoint, Error, Result};

use crate::hugging_face::weights;

const CONFIG: &str = include_str!("../embedded/config.json");
const TOKENIZER: &str = include_str!("../embedded/tokenizer.json");
const WEIGHTS: &[u8] = include_bytes!("../embedded/model.safetensors");

/// The path that stands for this model.
pub(crate) const NAME: &str = "embedded";

pub(crate) fn read(without_weights: bool) -> Result<(Checkpoint, Tokenizer)> {
    let broken = |error: String| Error::input(format!("{NAME}: {error}"));
    let config: serde_json::Value =
        serde_json::from_str(CONFIG).map_err(|error| broken(error.to_string()))?;
    let inner: tokenizers::Tokenizer =
        TOKENIZER.parse().map_err(|error: tokenizers::Error| broken(error.to_string()))?;
    let id = |key: &str| config[key].as_u64().map(|id| id as u32);
    let tokenizer = Tokenizer {
        inner,
        beginning: id("bos_token_id"),
        end: id("eos_token_id"),
        add_beginning: false,
        chat_template: None,
    };
    let tensors = match without_weights {
        true => BTreeMap::new(),
        false => weights::list_bytes(WEIGHTS, NAME)?,
    };
    let checkpoint = Checkpoint {
        config,
        weights: Weights::Stored(tensors),
        origin: NAME.to_owned(),
        dtype: DType::F32,
        device: Device::Cpu,
    };
    Ok((checkpoint, tokenizer))
}
