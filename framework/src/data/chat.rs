//! Questions and answers as a model's chat template writes them, and as tokens of which the answer's
//! can be told from the prompt's.
//!
//! Templates are rendered as Hugging Face's `apply_chat_template` does, but for `strftime_now`, which
//! is left undefined: templates that ask for it fall back to a date of their own, and a prompt is the
//! same every day. A template is a program out of a file: what it may do and write is limited.

use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;

use crate::data::tokenizer::Tokenizer;
use crate::{Error, Result, refuse};

/// One turn of a conversation, for a chat template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message<'a> {
    /// `system`, `user` or `assistant`.
    pub role: &'a str,
    pub content: &'a str,
}

/// A question and its answer as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialogue {
    pub tokens: Vec<u32>,
    /// Where the answer starts in `tokens`; what ends it is part of it.
    pub answer: usize,
    /// For each of the answer's tokens, the bytes of the answer's text it stands for; outside the
    /// text for what the template adds.
    spans: Vec<Range<isize>>,
}

impl Dialogue {
    /// The indices of the tokens that share a byte with `span` of the answer's text.
    pub fn tokens_of(&self, span: &Range<usize>) -> Range<usize> {
        let (start, end) = (span.start as isize, span.end as isize);
        let inside = |bytes: &Range<isize>| bytes.start < end && start < bytes.end;
        let first = self.spans.iter().position(inside);
        let last = self.spans.iter().rposition(inside);
        match (first, last) {
            (Some(first), Some(last)) => self.answer + first..self.answer + last + 1,
            _ => self.answer..self.answer,
        }
    }
}

impl Tokenizer {
    /// The messages as the chat template writes them. Without a template each message is a paragraph
    /// of its own.
    ///
    /// # Errors
    /// If the template is malformed or raises an exception, with its message.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let Some(template) = &self.chat_template else {
            return Ok(messages.iter().map(|message| format!("{}\n", message.content)).collect());
        };
        if template.len() > LONGEST {
            let length = template.len();
            return Err(Error::Template(format!("it has {length} bytes; it may have {LONGEST}")));
        }
        // A long run of operators is a call in a call for whoever reads it.
        let stack = STACK + template.len() * STACK_PER_BYTE;
        let rendering = std::thread::Builder::new().stack_size(stack);
        std::thread::scope(|scope| {
            let rendered = rendering
                .spawn_scoped(scope, || self.render_with(template, messages, add_generation_prompt))
                .map_err(|error| Error::Template(format!("no thread for it: {error}")))?;
            rendered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn render_with(
        &self,
        template: &str,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String> {
        let failed = |error: minijinja::Error| {
            let reason = match error.kind() {
                ErrorKind::OutOfFuel => {
                    "it takes more time or memory than any template needs".into()
                }
                _ => error.detail().map_or_else(|| error.to_string(), str::to_owned),
            };
            Error::Template(reason)
        };
        let given = messages.iter().map(|message| message.content.len()).sum::<usize>();
        let text = |id: Option<u32>| id.and_then(|id| self.inner.id_to_token(id));
        let environment = environment(given).map_err(failed)?;
        let template = environment.template_from_str(template).map_err(failed)?;
        let rendered = template.render(context! {
            messages => Serde(messages),
            add_generation_prompt,
            bos_token => text(self.beginning),
            eos_token => text(self.end),
        });
        let rendered = rendered.map_err(failed)?;
        if rendered.len() > given.saturating_mul(16).saturating_add(MOST_ADDED) {
            return Err(Error::Template(format!(
                "it makes {} bytes of messages of {given}; it may add {MOST_ADDED}",
                rendered.len()
            )));
        }
        Ok(rendered)
    }

    /// A question's tokens, up to where the answer begins.
    ///
    /// # Errors
    /// As for [`Tokenizer::render`].
    pub fn prompt(&self, question: &str) -> Result<Vec<u32>> {
        self.encode_chat(&self.render(&[Message { role: "user", content: question }], true)?)
    }

    /// A question and its answer. The prompt's tokens are [`Tokenizer::prompt`]'s; the answer is
    /// followed by the token that ends it.
    ///
    /// # Errors
    /// As for [`Tokenizer::render`], and if the template writes the conversation in such a way that
    /// the answer can't be told from the prompt.
    pub fn dialogue(&self, question: &str, answer: &str) -> Result<Dialogue> {
        let user = Message { role: "user", content: question };
        let prompt = self.render(std::slice::from_ref(&user), true)?;
        let whole = self.render(&[user, Message { role: "assistant", content: answer }], false)?;
        let answer = answer.trim();
        let response = whole.strip_prefix(&prompt).unwrap_or_default().trim_end();
        let Some(offset) = response.find(answer).filter(|_| !response.is_empty()) else {
            refuse!(
                "the model's chat template doesn't write an answer behind its own prompt; remove \
                 chat_template.jinja, or the template in tokenizer_config.json, to get plain text"
            );
        };
        let mut tokens = self.encode_chat(&prompt)?;
        let start = tokens.len();
        let encoding = self.encoding(response)?;
        tokens.extend(encoding.get_ids());
        let mut spans: Vec<Range<isize>> = (encoding.get_offsets().iter())
            .map(|&(from, to)| from as isize - offset as isize..to as isize - offset as isize)
            .collect();
        if let (None, Some(end)) = (&self.chat_template, self.end) {
            tokens.push(end);
            spans.push(-1..-1);
        }
        Ok(Dialogue { tokens, answer: start, spans })
    }

    /// What ends a generated answer.
    pub fn stop_tokens(&self) -> Vec<u32> {
        self.end.into_iter().collect()
    }

    /// The tokens of rendered messages: a template writes the beginning-of-sequence token itself, plain
    /// text gets it.
    fn encode_chat(&self, text: &str) -> Result<Vec<u32>> {
        let prefix = self.prefix().filter(|_| self.chat_template.is_none());
        let mut tokens: Vec<u32> = prefix.into_iter().collect();
        tokens.extend(self.encode(text)?);
        Ok(tokens)
    }
}

/// The longest template, in bytes: the longest that models have are a quarter of it.
const LONGEST: usize = 1 << 16;

/// Bytes of stack for what a template calls.
const STACK: usize = 2 << 20;

/// Bytes of stack that reading a byte of a template takes at most, an operator as short as that.
const STACK_PER_BYTE: usize = 1 << 13;

/// The bytes that a template may add to messages, and a few repetitions of these.
const MOST_ADDED: usize = 1 << 20;

/// What a template may do, messages aside: about so many steps, or 64 bytes each of text that it makes.
const FUEL: u64 = 1_000_000;

/// Jinja as Hugging Face sets it up, for messages of so many bytes.
fn environment<'a>(given: usize) -> Result<Environment<'a>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL.saturating_add(given as u64)));
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<(), _> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    Ok(environment)
}
