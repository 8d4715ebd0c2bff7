//! `tokens`: sentences with their answers marked, a line each, as the pre-tokenised examples that task
//! `tokens` reads. docs/tokens.md tells both formats.

use std::path::Path;

use anyhow::{Context, Result, bail};
use circuit_framework::data::example::Counterfactual;
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::{Example, Key, files};
use circuit_models::Loaded;
use clap::{Arg, ArgMatches, Command};
use serde::Serialize;
use serde_json::Value;

use super::{output, path};
use crate::flags::{self, Flag, MODEL};
use crate::outputs::Outputs;
use crate::print::{self, say};

const FLAGS: &[&[Flag]] = &[MODEL];

pub(crate) fn command() -> Command {
    let tokens = Command::new("tokens")
        .about("Turn sentences with marked answers into examples for task `tokens`")
        .arg(
            Arg::new("file")
                .value_name("FILE.txt")
                .required(true)
                .help("An example a line: TEXT[[ RIGHT| WRONG]], a counterfactual after a tab"),
        );
    flags::add(tokens, FLAGS).arg(output(
        "out",
        "OUT.jsonl",
        "Write the examples here; without it, to standard output",
    ))
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let file = path(matches, "file").unwrap_or_default();
    let experiment = flags::experiment(matches, FLAGS)?;
    let inputs = experiment.inputs().into_iter().chain([file.clone()]);
    let outputs = Outputs::new(matches, &["out"], inputs.collect())?;
    let Loaded { model, tokenizer } = circuit_models::load(&experiment.model)?;
    let tokenizer = tokenizer.context("the model has no tokenizer to make tokens with")?;
    let text = files::read_text(&file)?;
    let (mut lines, mut sentences) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let origin = format!("{}:{}", file.display(), index + 1);
        let example = example(line, &tokenizer, &origin).context(origin)?;
        example.check(model.vocabulary(), model.context())?;
        sentences.push(unmarked(line)?);
        lines.push(Line::new(line, example));
    }
    if lines.is_empty() {
        bail!("{}: there is no line in it; write an example a line", file.display());
    }
    tokenizer.note_unknown_words(sentences.iter().map(|sentence| &sentence[..]))?;
    let jsonl = files::jsonl(&lines)?;
    match outputs.file("out")? {
        Some(path) => write(path, &jsonl, &lines),
        None => {
            print::text(&jsonl);
            Ok(())
        }
    }
}

fn write(path: &Path, jsonl: &str, lines: &[Line]) -> Result<()> {
    files::write_atomically(path, jsonl.as_bytes())?;
    let keys: usize = lines.iter().map(|line| line.key_positions.len()).sum();
    say!("{} examples with {keys} keys are in {}", lines.len(), path.display());
    Ok(())
}

/// A line of the output.
#[derive(Serialize)]
struct Line {
    /// The sentence as it was marked; the task passes over it.
    text: String,
    tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key_positions: Vec<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    correct: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    wrong: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    corrupt_tokens: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    corrupt_key_positions: Vec<usize>,
}

impl Line {
    fn new(line: &str, example: Example) -> Self {
        let Example { tokens, keys, counterfactual, .. } = example;
        // One id where there is one, a list else.
        let answers = |ids: &[u32]| match ids {
            [id] => Value::from(*id),
            ids => Value::from(ids),
        };
        let compared = keys.iter().any(|key| !key.wrong.is_empty());
        let (corrupt_tokens, corrupt_key_positions) = match counterfactual {
            Some(Counterfactual { tokens, key_positions }) => (Some(tokens), key_positions),
            None => (None, Vec::new()),
        };
        Self {
            text: line.split('\t').next().unwrap_or_default().to_owned(),
            tokens,
            key_positions: keys.iter().map(|key| key.position).collect(),
            correct: keys.iter().map(|key| answers(&key.correct)).collect(),
            wrong: keys.iter().filter(|_| compared).map(|key| answers(&key.wrong)).collect(),
            corrupt_tokens,
            corrupt_key_positions,
        }
    }
}

/// A line's sentence with its right answers, the marks left out.
fn unmarked(line: &str) -> Result<String> {
    let marked = Marked::parse(line.split('\t').next().unwrap_or_default())?;
    let keys = marked.keys.iter().map(|key| format!("{}{}", key.before, key.right[0]));
    Ok(keys.chain([marked.rest.clone()]).collect())
}

/// The example of a line.
fn example(line: &str, tokenizer: &Tokenizer, origin: &str) -> Result<Example> {
    let (text, counterfactual) = match line.split_once('\t') {
        Some((text, counterfactual)) => (text, Some(counterfactual)),
        None => (line, None),
    };
    let marked = Marked::parse(text)?;
    let (tokens, keys) = marked.tokenise(tokenizer)?;
    let counterfactual = counterfactual
        .map(|text| -> Result<Counterfactual> {
            let other = Marked::parse(text)?;
            let (other_tokens, other_keys) = other.tokenise(tokenizer)?;
            match other_keys.is_empty() {
                true => without_marks(other_tokens, &marked, &tokens, &keys),
                false => Ok(Counterfactual {
                    tokens: other_tokens,
                    key_positions: other_keys.iter().map(|key| key.position).collect(),
                }),
            }
        })
        .transpose()
        .context("the counterfactual")?;
    Ok(Example {
        predicted: 1..tokens.len().max(1),
        tokens,
        keys,
        counterfactual,
        origin: origin.to_owned(),
        ..Example::default()
    })
}

