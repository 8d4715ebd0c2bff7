//! Pre-tokenised examples from JSON Lines, so that anyone can bring data without writing a plugin.
//!
//! A line is `{"tokens": […], "key_positions": […], "correct": […], "wrong": […], "corrupt_tokens":
//! […], "corrupt_key_positions": […]}`; only `tokens` is required. A key position is the index of
//! the key token itself; it is predicted, and the graph is read, at the position before it. `correct`
//! and `wrong` have an entry a key position, a token id or a list of them; without `correct`, the right
//! answers are the key tokens. `spans` marks tokens by name, `values` are for a metric of one's own to
//! read. Other fields are passed over. docs/tokens.md tells the whole format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use circuit_framework::data::example::{Counterfactual, Spans, Value};
use circuit_framework::{
    Dataset, Example, Key, Result, Setting, Split, Task, files, refuse, register,
};
use serde::{Deserialize, Serialize};

/// Where the examples are.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Tokens {
    /// The JSON Lines file to discover and tune on.
    data: Option<PathBuf>,
    /// The JSON Lines file to evaluate on; without it, `data`.
    test_data: Option<PathBuf>,
}

/// A line of the file.
#[derive(Deserialize)]
struct Line {
    tokens: Vec<u32>,
    #[serde(default)]
    key_positions: Vec<usize>,
    correct: Option<Vec<Answers>>,
    wrong: Option<Vec<Answers>>,
    corrupt_tokens: Option<Vec<u32>>,
    #[serde(default)]
    corrupt_key_positions: Vec<usize>,
    #[serde(default)]
    spans: Spans,
    #[serde(default)]
    values: BTreeMap<String, Value>,
}

/// A key's answers on one side.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a token id or a list of token ids")]
enum Answers {
    One(u32),
    Set(Vec<u32>),
}

impl Answers {
    fn ids(&self) -> Vec<u32> {
        match self {
            Answers::One(id) => vec![*id],
            Answers::Set(ids) => ids.clone(),
        }
    }
}

impl Line {
    fn into_example(self, origin: String) -> Result<Example> {
        let keys = self.key_positions.len();
        for (name, answers) in [("correct", &self.correct), ("wrong", &self.wrong)] {
            if let Some(answers) = answers
                && answers.len() != keys
            {
                refuse!(
                    "{origin}: {} `{name}` for {keys} key positions; give one each",
                    answers.len()
                );
            }
        }
        let mut found = Vec::with_capacity(keys);
        for (index, &position) in self.key_positions.iter().enumerate() {
            let Some(&token) = self.tokens.get(position) else {
                refuse!(
                    "{origin}: key position {position}, but there are {} tokens; it is a token's \
                     index from 1 up",
                    self.tokens.len()
                );
            };
            found.push(Key {
                position,
                correct: self.correct.as_ref().map_or(vec![token], |correct| correct[index].ids()),
                wrong: self.wrong.as_ref().map_or(Vec::new(), |wrong| wrong[index].ids()),
            });
        }
        Ok(Example {
            predicted: 1..self.tokens.len().max(1),
            tokens: self.tokens,
            keys: found,
            counterfactual: self
                .corrupt_tokens
                .map(|tokens| Counterfactual { tokens, key_positions: self.corrupt_key_positions }),
            spans: self.spans,
            values: self.values,
            origin,
            ..Example::default()
        })
    }
}

fn read(path: &Path) -> Result<Vec<Example>> {
    let lines = files::read_jsonl::<Line>(path)?;
    if lines.is_empty() {
        refuse!("{}: no examples; give a JSON object with `tokens` a line", path.display());
    }
    (lines.into_iter())
        .map(|(number, line)| line.into_example(format!("{}:{number}", path.display())))
        .collect()
}

impl Task for Tokens {
    fn default_metric(&self) -> &str {
        "logit_diff"
    }

    fn load(&self, split: Split, _: &Setting) -> Result<Box<dyn Dataset>> {
        let test = self.test_data.as_ref().filter(|_| split == Split::Test);
        match test.or(self.data.as_ref()) {
            Some(path) => Ok(Box::new(read(path)?)),
            None => {
                refuse!("task `tokens` needs data: a JSON Lines file of pre-tokenised examples")
            }
        }
    }
}

register!(dyn Task, Tokens, "tokens", "pre-tokenised examples from JSON Lines");

#[cfg(test)]
mod tests {
    use super::*;

    fn example(json: &str) -> Result<Example> {
        let line: Line = serde_json::from_str(json).expect("a line");
        line.into_example("data.jsonl:3".to_owned())
    }

    #[test]
    fn a_line_becomes_an_example() {
        let found = example(r#"{"tokens": [5, 6, 7], "key_positions": [2], "wrong": [8]}"#);
        let found = found.expect("a good line");
        assert_eq!(found.keys, [Key { position: 2, correct: vec![7], wrong: vec![8] }]);
        assert_eq!(found.predicted, 1..3);
    }

    #[test]
    fn a_line_has_spans_and_values_by_name() {
        let found = example(
            r#"{"tokens": [5, 6, 7], "spans": {"subject": [0, 1]},
                "values": {"year": 41, "candidates": [5, 7], "verb": "is"}}"#,
        );
        let mut found = found.expect("a good line");
        found.check(10, 10).expect("good spans");
        assert_eq!(found.spans["subject"], [0, 1]);
        assert_eq!(found.number("year").expect("a number"), 41.0);
        assert_eq!(found.token_ids("candidates").expect("ids"), [5, 7]);
        assert_eq!(found.values["verb"], Value::Text("is".to_owned()));
        assert!(found.number("verb").is_err());
        for span in [vec![], vec![3], vec![1, 1]] {
            found.spans.insert("subject".to_owned(), span);
            let error = found.check(10, 10).expect_err("a bad span").to_string();
            assert!(error.starts_with("data.jsonl:3: span `subject` is"), "{error}");
        }
    }

    #[test]
    fn refusals_name_the_line() {
        for line in [
            r#"{"tokens": [5, 6, 7], "key_positions": [3]}"#,
            r#"{"tokens": [5, 6, 7], "key_positions": [1, 2], "wrong": [8]}"#,
        ] {
            let error = example(line).expect_err("a bad line").to_string();
            assert!(error.starts_with("data.jsonl:3: "), "{error}");
        }
    }
}
