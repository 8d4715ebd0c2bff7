//! A model's tokenizer with what the engine has to know beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};
use tokenizers::ModelWrapper;

use crate::data::example::Spans;
use crate::panics::caught;
use crate::{Error, Result, refuse};

/// How many unknown words a note shows.
const SHOWN: usize = 10;

/// What messages call a tokenizer that panics: its files are malformed in a way that the tokenizers crate doesn't
/// see when it reads them.
const WHAT: &str = "the model's tokenizer";

/// A tokenizer and its special tokens.
#[derive(Clone)]
pub struct Tokenizer {
    pub inner: tokenizers::Tokenizer,
    /// The beginning-of-sequence token.
    pub beginning: Option<u32>,
    /// The token a text ends with.
    pub end: Option<u32>,
    /// Whether `beginning` is put before a text, Hugging Face's `add_bos_token`.
    pub add_beginning: bool,
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
        let failed = |error| Error::input(format!("can't tokenise {text:?}: {error}"));
        caught(WHAT, || self.inner.encode(text, false).map_err(failed))
    }

    /// The tokens that marks, ranges of bytes of a text, overlap: their positions where the text stands
    /// behind what the tokenizer puts before texts. Marks of one name are joined; one without a token is none.
    ///
    /// # Errors
    /// If the tokenizer can't encode the text.
    pub fn spans<'m>(
        &self,
        text: &str,
        marks: impl IntoIterator<Item = (&'m str, Range<usize>)>,
    ) -> Result<Spans> {
        let encoding = self.encoding(text)?;
        let prefix = usize::from(self.prefix().is_some());
        let mut spans: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for (name, mark) in marks {
            let offsets = encoding.get_offsets().iter().enumerate();
            let overlapping = offsets
                .filter(|(_, (start, end))| *start < mark.end && mark.start < *end)
                .map(|(index, _)| prefix + index);
            spans.entry(name.to_owned()).or_default().extend(overlapping);
        }
        spans.retain(|_, span| !span.is_empty());
        Ok(spans.into_iter().map(|(name, span)| (name, span.into_iter().collect())).collect())
    }

    /// The text of tokens, special ones left out.
    ///
    /// # Errors
    /// If the tokenizer can't decode them.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let failed = |error| Error::input(format!("can't decode {tokens:?}: {error}"));
        caught(WHAT, || self.inner.decode(tokens, true).map_err(failed))
    }

    /// The text of one token as it stands in a sentence, special ones too; none where it has no text.
    pub fn text(&self, token: u32) -> Option<String> {
        let text = caught(WHAT, || Ok(self.inner.decode(&[token], false).ok()));
        text.ok().flatten().filter(|text| !text.is_empty())
    }

    /// The token that stands for words that aren't in the vocabulary, where the tokenizer has such.
    pub fn unknown(&self) -> Option<u32> {
        let token = match self.inner.get_model() {
            ModelWrapper::WordLevel(model) => Some(&model.unk_token),
            ModelWrapper::WordPiece(model) => Some(&model.unk_token),
            ModelWrapper::BPE(model) => model.unk_token.as_ref(),
            ModelWrapper::Unigram(_) => None,
        };
        token.and_then(|token| self.inner.token_to_id(token))
    }

    /// Says which words of texts aren't in the vocabulary, if any: the model reads one token for them all.
    ///
    /// # Errors
    /// If the tokenizer can't encode a text.
    pub fn note_unknown_words<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Result<()> {
        let Some(unknown) = self.unknown() else { return Ok(()) };
        let (mut words, mut count, mut all) = (BTreeSet::new(), 0, 0);
        for text in texts {
            let encoding = self.encoding(text)?;
            all += encoding.len();
            let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
            for (_, &(start, end)) in tokens.filter(|(token, _)| **token == unknown) {
                words.extend(text.get(start..end));
                count += 1;
            }
        }
        if count > 0 {
            log::warn!(
                "{count} of {all} words are unknown to the model and read as {}: {}{}",
                self.inner.id_to_token(unknown).unwrap_or_default(),
                words.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", "),
                if words.len() > SHOWN { ", …" } else { "" }
            );
        }
        Ok(())
    }

    /// The token to put before a text that is given to the model, if any.
    pub fn prefix(&self) -> Option<u32> {
        self.beginning.filter(|_| self.add_beginning)
    }

    /// The token that texts are begun with, as text.
    pub fn prefix_text(&self) -> Option<String> {
        self.prefix().and_then(|id| self.inner.id_to_token(id))
    }

    /// Puts the beginning-of-sequence token before texts always, never, or as the tokenizer's own
    /// files say.
    ///
    /// # Errors
    /// If it is always wanted and there is none.
    pub fn set_bos(&mut self, bos: Bos) -> Result<()> {
        if bos == Bos::Always && self.beginning.is_none() {
            refuse!("model.bos is always, but the tokenizer has no beginning-of-sequence token");
        }
        match bos {
            Bos::Auto => {}
            Bos::Always => self.add_beginning = true,
            Bos::Never => self.add_beginning = false,
        }
        Ok(())
    }
}

/// Whether texts begin with the beginning-of-sequence token.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Bos {
    /// As the tokenizer's own files say.
    #[default]
    Auto,
    Always,
    Never,
}
