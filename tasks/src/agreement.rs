//! Subject-verb agreement and disagreement (arXiv 2502.06106, section 4.1).
//!
//! Sentences come from annotated JSON Lines (`clean_text`, `corr_text` with its verbs flipped,
//! `clean_verbs`, `corr_verbs`), published ones or made of any text by tools/prepare_agreement.py, or,
//! where no file is given, from a grammar. Positions and token ids
//! are derived from the text with the model's own tokenizer; GPT-2's, which the files carry too,
//! serve as a check. Trained on are the grammatical sentences (`agreement`) or the flipped ones
//! (`disagreement`); evaluation is always from the side of the grammatical form.
//!
//! A flipped verb stands behind the position that is read, so it is no counterfactual. Generated
//! sentences carry one, and prepared ones where they can: the subject's number flipped.
//!
//! Marked are the `subject` and the `attractor`, the nouns of the other number before the verb; in a
//! sentence of several verbs those of all of them.

mod alignment;
mod counterfactual;
mod grammar;
mod marks;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use circuit_framework::data::example::Counterfactual;
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::{
    Dataset, Evaluation, Example, Figures, Key, Result, Setting, Split, Task, files, refuse,
    register,
};
use serde::{Deserialize, Serialize};

use crate::generated::check_count;

/// Which sentences are trained on.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
enum Direction {
    #[default]
    Agreement,
    Disagreement,
}

/// Where the sentences come from, and which way.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Agreement {
    /// Annotated JSON Lines to discover and tune on; without it, sentences are generated.
    data: Option<PathBuf>,
    /// Annotated JSON Lines to evaluate on; without it, `data`, or generated sentences with an
    /// attractor.
    test_data: Option<PathBuf>,
    /// Train on the grammatical sentences (`agreement`) or the flipped ones (`disagreement`).
    direction: Direction,
    /// At most so many sentences to discover and tune on; of generated ones, 2000 without it.
    train_examples: Option<usize>,
    /// At most so many sentences to evaluate on; of generated ones, 500 without it.
    test_examples: Option<usize>,
}

/// A verb in a text: where it stands, and the form it is flipped to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verb {
    span: Range<usize>,
    flipped: String,
}

/// What is marked.
const SUBJECT: &str = "subject";
const ATTRACTOR: &str = "attractor";

/// A part of a text, in bytes, and what it is called.
type Mark = (&'static str, Range<usize>);

/// A text with its verbs, and a text of the same form whose subject has the other number.
#[derive(Clone, Debug)]
struct Sentence {
    text: String,
    verbs: Vec<Verb>,
    counterfactual: Option<Box<Sentence>>,
    marks: Vec<Mark>,
    origin: String,
}

impl Sentence {
    /// The text with one verb in its other form.
    fn flip(&self, verb: &Verb) -> String {
        format!("{}{}{}", &self.text[..verb.span.start], verb.flipped, &self.text[verb.span.end..])
    }

    /// The text's tokens, and for each verb the first token that differs when it alone is flipped:
    /// what is compared, even where a form is several tokens. None where no token can be compared.
    fn tokenise(&self, tokenizer: &Tokenizer) -> Result<Option<(Vec<u32>, Vec<Key>)>> {
        let mut tokens: Vec<u32> = tokenizer.prefix().into_iter().collect();
        let prefix = tokens.len();
        tokens.extend(tokenizer.encode(&self.text)?);
        let mut keys = Vec::with_capacity(self.verbs.len());
        for verb in &self.verbs {
            let flipped = tokenizer.encode(&self.flip(verb))?;
            let own = &tokens[prefix..];
            let Some(at) = own.iter().zip(&flipped).position(|(own, flipped)| own != flipped)
            else {
                return Ok(None);
            };
            if prefix + at == 0 {
                return Ok(None);
            }
            keys.push(Key {
                position: prefix + at,
                correct: vec![own[at]],
                wrong: vec![flipped[at]],
            });
        }
        Ok(Some((tokens, keys)))
    }

    /// With its counterfactual, if that has as many tokens.
    fn example(&self, tokenizer: &Tokenizer) -> Result<Option<Example>> {
        let Some((tokens, keys)) = self.tokenise(tokenizer)? else {
            return Ok(None);
        };
        let counterfactual = match &self.counterfactual {
            None => None,
            Some(sentence) => match sentence.tokenise(tokenizer)? {
                Some((other, other_keys)) if other.len() == tokens.len() => Some(Counterfactual {
                    tokens: other,
                    key_positions: other_keys.iter().map(|key| key.position).collect(),
                }),
                // One of another length could not be held against the sentence token by token.
                _ => None,
            },
        };
        Ok(Some(Example {
            predicted: 1..tokens.len(),
            tokens,
            keys,
            counterfactual,
            spans: tokenizer.spans(&self.text, self.marks.iter().cloned())?,
            origin: self.origin.clone(),
            ..Example::default()
        }))
    }
}

/// A line of the annotated files.
#[derive(Deserialize)]
struct Line {
    clean_text: String,
    corr_text: String,
    clean_verbs: Vec<String>,
    corr_verbs: Vec<String>,
    clean_verb_pos: Option<Vec<usize>>,
    clean_verb_ids: Option<Vec<u32>>,
    counterfactual: Option<counterfactual::Marked>,
    /// Of each verb, in clean_text; first character and the one behind the last, in Unicode's code points.
    #[serde(default)]
    subject_spans: Vec<Option<[usize; 2]>>,
    /// Of each verb all.
    #[serde(default)]
    attractor_spans: Vec<Vec<[usize; 2]>>,
}

/// Counts of what a file's lines came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    /// Lines whose verbs could not be found in both texts, or told apart by any token.
    unaligned: BTreeSet<usize>,
    /// Lines whose stored GPT-2 ids do not fit the text, where the tokenizer is GPT-2's.
    misfits: BTreeSet<usize>,
    /// Lines left out since they have no counterfactual, where every example must have one.
    alone: BTreeSet<usize>,
    /// Lines left out since their counterfactual has another number of tokens.
    unequal: BTreeSet<usize>,
}

