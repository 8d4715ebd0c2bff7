//! What the tasks that answer in words have in common: a question and its answer as the model's chat
//! template writes them, the loss on the answer alone, key tokens inside it; and answers generated
//! for an evaluation.

use std::ops::Range;

use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::{Evaluation, Example, Generation, Key, Result, Setting, refuse};

use crate::rows::Sieve;

/// A question with the answer that is trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) origin: String,
    pub(crate) question: String,
    pub(crate) answer: String,
    /// The part of `answer` that decides, in bytes.
    pub(crate) key: Range<usize>,
    /// What would be wrong in its place, where one thing would.
    pub(crate) wrong: Option<String>,
}

impl Item {
    fn example(&self, tokenizer: &Tokenizer) -> Result<Example> {
        let dialogue = tokenizer.dialogue(&self.question, &self.answer)?;
        let tokens = dialogue.tokens_of(&self.key);
        let keys: Vec<Key> = match &self.wrong {
            None => tokens
                .map(|position| Key {
                    position,
                    correct: vec![dialogue.tokens[position]],
                    wrong: Vec::new(),
                })
                .collect(),
            Some(wrong) => {
                let mut answer = self.answer.clone();
                answer.replace_range(self.key.clone(), wrong);
                let other = tokenizer.dialogue(&self.question, &answer)?.tokens;
                let differ = dialogue.tokens.iter().zip(&other).position(|(a, b)| a != b);
                (differ.into_iter())
                    .map(|at| Key {
                        position: at,
                        correct: vec![dialogue.tokens[at]],
                        wrong: vec![other[at]],
                    })
                    .collect()
            }
        };
        if keys.is_empty() {
            refuse!("the answer has no key token");
        }
        Ok(Example {
            predicted: dialogue.answer..dialogue.tokens.len(),
            keys,
            tokens: dialogue.tokens,
            origin: self.origin.clone(),
            ..Example::default()
        })
    }
}

/// Items and their examples, in step with each other, and how answers to them are generated.
#[derive(Debug)]
pub(crate) struct Loaded<T> {
    pub(crate) items: Vec<T>,
    pub(crate) examples: Vec<Example>,
    pub(crate) generation: Generation,
}

/// At most `most` of the `items` with their examples; those that can't be used or are too long are
/// left out and counted.
pub(crate) fn load<T>(
    items: Vec<T>,
    item: impl Fn(&T) -> &Item,
    most: Option<usize>,
    generation: &Generation,
    setting: &Setting,
    sieve: &mut Sieve,
) -> Result<Loaded<T>> {
    let tokenizer = setting.tokenizer()?;
    let generation = generation.clone();
    let mut loaded = Loaded { items: Vec::new(), examples: Vec::new(), generation };
    for value in items {
        if most == Some(loaded.items.len()) {
            break;
        }
        let example = item(&value).example(tokenizer);
        let example = sieve.keep(&item(&value).origin, example)?;
        if let Some(example) = example.and_then(|example| sieve.fit(example)) {
            loaded.items.push(value);
            loaded.examples.push(example);
        }
    }
    sieve.report(loaded.items.len())?;
    Ok(loaded)
}

impl<T> Loaded<T> {
    /// The model's own answers.
    pub(crate) fn generate(&self, evaluation: &Evaluation) -> Result<Vec<String>> {
        let tokenizer = evaluation.setting.tokenizer()?;
        let prompts: Vec<Vec<u32>> = (self.examples.iter())
            .map(|example| example.tokens[..example.predicted.start].to_vec())
            .collect();
        let stop = tokenizer.stop_tokens();
        let generated = evaluation.generate(&prompts, &self.generation, &stop)?;
        generated.iter().map(|tokens| tokenizer.decode(tokens)).collect()
    }
}

/// A share of something, NaN where there is nothing.
pub(crate) fn share(count: usize, of: usize) -> f64 {
    count as f64 / of as f64
}
