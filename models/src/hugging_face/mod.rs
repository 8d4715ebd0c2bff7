//! Hugging Face model folders: config.json, weights and the tokenizer's files. What is saved here,
//! `transformers` loads.

mod config;
pub(crate) mod tokenizer;
pub(crate) mod weights;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device};
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::model::checkpoint::Weights;
use circuit_framework::{Checkpoint, Model, Result, files};

/// What is read of a folder, shards aside.
const FILES: [&str; 8] = [
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// Reads a folder's configuration, and lists its weights if they are wanted.
pub(crate) fn read_checkpoint(folder: &Path, without_weights: bool) -> Result<Checkpoint> {
    FILES.iter().try_for_each(|file| files::check_regular(&folder.join(file)))?;
    let origin = folder.display().to_string();
    let mut config = files::read_json(&folder.join("config.json"))?;
    config::read(&mut config, &origin)?;
    let tensors = match without_weights {
        true => BTreeMap::new(),
        false => weights::list(folder)?,
    };
    Ok(Checkpoint {
        config,
        weights: Weights::Stored(tensors),
        dtype: DType::F32,
        device: Device::Cpu,
        origin,
    })
}

/// Writes a folder that `transformers` loads. The folder appears whole or not at all.
///
/// # Errors
/// If it exists, or can't be written.
pub fn save(folder: &Path, model: &dyn Model, tokenizer: Option<&Tokenizer>) -> Result<()> {
    files::make_folder(folder, |new| {
        write_model(new, model)?;
        match tokenizer {
            Some(tokenizer) => tokenizer::write(new, tokenizer),
            None => Ok(()),
        }
    })
}

fn write_model(folder: &Path, model: &dyn Model) -> Result<()> {
    let config = config::to_save(model.config());
    files::write_json(&folder.join("config.json"), &config)?;
    // `transformers` refuses a file whose metadata doesn't say which framework it is from.
    let metadata = [("format".to_owned(), "pt".into())].into_iter().collect();
    let mut tensors = model.state_dict()?;
    for tensor in tensors.values_mut() {
        *tensor = tensor.to_dtype(DType::F32)?;
    }
    files::write_tensors(&folder.join("model.safetensors"), &tensors, metadata)
}