/// At most `most` sentences of a file's lines, grammatical or flipped, as examples; with
/// `counterfactuals` those that have one, unless none of the file's has.
fn read(
    path: &Path,
    lines: &[(usize, Line)],
    direction: Direction,
    counterfactuals: bool,
    tokenizer: &Tokenizer,
    most: usize,
    tally: &mut Tally,
) -> Result<Vec<Example>> {
    let counterfactuals =
        counterfactuals && lines.iter().any(|(_, line)| line.counterfactual.is_some());
    let is_gpt2 = tokenizer.encode("hello world")? == [31373, 995];
    let mut examples = Vec::new();
    for (number, line) in lines {
        let number = *number;
        if examples.len() == most {
            break;
        }
        let origin = format!("{}:{number}", path.display());
        if line.clean_verbs.len() != line.corr_verbs.len() || line.clean_verbs.is_empty() {
            refuse!(
                "{origin}: {} clean_verbs and {} corr_verbs; there must be as many of both, and one at least",
                line.clean_verbs.len(),
                line.corr_verbs.len()
            );
        }
        let counterfactual = counterfactual::sentence(line, direction, &origin)?;
        if counterfactuals && counterfactual.is_none() {
            tally.alone.insert(number);
            continue;
        }
        let Some((mut clean, mut flipped)) = alignment::align(line, &origin) else {
            tally.unaligned.insert(number);
            continue;
        };
        marks::mark(line, (&mut clean, &mut flipped), &origin)?;
        if is_gpt2 && !gpt2_ids_fit(line, tokenizer)? {
            tally.misfits.insert(number);
        }
        let mut sentence = match direction {
            Direction::Agreement => clean,
            Direction::Disagreement => flipped,
        };
        sentence.counterfactual = counterfactual;
        match sentence.example(tokenizer)? {
            Some(example) if counterfactuals && example.counterfactual.is_none() => {
                tally.unequal.insert(number);
            }
            Some(example) => examples.push(example),
            None => {
                tally.unaligned.insert(number);
            }
        }
    }
    if examples.is_empty() {
        let reason = match tally.unequal.is_empty() {
            true => "could be aligned",
            false => "has a counterfactual of its own length in this tokenizer",
        };
        refuse!("{}: none of its sentences {reason}", path.display());
    }
    Ok(examples)
}

/// Whether the stored GPT-2 ids are those of the text at the stored positions.
fn gpt2_ids_fit(line: &Line, tokenizer: &Tokenizer) -> Result<bool> {
    let (Some(positions), Some(ids)) = (&line.clean_verb_pos, &line.clean_verb_ids) else {
        return Ok(true);
    };
    let tokens = tokenizer.encode(&line.clean_text)?;
    Ok(positions.iter().map(|&position| tokens.get(position)).eq(ids.iter().map(Some)))
}

