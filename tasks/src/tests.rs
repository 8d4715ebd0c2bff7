//! What the tasks' tests have in common: a tokenizer that needs no file, the fixtures, the real data.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use circuit_framework::Setting;
use circuit_framework::tokenizer::Tokenizer;
use serde_json::json;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// A token a byte; no chat template, no special tokens.
pub(crate) fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let mut alphabet: Vec<String> =
            ByteLevel::alphabet().into_iter().map(String::from).collect();
        alphabet.sort_unstable();
        let vocab: serde_json::Map<String, serde_json::Value> =
            (alphabet.into_iter().enumerate()).map(|(id, byte)| (byte, id.into())).collect();
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        });
        let json = json!({
            "version": "1.0", "added_tokens": [], "pre_tokenizer": byte_level,
            "decoder": byte_level, "model": { "type": "BPE", "vocab": vocab, "merges": [] },
        });
        let inner = json.to_string().parse().unwrap();
        Tokenizer { inner, beginning: None, end: None, chat_template: None }
    })
}

pub(crate) fn setting(context: usize) -> Setting<'static> {
    Setting { tokenizer: Some(tokenizer()), context, seed: 0 }
}

/// A file of tasks/fixtures.
pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// A file of ../shared/data. Where it is missing the test says so, and in CI it fails.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(path);
    if file.exists() {
        return Some(file);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is required here", file.display());
    use std::io::Write;
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Past the test runner's capturing, which `eprintln!` doesn't get through.
    let message = format!("SKIPPED {test}: {} is not there\n", file.display());
    std::io::stderr().write_all(message.as_bytes()).unwrap();
    None
}
