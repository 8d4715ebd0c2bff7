//! EAP-IG's graph file as it stands.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::{Error, Result, files, refuse};

/// A model as their files tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Config {
    pub(super) n_layers: usize,
    pub(super) n_heads: usize,
    pub(super) parallel_attn_mlp: bool,
    pub(super) d_model: usize,
}

/// A file of theirs.
#[derive(Deserialize)]
pub(super) struct GraphFile {
    pub(super) cfg: Config,
    pub(super) nodes: BTreeMap<String, NodeEntry>,
    pub(super) edges: BTreeMap<String, EdgeEntry>,
}

#[derive(Deserialize)]
pub(super) struct NodeEntry {
    pub(super) score: Option<Value>,
    pub(super) neurons: Option<Value>,
    pub(super) neurons_scores: Option<Value>,
}

#[derive(Deserialize)]
pub(super) struct EdgeEntry {
    /// Files that hold a circuit alone may have none; `null` is not none, but a number that was none.
    #[serde(default, deserialize_with = "present")]
    pub(super) score: Option<Value>,
    pub(super) in_graph: bool,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl GraphFile {
    pub(super) fn read(path: &Path) -> Result<Self> {
        serde_json::from_str(&quote_bare_words(&files::read_text(path)?)).map_err(|error| {
            Error::input(format!("{}: this is no graph file of EAP-IG's: {error}", path.display()))
        })
    }
}

impl EdgeEntry {
    /// The score, 0 where there is none.
    pub(super) fn finite_score(&self, path: &Path, name: &str) -> Result<f64> {
        let Some(value) = &self.score else { return Ok(0.0) };
        match value.as_f64().filter(|&score| (score as f32).is_finite()) {
            Some(score) => Ok(score),
            None => refuse!(
                "{}: the score of `{name}` is {}; it must be a finite number",
                path.display(),
                value.as_str().map_or_else(|| value.to_string(), str::to_owned)
            ),
        }
    }
}

/// JSON as Python writes it, with NaN, Infinity and -Infinity where JSON has no number, made strings of.
fn quote_bare_words(text: &str) -> String {
    let (mut quoted, mut rest) = (String::with_capacity(text.len()), text);
    let mut is_string = false;
    loop {
        let word = ["NaN", "Infinity", "-Infinity"].into_iter().find(|word| rest.starts_with(word));
        let mut chars = rest.chars();
        let Some(first) = chars.next() else { break };
        let taken = match word.filter(|_| !is_string) {
            Some(word) => {
                quoted.push_str(&format!("\"{word}\""));
                word.len()
            }
            None => {
                // What is escaped never ends a string.
                let escaped = chars.next().filter(|_| is_string && first == '\\');
                let len = first.len_utf8() + escaped.map_or(0, char::len_utf8);
                is_string ^= first == '"';
                quoted.push_str(&rest[..len]);
                len
            }
        };
        rest = &rest[taken..];
    }
    quoted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bare_words_are_quoted_outside_strings() {
        let text = r#"{"NaN \" NaN é\\": NaN, "b": [-Infinity, Infinity, 1.5, "é Infinity"]}"#;
        let value: Value = serde_json::from_str(&quote_bare_words(text)).unwrap();
        let expected = json!({
            "NaN \" NaN é\\": "NaN", "b": ["-Infinity", "Infinity", 1.5, "é Infinity"],
        });
        assert_eq!(value, expected);
    }
}