/// A counterfactual without marks of its own: where the sentence ends with its answer, the answer is put
/// at its end; its keys are at the sentence's positions, or its one key at the end.
fn without_marks(
    mut tokens: Vec<u32>,
    marked: &Marked,
    clean: &[u32],
    keys: &[Key],
) -> Result<Counterfactual> {
    if !keys.is_empty() && marked.rest.is_empty() {
        tokens.extend(clean.last());
    }
    let key_positions = match keys {
        _ if tokens.len() == clean.len() => keys.iter().map(|key| key.position).collect(),
        [] => Vec::new(),
        [_] if marked.rest.is_empty() => vec![tokens.len() - 1],
        _ => bail!(
            "it has {} tokens and the sentence {}; mark the place of its key with [[…]] too",
            tokens.len(),
            clean.len()
        ),
    };
    Ok(Counterfactual { tokens, key_positions })
}

/// A sentence with the answers that are marked in it.
struct Marked {
    keys: Vec<MarkedKey>,
    /// What follows the last key.
    rest: String,
}

struct MarkedKey {
    /// What stands before it, from the key before on.
    before: String,
    /// At least one; the first is the one that is in the text.
    right: Vec<String>,
    wrong: Vec<String>,
}

impl Marked {
    fn parse(text: &str) -> Result<Self> {
        let (mut keys, mut rest) = (Vec::new(), text);
        while let Some((before, marked)) = rest.split_once("[[") {
            let Some((answers, after)) = marked.split_once("]]") else {
                bail!("[[ without ]]; mark an answer as in `He gave it to[[ Mary| John]]`");
            };
            let list = |answers: &str| -> Result<Vec<String>> {
                if answers.split('/').any(str::is_empty) {
                    bail!("an answer in [[{answers}]] is empty");
                }
                Ok(answers.split('/').map(str::to_owned).collect())
            };
            let (right, wrong) = match answers.split_once('|') {
                Some((right, wrong)) => (list(right)?, list(wrong)?),
                None => (list(answers)?, Vec::new()),
            };
            keys.push(MarkedKey { before: before.to_owned(), right, wrong });
            rest = after;
        }
        Ok(Self { keys, rest: rest.to_owned() })
    }

    /// The tokens of the sentence with its first right answers, what the tokenizer puts before texts
    /// included, and the keys in it.
    fn tokenise(&self, tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<Key>)> {
        let encode = |text: &str| -> Result<Vec<u32>> {
            Ok(tokenizer.prefix().into_iter().chain(tokenizer.encode(text)?).collect())
        };
        let mut before = String::new();
        let mut keys = Vec::new();
        for key in &self.keys {
            before.push_str(&key.before);
            let start = encode(&before)?;
            if start.is_empty() {
                bail!("nothing stands before [[; the first token is predicted by none");
            }
            let ids = |answers: &[String]| -> Result<Vec<u32>> {
                let id = |answer: &String| {
                    let id = one_token(answer, &start, &encode(&(before.clone() + answer))?)?;
                    check_known(answer, id, tokenizer)?;
                    Ok(id)
                };
                answers.iter().map(id).collect()
            };
            let (correct, wrong) = (ids(&key.right)?, ids(&key.wrong)?);
            keys.push(Key { position: start.len(), correct, wrong });
            before.push_str(&key.right[0]);
        }
        let tokens = encode(&(before + &self.rest))?;
        for (key, marked) in keys.iter().zip(&self.keys) {
            if tokens.get(key.position) != key.correct.first() {
                bail!(
                    "the text after [[…]] becomes one token with `{}`; leave it out, or a space between",
                    marked.right[0]
                );
            }
        }
        Ok((tokens, keys))
    }
}

/// Refuses an answer whose token says something else: that for words the tokenizer doesn't know.
fn check_known(answer: &str, id: u32, tokenizer: &Tokenizer) -> Result<()> {
    // Tokenizers differ in what they make of spaces and capitals.
    let plain = |text: &str| text.trim().to_lowercase();
    match tokenizer.text(id) {
        Some(text) if plain(&text) != plain(answer) => {
            bail!("answer `{answer}` is not in the vocabulary; its token says `{text}`")
        }
        _ => Ok(()),
    }
}

/// The token of an answer, from the tokens of the text before it, `start`, and of both.
fn one_token(answer: &str, start: &[u32], both: &[u32]) -> Result<u32> {
    match both.strip_prefix(start) {
        Some([id]) => Ok(*id),
        Some(tokens) => bail!(
            "answer `{answer}` is {} tokens; an answer is one token, a word with the space before it: \
             [[ Mary]]",
            tokens.len()
        ),
        None => bail!(
            "answer `{answer}` becomes one token with the text before it; take the space before a word \
             into the brackets: `to[[ Mary]]`"
        ),
    }
}
