//! What the tasks' tests have in common: a tokenizer that needs no file, the fixtures, the real data.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::plugin::conformance::byte_tokenizer;
use circuit_framework::{Example, Setting};
use serde_json::{Value, json};

/// A token a byte; no chat template, no special tokens.
pub(crate) fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| byte_tokenizer().unwrap())
}

pub(crate) fn setting(context: usize) -> Setting<'static> {
    Setting { tokenizer: Some(tokenizer()), context, seed: 0, counterfactuals: false }
}

/// A file of tasks/fixtures.
pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// GPT-2's tokenizer, where ../shared has it.
pub(crate) fn gpt2() -> Option<&'static Tokenizer> {
    static TOKENIZER: OnceLock<Option<Tokenizer>> = OnceLock::new();
    let read = || {
        let (vocab, merges) =
            (shared("../tokenizers/gpt2/vocab.json")?, shared("../tokenizers/gpt2/merges.txt")?);
        let vocab: Value = serde_json::from_str(&std::fs::read_to_string(vocab).unwrap()).unwrap();
        let merges = std::fs::read_to_string(merges).unwrap();
        let merges: Vec<&str> =
            merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#v")).collect();
        let byte_level =
            json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true });
        let json = json!({
            "version": "1.0", "added_tokens": [], "pre_tokenizer": byte_level, "decoder": byte_level,
            "model": { "type": "BPE", "vocab": vocab, "merges": merges },
        });
        let inner = json.to_string().parse().unwrap();
        Some(Tokenizer { inner, ..tokenizer().clone() })
    };
    TOKENIZER.get_or_init(read).as_ref()
}

/// Every tokenizer that a task of prompts is tested with: a token a byte, and GPT-2's.
pub(crate) fn tokenizers() -> impl Iterator<Item = &'static Tokenizer> {
    std::iter::once(tokenizer()).chain(gpt2())
}

/// What holds of every example with a counterfactual: it is as long, it differs, and what is predicted
/// is the answer.
pub(crate) fn check_counterfactuals(examples: &[Example]) {
    assert!(!examples.is_empty());
    for example in examples {
        let counterfactual = example.counterfactual.as_ref().unwrap();
        assert_eq!(counterfactual.tokens.len(), example.tokens.len(), "{}", example.origin);
        let [key] = &example.keys[..] else { panic!("one key") };
        assert_ne!(counterfactual.tokens[..key.position], example.tokens[..key.position]);
        assert_eq!(counterfactual.key_positions, [key.position]);
        assert!(key.correct.contains(&example.tokens[key.position]));
        assert!(!key.wrong.is_empty() && key.wrong.iter().all(|id| !key.correct.contains(id)));
    }
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