/// Sentences as examples.
struct Sentences {
    /// As they are trained on.
    examples: Vec<Example>,
    /// The grammatical ones, where those are flipped.
    grammatical: Option<Vec<Example>>,
}

impl Sentences {
    /// Of both forms those that are wanted for a direction.
    fn new(
        direction: Direction,
        mut of: impl FnMut(Direction) -> Result<Vec<Example>>,
    ) -> Result<Self> {
        let grammatical = match direction {
            Direction::Agreement => None,
            Direction::Disagreement => Some(of(Direction::Agreement)?),
        };
        Ok(Self { examples: of(direction)?, grammatical })
    }
}

impl Agreement {
    fn sentences(&self, split: Split, setting: &Setting) -> Result<Sentences> {
        let (test, limit) = match split {
            Split::Train => (None, self.train_examples),
            Split::Test => (self.test_data.as_ref(), self.test_examples),
        };
        let tokenizer = setting.tokenizer()?;
        let Some(path) = test.or(self.data.as_ref()) else {
            return Sentences::new(self.direction, |direction| {
                generated(split, direction, limit, tokenizer, setting.seed)
            });
        };
        let lines = files::read_jsonl::<Line>(path)?;
        let most = limit.unwrap_or(usize::MAX);
        let mut tally = Tally::default();
        let counterfactuals = setting.counterfactuals && split == Split::Train;
        let sentences = Sentences::new(self.direction, |direction| {
            read(path, &lines, direction, counterfactuals, tokenizer, most, &mut tally)
        });
        report(path, &tally);
        sentences
    }
}

/// Names what could not be used: nothing vanishes without a count.
fn report(path: &Path, tally: &Tally) {
    let (alone, unequal) = (tally.alone.len(), tally.unequal.len());
    if alone + unequal > 0 {
        log::warn!(
            "{}: {} sentences left out, since every one needs a counterfactual: {alone} have none, \
             {unequal} have one of another length in this tokenizer",
            path.display(),
            alone + unequal
        );
    }
    if !tally.unaligned.is_empty() {
        let (path, count, lines) = (path.display(), tally.unaligned.len(), &tally.unaligned);
        log::warn!(
            "{path}: {count} sentences left out, their verbs could not be aligned: lines {lines:?}"
        );
    }
    if !tally.misfits.is_empty() {
        let (path, count, lines) = (path.display(), tally.misfits.len(), &tally.misfits);
        log::warn!(
            "{path}: in {count} rows the stored GPT-2 ids do not fit the text; the text counts: lines {lines:?}"
        );
    }
}

/// Sentences of the grammar; the test split's all have an attractor.
fn generated(
    split: Split,
    direction: Direction,
    limit: Option<usize>,
    tokenizer: &Tokenizer,
    seed: u64,
) -> Result<Vec<Example>> {
    let count = limit.unwrap_or(match split {
        Split::Train => 2000,
        Split::Test => 500,
    });
    check_count(split, count)?;
    let mut examples = Vec::with_capacity(count);
    let mut left_out = 0;
    for sentence in
        grammar::sentences(split, seed, direction == Direction::Disagreement).take(4 * count)
    {
        match sentence.example(tokenizer)?.filter(|example| example.counterfactual.is_some()) {
            Some(example) => examples.push(example),
            None => left_out += 1,
        }
        if examples.len() == count {
            break;
        }
    }
    if left_out > 0 {
        log::warn!(
            "{left_out} generated sentences left out: in this tokenizer their counterfactual has another length"
        );
    }
    if examples.is_empty() {
        refuse!(
            "no generated sentence has a counterfactual of its own length in this tokenizer; give data"
        );
    }
    Ok(examples)
}

impl Task for Agreement {
    fn default_metric(&self) -> &str {
        "logit_diff"
    }

    fn load(&self, split: Split, setting: &Setting) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(self.sentences(split, setting)?))
    }

    fn why_no_counterfactual(&self) -> Option<&str> {
        (self.data.as_ref()).map(|_| "a flipped verb stands behind the position that is read")
    }
}

impl Dataset for Sentences {
    fn examples(&self) -> &[Example] {
        &self.examples
    }

    fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures> {
        evaluation.language_modelling(self.grammatical.as_ref().unwrap_or(&self.examples))
    }
}

register!(
    dyn Task,
    Agreement,
    "agreement",
    "subject-verb agreement, or disagreement: from files or a grammar"
);
