//! What the tasks' tests have in common: a tokenizer that needs no file, the fixtures, the real data.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use circuit_framework::Setting;
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::plugin::conformance::byte_tokenizer;

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
