//! Hugging Face model folders: config.json, model.safetensors (one file, or sharded with its
//! index), and the tokenizer's files. What is saved here, `transformers` loads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use circuit_framework::model::Weights;
use circuit_framework::tokenizer::Tokenizer;
use circuit_framework::{Checkpoint, Error, Model, Result, files, refuse};
use serde_json::{Value, json};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// Reads a folder's configuration and weights.
pub(crate) fn read_checkpoint(folder: &Path) -> Result<Checkpoint> {
    let config = files::read_json(&folder.join("config.json"))?;
    let mut tensors = BTreeMap::new();
    for file in weight_files(folder)? {
        tensors.extend(read_tensors(&file)?);
    }
    Ok(Checkpoint {
        config,
        weights: Weights::Given(tensors),
        dtype: DType::F32,
        device: Device::Cpu,
        origin: folder.display().to_string(),
    })
}

/// The safetensors files of a folder.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if single.exists() {
        return Ok(vec![single]);
    }
    if !index.exists() {
        refuse!(
            "{}: there is no model.safetensors and no model.safetensors.index.json",
            folder.display()
        );
    }
    let json: Value = files::read_json(&index)?;
    let Some(map) = json["weight_map"].as_object() else {
        refuse!("{}: there is no `weight_map`", index.display());
    };
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// All floating-point tensors of a safetensors file, as float32.
fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    decode_tensors(&bytes, &path.display().to_string())
}

/// All floating-point tensors of a safetensors file's content, as float32.
pub(crate) fn decode_tensors(bytes: &[u8], origin: &str) -> Result<BTreeMap<String, Tensor>> {
    let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(|error| {
        Error::input(format!("{origin}: not a whole safetensors file ({error}); fetch it again"))
    })?;
    (tensors.into_iter().collect::<BTreeMap<_, _>>().into_iter())
        .filter(|(_, tensor)| tensor.dtype().is_float())
        .map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F32)?)))
        .collect()
}

/// Reads a folder's tokenizer, if it has one.
pub(crate) fn read_tokenizer(folder: &Path, config: &Value) -> Result<Option<Tokenizer>> {
    let (json, vocab, merges) =
        (folder.join("tokenizer.json"), folder.join("vocab.json"), folder.join("merges.txt"));
    let unreadable = |path: &Path| {
        let path = path.display().to_string();
        move |error| Error::input(format!("{path}: {error}"))
    };
    let inner = if json.exists() {
        tokenizers::Tokenizer::from_file(&json).map_err(unreadable(&json))?
    } else if vocab.exists() && merges.exists() {
        let bpe = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy()).build();
        byte_level_bpe(bpe.map_err(unreadable(&vocab))?)
    } else {
        return Ok(None);
    };
    let settings_path = folder.join("tokenizer_config.json");
    let settings: Value = match settings_path.exists() {
        true => files::read_json(&settings_path)?,
        false => Value::Null,
    };
    let special = |token: &str, id: &str| {
        let text = settings[token].as_str().or(settings[token]["content"].as_str());
        let by_text = text.and_then(|text| inner.token_to_id(text));
        by_text.or(config[id].as_u64().map(|id| id as u32))
    };
    Ok(Some(Tokenizer {
        beginning: special("bos_token", "bos_token_id"),
        end: special("eos_token", "eos_token_id"),
        chat_template: settings["chat_template"].as_str().map(str::to_owned),
        inner,
    }))
}

/// GPT-2's byte-level BPE around a vocabulary.
fn byte_level_bpe(bpe: BPE) -> tokenizers::Tokenizer {
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer
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
        write_tokenizer(temporary.path(), tokenizer)?;
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

fn write_tokenizer(folder: &Path, tokenizer: &Tokenizer) -> Result<()> {
    let path = folder.join("tokenizer.json");
    (tokenizer.inner.save(&path, false))
        .map_err(|error| Error::input(format!("{}: {error}", path.display())))?;
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.inner.id_to_token(id));
    let mut settings = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
    let values = [
        ("bos_token", text(tokenizer.beginning)),
        ("eos_token", text(tokenizer.end)),
        ("chat_template", tokenizer.chat_template.clone()),
    ];
    for (key, value) in values {
        if let Some(value) = value {
            settings[key] = json!(value);
        }
    }
    files::write_json(&folder.join("tokenizer_config.json"), &settings)
}
