//! What a task gives the engine: pre-tokenised examples, and batches of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Result, refuse};

/// A token at which the task looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The index of the token itself, never 0: it is predicted, and the graph is read, at the
    /// position before it.
    pub position: usize,
    /// The tokens that count as right, each once: at least one.
    pub correct: Vec<u32>,
    /// The tokens they are held against, each once; empty where the task has none.
    pub wrong: Vec<u32>,
}

/// The same example with what matters changed, for ablation `corrupt` and for EAP-IG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterfactual {
    pub tokens: Vec<u32>,
    pub key_positions: Vec<usize>,
}

/// A value that a task gives an example for a metric of the same author, by a name that both know: a year,
/// candidates, a verb. The metric reads it from its batch's examples, by [`Example::number`] say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number, a list of token ids or a text")]
pub enum Value {
    Number(f64),
    Tokens(Vec<u32>),
    Text(String),
}

/// Tokens that a task marks, by name: the subject, an attractor, a name. Positions are from 0, ascending.
pub type Spans = BTreeMap<String, Vec<usize>>;

/// One sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    pub tokens: Vec<u32>,
    /// The tokens that the loss is taken over, by index; within 1..tokens.len().
    pub predicted: Range<usize>,
    pub keys: Vec<Key>,
    pub counterfactual: Option<Counterfactual>,
    /// Whether training is to raise the loss on it instead of lowering it.
    pub forget: bool,
    /// What analyses look at by name.
    pub spans: Spans,
    /// What a metric made for the task reads by name.
    pub values: BTreeMap<String, Value>,
    /// Where it came from, for messages: "file:line".
    pub origin: String,
}

impl Example {
    /// The number that the task gave the example under a name.
    ///
    /// # Errors
    /// If it gave none.
    pub fn number(&self, name: &str) -> Result<f64> {
        match self.values.get(name) {
            Some(Value::Number(number)) => Ok(*number),
            _ => refuse!("{}: the task gives no number `{name}`", self.origin),
        }
    }

    /// The token ids that the task gave the example under a name.
    ///
    /// # Errors
    /// If it gave none.
    pub fn token_ids(&self, name: &str) -> Result<&[u32]> {
        match self.values.get(name) {
            Some(Value::Tokens(tokens)) => Ok(tokens),
            _ => refuse!("{}: the task gives no token ids `{name}`", self.origin),
        }
    }

    /// Refuses what no model with this vocabulary and context could run.
    pub fn check(&self, vocabulary: usize, context: usize) -> Result<()> {
        let origin = &self.origin;
        let counterfactual = self.counterfactual.as_ref();
        let corrupt_tokens = counterfactual.map_or(&[][..], |c| &c.tokens);
        if self.tokens.len() < 2 {
            refuse!(
                "{origin}: {} tokens; nothing can be predicted from fewer than 2",
                self.tokens.len()
            );
        }
        let longest = self.tokens.len().max(corrupt_tokens.len());
        if longest > context {
            refuse!(
                "{origin}: {longest} tokens, but the model's context is {context}; shorten the example"
            );
        }
        let predicted = &self.predicted;
        if predicted.is_empty() || predicted.start == 0 || predicted.end > self.tokens.len() {
            refuse!(
                "{origin}: the loss is to be taken over tokens {predicted:?}; it must be within \
                 1..{} and not empty, since the first token is predicted by none",
                self.tokens.len()
            );
        }
        let answers =
            self.keys.iter().flat_map(|key| key.correct.iter().chain(&key.wrong)).copied();
        let mut ids = self.tokens.iter().chain(corrupt_tokens).copied().chain(answers);
        if let Some(id) = ids.find(|&id| id as usize >= vocabulary) {
            refuse!(
                "{origin}: token id {id}, but the model's vocabulary has {vocabulary}; ids go from 0 to {}",
                vocabulary - 1
            );
        }
        for key in &self.keys {
            check_position(origin, key.position, self.tokens.len())?;
            key.check_answers(origin)?;
        }
        for &position in counterfactual.map_or(&[][..], |c| &c.key_positions) {
            check_position(origin, position, corrupt_tokens.len())?;
        }
        for (name, span) in &self.spans {
            let last = span.last().copied().unwrap_or(usize::MAX);
            if last >= self.tokens.len() || !span.is_sorted_by(|a, b| a < b) {
                refuse!(
                    "{origin}: span `{name}` is {span:?}; it is at least one position of a token, from 0 \
                     to {}, ascending",
                    self.tokens.len() - 1
                );
            }
        }
        Ok(())
    }
}

