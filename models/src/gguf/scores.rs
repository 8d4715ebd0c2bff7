//! Tokenizers of GGUF's type `llama`: SentencePiece's BPE, in which the pair whose piece has the highest
//! score is merged first, and what no piece covers is spelt in bytes.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use circuit_framework::{Error, Result, refuse};
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, Tokenizer};

use super::GgufFile;

/// What a space is in a piece.
const SPACE: &str = "\u{2581}";

/// Kinds of tokens, as GGUF numbers them.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

impl GgufFile {
    fn list<T>(&self, key: &str, of: impl Fn(&Value) -> candle_core::Result<T>) -> Result<Vec<T>> {
        let values = self.value(key)?.to_vec().map_err(self.malformed(key))?;
        (values.iter().map(of).collect::<candle_core::Result<_>>()).map_err(self.malformed(key))
    }

    /// The tokenizer whose merges the pieces' scores say.
    pub(super) fn score_tokenizer(&self) -> Result<Tokenizer> {
        let pieces = self.list("tokenizer.ggml.tokens", |value| value.to_string().cloned())?;
        let scores = self.list("tokenizer.ggml.scores", Value::to_f32)?;
        let kinds = self.list("tokenizer.ggml.token_type", Value::to_i32)?;
        if pieces.len() != scores.len() || pieces.len() != kinds.len() {
            refuse!(
                "{}: the tokenizer has {} tokens, {} scores and {} types",
                self.place(),
                pieces.len(),
                scores.len(),
                kinds.len()
            );
        }
        let failed = |error: tokenizers::Error| {
            Error::input(format!("{}: `tokenizer.ggml`: {error}", self.place()))
        };
        let vocabulary: HashMap<&str, u32> =
            pieces.iter().enumerate().map(|(id, piece)| (&**piece, id as u32)).collect();
        let unknown = kinds.iter().position(|kind| *kind == UNKNOWN).map(|id| pieces[id].clone());
        let owned = vocabulary.iter().map(|(piece, id)| ((*piece).to_owned(), *id));
        let bpe = BPE::builder()
            .vocab_and_merges(owned.collect::<Vocab>(), merges(&pieces, &scores, &vocabulary))
            .byte_fallback(true)
            .fuse_unk(true);
        let bpe = match unknown {
            Some(unknown) => bpe.unk_token(unknown),
            None => bpe,
        };
        let mut tokenizer = Tokenizer::new(bpe.build().map_err(failed)?);
        let prefixed = self.puts_a_space_first()?;
        let spaces = NormalizerWrapper::Replace(Replace::new(" ", SPACE).map_err(failed)?);
        let first = NormalizerWrapper::Prepend(Prepend::new(SPACE.to_owned()));
        let normalizers = if prefixed { vec![first, spaces] } else { vec![spaces] };
        tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(failed)?;
        let mut decoders = vec![
            DecoderWrapper::Replace(Replace::new(SPACE, " ").map_err(failed)?),
            DecoderWrapper::ByteFallback(ByteFallback::new()),
            DecoderWrapper::Fuse(Fuse::new()),
        ];
        if prefixed {
            decoders.push(DecoderWrapper::Strip(Strip::new(' ', 1, 0)));
        }
        tokenizer.with_decoder(Some(Decoders::new(decoders)));
        let of = |kind: i32, special: bool| -> Vec<AddedToken> {
            let ids = (0..pieces.len()).filter(|&id| kinds[id] == kind);
            ids.map(|id| AddedToken::from(pieces[id].clone(), special).normalized(false)).collect()
        };
        tokenizer.add_tokens(of(USER_DEFINED, false)).map_err(failed)?;
        tokenizer.add_special_tokens(of(CONTROL, true)).map_err(failed)?;
        Ok(tokenizer)
    }

    /// Whether texts begin with a space, so that their first word is a word.
    fn puts_a_space_first(&self) -> Result<bool> {
        let key = "tokenizer.ggml.add_space_prefix";
        match self.has(key) {
            true => self.value(key)?.to_bool().map_err(self.malformed(key)),
            false => Ok(true),
        }
    }
}

/// Every split of a piece into two others, those of the highest score first.
fn merges(
    pieces: &[String],
    scores: &[f32],
    vocabulary: &HashMap<&str, u32>,
) -> Vec<(String, String)> {
    let mut all: Vec<(f32, u32, u32)> = Vec::new();
    for (piece, score) in pieces.iter().zip(scores) {
        let splits = piece.char_indices().skip(1).filter_map(|(at, _)| {
            let (left, right) = piece.split_at(at);
            Some((*vocabulary.get(left)?, *vocabulary.get(right)?))
        });
        all.extend(splits.map(|(left, right)| (*score, left, right)));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let piece = |id: u32| pieces[id as usize].clone();
    all.into_iter().map(|(_, left, right)| (piece(left), piece(right))).collect()
}
