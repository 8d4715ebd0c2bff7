//! A prompt that asks for its next token: what the examples of a circuit's task are made of. Beside the
//! right answer stands a wrong one, and a counterfactual of as many tokens.

use std::ops::Range;

use circuit_framework::data::example::Counterfactual;
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::{Dataset, Evaluation, Example, Figures, Key, Result, refuse};

/// A text and the answer that goes on with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    /// Without space at its end.
    text: String,
    /// With the space before it.
    answer: String,
}

impl Prompt {
    /// Space at the text's end is the answer's: there the tokens part.
    pub(crate) fn new(text: &str, answer: &str) -> Self {
        let (text, space) = text.split_at(text.trim_end().len());
        let answer = match space.is_empty() {
            true => answer.to_owned(),
            false => format!("{space}{}", answer.trim_start()),
        };
        Self { text: text.to_owned(), answer }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// With the space before it.
    pub(crate) fn answer(&self) -> &str {
        &self.answer
    }

    /// The tokens, and the index at which the answer begins.
    fn tokenise(&self, tokenizer: &Tokenizer) -> Result<(Vec<u32>, usize)> {
        let prefix: Vec<u32> = tokenizer.prefix().into_iter().collect();
        let encode = |text: &str| {
            Ok::<_, circuit_framework::Error>([&prefix[..], &tokenizer.encode(text)?].concat())
        };
        let asked = encode(&self.text)?;
        let tokens = encode(&format!("{}{}", self.text, self.answer))?;
        if asked.is_empty() || tokens.len() == asked.len() || !tokens.starts_with(&asked) {
            refuse!(
                "in this tokenizer the answer `{}` doesn't begin a token of its own behind the prompt",
                self.answer
            );
        }
        Ok((tokens, asked.len()))
    }
}

/// A prompt with all that it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) prompt: Prompt,
    /// What the right answer is held against.
    pub(crate) wrong: String,
    pub(crate) counterfactual: Prompt,
    /// Parts of the prompt's text, in bytes, and what they are called.
    pub(crate) marks: Vec<(&'static str, Range<usize>)>,
}

impl Question {
    /// The example: its loss is the answer's, its key the first token at which the wrong answer would
    /// differ from the right one.
    pub(crate) fn example(&self, tokenizer: &Tokenizer, origin: &str) -> Result<Example> {
        let (tokens, start) = self.prompt.tokenise(tokenizer)?;
        let wrong = Prompt::new(&self.prompt.text, &self.wrong);
        let (other, _) = wrong.tokenise(tokenizer)?;
        let Some(position) = tokens.iter().zip(&other).position(|(own, other)| own != other) else {
            refuse!(
                "no token tells the right answer `{}` from the wrong one, `{}`",
                self.prompt.answer,
                self.wrong
            );
        };
        let (corrupt, corrupt_start) = self.counterfactual.tokenise(tokenizer)?;
        if (corrupt.len(), corrupt_start) != (tokens.len(), start) {
            refuse!(
                "in this tokenizer the counterfactual has {corrupt_start} tokens and {} of an answer, the \
                 prompt {start} and {}; they must be as long",
                corrupt.len() - corrupt_start,
                tokens.len() - start
            );
        }
        Ok(Example {
            predicted: start..tokens.len(),
            keys: vec![Key {
                position,
                correct: vec![tokens[position]],
                wrong: vec![other[position]],
            }],
            tokens,
            counterfactual: Some(Counterfactual { tokens: corrupt, key_positions: vec![position] }),
            spans: tokenizer.spans(&self.prompt.text, self.marks.iter().cloned())?,
            origin: origin.to_owned(),
            ..Example::default()
        })
    }
}

/// Prompts, judged by their answers alone.
#[derive(Debug)]
pub(crate) struct Prompts(pub(crate) Vec<Example>);

impl Dataset for Prompts {
    fn examples(&self) -> &[Example] {
        &self.0
    }

    fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures> {
        evaluation.language_modelling(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{gpt2, tokenizer};

    fn question(text: &str, other: &str) -> Question {
        Question {
            prompt: Prompt::new(text, " Anna"),
            wrong: " Andy".to_owned(),
            counterfactual: Prompt::new(other, " Paul"),
            marks: Vec::new(),
        }
    }

    #[test]
    fn the_key_is_where_the_wrong_answer_parts() {
        let example = question("To ", "Of").example(tokenizer(), "here").unwrap();
        assert_eq!((example.predicted, example.keys[0].position), (2..7, 5));
        let Some(gpt2) = gpt2() else { return };
        let example = question("To", "Of").example(gpt2, "here").unwrap();
        assert_eq!((example.predicted, example.keys[0].position), (1..2, 1));
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let error = question("To", "From").example(tokenizer(), "here").unwrap_err().to_string();
        assert!(error.contains("4 tokens and 5 of an answer, the prompt 2 and 5"), "{error}");
        let same = Question { wrong: " Anna".to_owned(), ..question("To", "Of") };
        let error = same.example(tokenizer(), "here").unwrap_err().to_string();
        assert!(error.starts_with("no token tells the right answer ` Anna`"), "{error}");
        let Some(gpt2) = gpt2() else { return };
        let glued = Question { prompt: Prompt::new("1", "9"), ..question("1", "2") };
        let error = glued.example(gpt2, "here").unwrap_err().to_string();
        assert!(error.contains("`9` doesn't begin a token of its own"), "{error}");
    }
}
