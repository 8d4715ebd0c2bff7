//! The tokenizer in a GGUF file's metadata. What the file leaves open is settled as llama.cpp settles
//! it.

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::{Result, refuse};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

use super::GgufFile;

impl GgufFile {
    fn token(&self, key: &str) -> Option<u32> {
        self.content.metadata.get(key).and_then(|value| value.to_u64().ok()).map(|id| id as u32)
    }

    /// The tokenizer, and the file again.
    pub(super) fn tokenizer(mut self) -> Result<(Self, Tokenizer)> {
        let model = self.text("tokenizer.ggml.model")?;
        let pre = self.text("tokenizer.ggml.pre").unwrap_or_else(|_| "default".to_owned());
        let inner = match &*model {
            "gpt2" => self.inner_tokenizer(&pre)?,
            "llama" => self.score_tokenizer()?,
            _ => refuse!(
                "{}: tokenizer `{model}`; byte-level BPE (`gpt2`) and BPE by scores (`llama`) can be read",
                self.path.display()
            ),
        };
        let beginning = self.token("tokenizer.ggml.bos_token_id");
        let add = "tokenizer.ggml.add_bos_token";
        let add_beginning = match self.has(add) {
            true => self.value(add)?.to_bool().map_err(self.malformed(add))?,
            false => (is_llama3(&pre) || model == "llama") && beginning.is_some(),
        };
        if add_beginning && beginning.is_none() {
            refuse!(
                "{}: `{add}` is true, but there is no `tokenizer.ggml.bos_token_id`",
                self.path.display()
            );
        }
        let tokenizer = Tokenizer {
            inner,
            beginning,
            end: self.token("tokenizer.ggml.eos_token_id"),
            add_beginning,
            chat_template: self.text("tokenizer.chat_template").ok(),
        };
        Ok((self, tokenizer))
    }

    fn inner_tokenizer(&mut self, pre: &str) -> Result<tokenizers::Tokenizer> {
        // candle knows some pre-tokenisers under these names and takes GPT-2's for all others, so
        // what it would get silently wrong is put right or refused here.
        let known = match pre {
            "smollm" | "gpt-2" | "olmo" => "gpt-2",
            "llama-bpe" | "llama3" | "smaug-bpe" | "dbrx" => "llama3",
            "qwen2" => "qwen2",
            _ => refuse!(
                "{}: pre-tokeniser `{pre}`; known: smollm, gpt-2, olmo, llama-bpe, llama3, smaug-bpe, dbrx, qwen2",
                self.path.display()
            ),
        };
        let metadata = &mut self.content.metadata;
        metadata.insert("tokenizer.ggml.pre".to_owned(), Value::String(known.to_owned()));
        // Not among GGUF's keys: candle's own.
        metadata.insert("tokenizer.ggml.ignore_merges".to_owned(), Value::Bool(is_llama3(pre)));
        let mut inner = tokenizers::Tokenizer::from_gguf(&self.content)
            .map_err(self.malformed("tokenizer.ggml"))?;
        let byte_level = ByteLevel::new(false, true, true);
        match pre {
            "smollm" => {
                let steps = vec![Digits::new(true).into(), byte_level.into()];
                inner.with_pre_tokenizer(Some(Sequence::new(steps)));
            }
            "gpt-2" | "olmo" => {
                inner.with_pre_tokenizer(Some(byte_level));
            }
            _ => {}
        }
        Ok(inner)
    }
}

/// Llama 3's tokenizer takes a word that is a token whole, and begins texts with a token of its own.
fn is_llama3(pre: &str) -> bool {
    ["llama-bpe", "llama3"].contains(&pre)
}