impl Key {
    /// Refuses answers that are none, named twice, or right and wrong at once.
    fn check_answers(&self, origin: &str) -> Result<()> {
        let Self { position, correct, wrong } = self;
        if correct.is_empty() {
            refuse!("{origin}: key position {position} has no right answer; give one at least");
        }
        let mut seen = BTreeSet::new();
        if let Some(id) = correct.iter().chain(wrong).find(|&&id| !seen.insert(id)) {
            refuse!(
                "{origin}: at key position {position} token id {id} stands twice among the right and \
                 wrong answers; give it once"
            );
        }
        Ok(())
    }
}

fn check_position(origin: &str, position: usize, length: usize) -> Result<()> {
    if position == 0 || position >= length {
        refuse!(
            "{origin}: key position {position}; it is a token's index from 1 to {}, since a token \
             is predicted at the position before it",
            length - 1
        );
    }
    Ok(())
}

/// Examples padded on the right to one length. A row is `example · seq + position`.
pub struct Batch<'a> {
    pub examples: Vec<&'a Example>,
    /// u32 [batch, seq]
    pub tokens: Tensor,
    pub seq: usize,
}

impl<'a> Batch<'a> {
    pub fn new(examples: Vec<&'a Example>, device: &Device) -> Result<Self> {
        let (tokens, seq) = pad(examples.iter().map(|example| &example.tokens[..]), device)?;
        Ok(Self { examples, tokens, seq })
    }

    /// One of its examples alone, as long as it was.
    ///
    /// # Errors
    /// If there is no such example.
    pub fn only(&self, index: usize) -> Result<Self> {
        let tokens = self.tokens.narrow(0, index, 1)?;
        Ok(Self { examples: vec![self.examples[index]], tokens, seq: self.seq })
    }

    /// The row of a position.
    pub fn row(&self, example: usize, position: usize) -> u32 {
        (example * self.seq + position) as u32
    }

    /// Every key of every example: its example, itself, and the row that predicts it.
    pub fn keys(&self) -> impl Iterator<Item = (usize, &'a Key, u32)> + '_ {
        (self.examples.iter().enumerate()).flat_map(move |(index, example)| {
            (example.keys.iter()).map(move |key| (index, key, self.row(index, key.position - 1)))
        })
    }

    /// Every token the loss is taken over: its example, its position, and the row that predicts it.
    pub fn predicted(&self) -> impl Iterator<Item = (usize, usize, u32)> + '_ {
        (self.examples.iter().enumerate()).flat_map(move |(index, example)| {
            (example.predicted.clone())
                .map(move |position| (index, position, self.row(index, position - 1)))
        })
    }
}

/// The indices of `items`, shortest first: neighbours make batches with little padding.
pub fn by_length<T>(items: &[T], length: impl Fn(&T) -> usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&index| length(&items[index]));
    order
}

/// Sequences as one tensor u32 [batch, seq], padded on the right with token 0, and its length.
pub fn pad<'t>(
    sequences: impl Iterator<Item = &'t [u32]> + Clone,
    device: &Device,
) -> Result<(Tensor, usize)> {
    let seq = sequences.clone().map(<[u32]>::len).max().unwrap_or(0);
    let mut ids = Vec::new();
    let mut batch = 0;
    for tokens in sequences {
        ids.extend_from_slice(tokens);
        ids.resize(ids.len() + seq - tokens.len(), 0);
        batch += 1;
    }
    Ok((Tensor::from_vec(ids, (batch, seq), device)?, seq))
}
