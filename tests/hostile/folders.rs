//! Files that a model's folder names: regular files, and shards inside it.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::refuses_within;
use crate::models::case;
use crate::support::{at, load, weights};

const LITTLE: u64 = 4_000_000;

/// A folder with the reference Llama's configuration and an index that says all tensors are in one file.
fn indexed(folder: &Path, shard: &str) {
    let model = case("llama-key-mean");
    std::fs::create_dir_all(folder).unwrap();
    std::fs::copy(model.join("config.json"), folder.join("config.json")).unwrap();
    let file = std::fs::read(model.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let names = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
    let map: BTreeMap<&String, &str> = names.map(|name| (name, shard)).collect();
    let index = json!({ "weight_map": map }).to_string();
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

fn weights_file() -> PathBuf {
    case("llama-key-mean").join("model.safetensors")
}

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_shard_is_a_regular_file_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::copy(weights_file(), here.join("outside")).unwrap();
    let model = here.join("model");
    let eval = "discover --model model --task tokens --data absent";
    let absolute = here.join("outside").display().to_string();
    for shard in ["../outside", "./../model/../outside", &absolute, "/dev/zero", "", "."] {
        indexed(&model, shard);
        refuses_within(here, LITTLE, eval, &["weight_map", &format!("{shard:?}")]);
    }
    indexed(&model, "pipe");
    make_fifo(&model.join("pipe"));
    refuses_within(here, LITTLE, eval, &["\"pipe\"", "no regular file"]);
    indexed(&model, "link");
    symlink("../outside", model.join("link")).unwrap();
    refuses_within(here, LITTLE, eval, &["\"link\", a link to", "outside the model's folder"]);
    std::fs::remove_file(model.join("link")).unwrap();
    symlink("/dev/zero", model.join("link")).unwrap();
    refuses_within(here, LITTLE, eval, &["\"link\""]);
    std::fs::remove_file(model.join("link")).unwrap();
    // And what is one is read.
    std::fs::copy(weights_file(), model.join("link")).unwrap();
    let expected = weights(&*load(at(&case("llama-key-mean"))).model);
    assert_eq!(weights(&*load(at(&model)).model), expected);
}

/// A snapshot in Hugging Face's cache is a folder of links to blobs, which lie outside it.
#[test]
fn links_of_a_snapshot_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("models--a--b");
    std::fs::create_dir_all(cache.join("blobs")).unwrap();
    std::fs::copy(weights_file(), cache.join("blobs/0123")).unwrap();
    let snapshot = cache.join("snapshots/abc");
    indexed(&snapshot, "model-00001-of-00001.safetensors");
    symlink("../../blobs/0123", snapshot.join("model-00001-of-00001.safetensors")).unwrap();
    let expected = weights(&*load(at(&case("llama-key-mean"))).model);
    assert_eq!(weights(&*load(at(&snapshot)).model), expected);
}

#[test]
fn a_pipe_in_place_of_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let model = here.join("model");
    for file in [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "vocab.json",
    ] {
        indexed(&model, "shard");
        std::fs::copy(weights_file(), model.join("shard")).unwrap();
        let _ = std::fs::remove_file(model.join(file));
        make_fifo(&model.join(file));
        let eval = "discover --model model --task tokens --data absent";
        refuses_within(here, LITTLE, eval, &[file, "no regular file"]);
        std::fs::remove_dir_all(&model).unwrap();
    }
    make_fifo(&here.join("model.gguf"));
    refuses_within(here, LITTLE, "eval --model model.gguf", &["model.gguf", "no regular file"]);
    std::fs::create_dir(here.join("adapter")).unwrap();
    make_fifo(&here.join("adapter/adapter_config.json"));
    let eval = "eval --set model.adapter=adapter";
    refuses_within(here, LITTLE, eval, &["adapter_config.json", "no regular file"]);
}

#[test]
fn a_device_that_never_ends_is_not_read_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let eval = "eval --task tokens --data /dev/zero";
    refuses_within(folder.path(), LITTLE, eval, &["/dev/zero", "more than 1 GiB"]);
}
