//! Hugging Face model folders: config.json, weights and the tokenizer's files. What is saved here,
//! `transformers` loads.

pub(crate) mod tokenizer;
pub(crate) mod weights;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device};
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::model::checkpoint::Weights;
use circuit_framework::{Checkpoint, Error, Model, Result, files, refuse};
use serde_json::json;

/// Reads a folder's configuration, and lists its weights if they are wanted.
pub(crate) fn read_checkpoint(folder: &Path, without_weights: bool) -> Result<Checkpoint> {
    let config = files::read_json(&folder.join("config.json"))?;
    let tensors = match without_weights {
        true => BTreeMap::new(),
        false => weights::list(folder)?,
    };
    Ok(Checkpoint {
        config,
        weights: Weights::Stored(tensors),
        dtype: DType::F32,
        device: Device::Cpu,
        origin: folder.display().to_string(),
    })
}

/// Writes a folder that `transformers` loads. The folder appears whole or not at all.
///
/// # Errors
/// If it exists, or can't be written.
pub fn save(folder: &Path, model: &dyn Model, tokenizer: Option<&Tokenizer>) -> Result<()> {
    if folder.exists() {
        refuse!("{}: exists already; name a new folder", folder.display());
    }
    let parent =
        folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(".saving-")
        .tempdir_in(parent)
        .map_err(Error::io(folder))?;
    write_model(temporary.path(), model)?;
    if let Some(tokenizer) = tokenizer {
        tokenizer::write(temporary.path(), tokenizer)?;
    }
    let temporary = temporary.keep();
    make_accessible(&temporary).map_err(Error::io(folder))?;
    std::fs::rename(&temporary, folder).map_err(Error::io(folder))
}

/// Temporary folders are the owner's alone; a saved model is as readable as any other folder.
#[cfg(unix)]
fn make_accessible(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_accessible(_: &Path) -> std::io::Result<()> {
    Ok(())
}

fn write_model(folder: &Path, model: &dyn Model) -> Result<()> {
    let mut config = model.config().clone();
    for key in ["torch_dtype", "dtype"] {
        if !config[key].is_null() {
            config[key] = json!("float32");
        }
    }
    files::write_json(&folder.join("config.json"), &config)?;
    let path = folder.join("model.safetensors");
    // `transformers` refuses a file whose metadata doesn't say which framework it is from.
    let metadata = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    let mut tensors = model.state_dict()?;
    for tensor in tensors.values_mut() {
        *tensor = tensor.to_dtype(DType::F32)?;
    }
    safetensors::serialize_to_file(tensors, Some(metadata), &path)
        .map_err(|error| Error::input(format!("{}: {error}", path.display())))
}
