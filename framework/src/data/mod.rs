//! What a model is given: examples and their batches, tokenizers, chat templates.

pub mod chat;
pub mod example;
pub mod tokenizer;
