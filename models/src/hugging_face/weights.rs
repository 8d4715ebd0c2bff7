//! Weights in safetensors files: one file, or shards with their index. Tensors are listed at once and
//! read when they are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use candle_core::safetensors::{Load, load_buffer};
use candle_core::{Device, Tensor};
use circuit_framework::model::checkpoint::Stored;
use circuit_framework::{Error, Result, files, refuse};
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};
use serde_json::Value;

/// A folder's tensors.
pub(super) fn list(folder: &Path) -> Result<BTreeMap<String, Stored>> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if single.exists() {
        return list_file(&single);
    }
    if !index.exists() {
        let torch = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
        if let Some(file) = torch.iter().find(|file| folder.join(file).exists()) {
            refuse!(
                "{0}: has its weights in {file}, which isn't read; transformers makes safetensors of them: \
                 AutoModelForCausalLM.from_pretrained(\"{0}\").save_pretrained(FOLDER)",
                folder.display()
            );
        }
        refuse!(
            "{}: there is no model.safetensors and no model.safetensors.index.json",
            folder.display()
        );
    }
    list_shards(folder, &index)
}

/// The tensors of all shards, each in the one that the index's `weight_map` says.
fn list_shards(folder: &Path, index: &Path) -> Result<BTreeMap<String, Stored>> {
    let json: Value = files::read_json(index)?;
    let map: BTreeMap<String, String> = serde_json::from_value(json["weight_map"].clone())
        .map_err(|error| Error::input(format!("{}: `weight_map`: {error}", index.display())))?;
    let index = index.display();
    let mut found: BTreeMap<String, (&str, Stored)> = BTreeMap::new();
    for file in map.values().collect::<BTreeSet<_>>() {
        for (name, tensor) in list_file(&shard(folder, file, &index.to_string())?)? {
            let place = map.get(&name);
            if let Some((first, _)) = found.insert(name.clone(), (file, tensor)) {
                refuse!("{index}: tensor `{name}` stands in two shards, {first} and {file}");
            }
            if place.is_none() {
                refuse!("{index}: `weight_map` has no tensor `{name}`, but {file} does");
            }
        }
    }
    for (name, file) in &map {
        if found.get(name).is_none_or(|(place, _)| place != file) {
            refuse!("{index}: `weight_map` says tensor `{name}` is in {file}, which has none");
        }
    }
    Ok(found.into_iter().map(|(name, (_, tensor))| (name, tensor)).collect())
}

/// The shard that an index names: a regular file in the model's folder, or a link to one there, or to the
/// blobs that the snapshots in Hugging Face's cache are links to. An index may come from anywhere.
fn shard(folder: &Path, name: &str, index: &str) -> Result<PathBuf> {
    let is_inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if !is_inside || name.is_empty() {
        refuse!("{index}: `weight_map` names {name:?}; a shard is a file in the model's folder");
    }
    let path = folder.join(name);
    let place = path.canonicalize().map_err(Error::io(&path))?;
    let homes = [Some(folder.to_path_buf()), blobs(folder)];
    let at_home = |home: PathBuf| home.canonicalize().is_ok_and(|home| place.starts_with(home));
    if !homes.into_iter().flatten().any(at_home) {
        refuse!(
            "{index}: `weight_map` names {name:?}, a link to {}, outside the model's folder; put the file there",
            place.display()
        );
    }
    files::check_regular(&place)
        .map_err(|error| Error::input(format!("{index}: `weight_map` names {name:?}: {error}")))?;
    Ok(path)
}

/// Where the files of a snapshot in Hugging Face's cache are: `models--…/blobs` beside `models--…/snapshots`.
fn blobs(folder: &Path) -> Option<PathBuf> {
    let folder = folder.canonicalize().ok()?;
    let snapshots = folder.parent().filter(|parent| parent.ends_with("snapshots"))?;
    Some(snapshots.parent()?.join("blobs"))
}

/// A safetensors file's tensors.
fn list_file(path: &Path) -> Result<BTreeMap<String, Stored>> {
    let (start, metadata) = header(path)?;
    let stored = |(name, info): (String, &TensorInfo)| {
        let (path, info, tensor) = (path.to_path_buf(), info.clone(), name.clone());
        let shape = info.shape.clone();
        (name, Stored { shape, read: Box::new(move || read(&path, start, &info, &tensor)) })
    };
    Ok(metadata.tensors().into_iter().collect::<BTreeMap<_, _>>().into_iter().map(stored).collect())
}

/// Where a file's tensors start, and what they are.
fn header(path: &Path) -> Result<(u64, Metadata)> {
    let broken = |reason: String| {
        let path = path.display();
        Error::input(format!("{path}: not a whole safetensors file ({reason}); fetch it again"))
    };
    let mut file = File::open(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|error| broken(error.to_string()))?;
    let length = u64::from_le_bytes(length);
    if length > size {
        return Err(broken("it is shorter than its header".to_owned()));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(|error| broken(error.to_string()))?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| match error.is_data() {
            // Whole, but with a type that isn't known, say.
            true => Error::input(format!("{}: the header can't be read: {error}", path.display())),
            false => broken(error.to_string()),
        })?;
    let start = 8 + length;
    let (held, listed) = (size.saturating_sub(start), metadata.data_len() as u64);
    if held != listed {
        return Err(broken(format!("{held} bytes of tensors, which should be {listed}")));
    }
    Ok((start, metadata))
}

fn read(path: &PathBuf, start: u64, info: &TensorInfo, name: &str) -> Result<Tensor> {
    if !matches!(info.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        refuse!(
            "{}: tensor `{name}` is {:?}, but weights are read as F64, F32, F16 or BF16; convert them first",
            path.display(),
            info.dtype
        );
    }
    let (from, to) = info.data_offsets;
    let mut bytes = vec![0; to - from];
    let mut file = File::open(path).map_err(Error::io(path))?;
    file.seek(SeekFrom::Start(start + from as u64)).map_err(Error::io(path))?;
    file.read_exact(&mut bytes).map_err(Error::io(path))?;
    let place =
        |error: String| Error::input(format!("{}: tensor `{name}`: {error}", path.display()));
    let view = TensorView::new(info.dtype, info.shape.clone(), &bytes)
        .map_err(|error| place(error.to_string()))?;
    view.load(&Device::Cpu).map_err(|error| place(error.to_string()))
}

/// The tensors of a safetensors file that is in memory.
pub(crate) fn list_bytes(bytes: &[u8], origin: &str) -> Result<BTreeMap<String, Stored>> {
    let tensors = load_buffer(bytes, &Device::Cpu)
        .map_err(|error| Error::input(format!("{origin}: {error}")))?;
    let stored = |(name, tensor): (String, Tensor)| {
        let shape = tensor.dims().to_vec();
        (name, Stored { shape, read: Box::new(move || Ok(tensor)) })
    };
    Ok(tensors.into_iter().map(stored).collect())
}
