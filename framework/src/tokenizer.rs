//! A model's tokenizer with what the engine has to know beside it.

use crate::{Error, Result};

/// A tokenizer and its special tokens.
#[derive(Clone)]
pub struct Tokenizer {
    pub inner: tokenizers::Tokenizer,
    /// The token a text begins with.
    pub beginning: Option<u32>,
    /// The token a text ends with.
    pub end: Option<u32>,
    /// The Jinja template that turns messages into a prompt.
    pub chat_template: Option<String>,
}

impl Tokenizer {
    /// The text's tokens, no special ones added.
    ///
    /// # Errors
    /// If the tokenizer can't encode the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text)?.get_ids().to_vec())
    }

    pub(crate) fn encoding(&self, text: &str) -> Result<tokenizers::Encoding> {
        (self.inner.encode(text, false))
            .map_err(|error| Error::input(format!("can't tokenise {text:?}: {error}")))
    }

    /// The text of tokens, special ones left out.
    ///
    /// # Errors
    /// If the tokenizer can't decode them.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        (self.inner.decode(tokens, true))
            .map_err(|error| Error::input(format!("can't decode {tokens:?}: {error}")))
    }

    /// The token a text is begun with before it is given to the model: the beginning-of-text token
    /// of models that have one of their own (Llama's), none where it doubles as the end of text
    /// (GPT-2's).
    pub fn prefix(&self) -> Option<u32> {
        self.beginning.filter(|_| self.beginning != self.end)
    }
}
