//! What turns text into tokens: tokenizers' files and chat templates. One that is read is used.

use std::path::Path;

use anyhow::Result;
use circuit_framework::data::chat::Message;
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::plugin::conformance::byte_tokenizer;
use circuit_framework::run::experiment::ModelChoice;
use serde_json::Value;

use super::models::small;
use super::{Mutate, Reader, Target, at, checked, file};
use crate::mutate;

pub fn targets() -> Vec<Target> {
    let of_folder = |name: &'static str, file: &'static str, mutate: Mutate| {
        let corpus = move || Ok(vec![own_files()?.remove(file_index(file)).1]);
        Target::new(name, mutate, corpus, move |folder| tokenizer(folder, file))
    };
    vec![
        of_folder("tokenizer", "tokenizer.json", mutate::json::mutate),
        of_folder("tokenizer-config", "tokenizer_config.json", mutate::json::mutate),
        of_folder("vocabulary", "vocab.json", mutate::json::mutate),
        of_folder("merges", "merges.txt", mutate::text::mutate),
        Target::new("chat-template", mutate::text::mutate, templates, template),
    ]
}

const FILES: [&str; 4] = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"];

fn file_index(name: &str) -> usize {
    FILES.iter().position(|own| *own == name).unwrap_or(0)
}

/// A tokenizer's files, in the order of [`FILES`]: the embedded model's, and a byte-level BPE's.
fn own_files() -> Result<Vec<(&'static str, Vec<u8>)>> {
    let bytes: Value =
        serde_json::from_str(&byte_tokenizer()?.inner.to_string(false).unwrap_or_default())?;
    let mut vocabulary = bytes["model"]["vocab"].clone();
    vocabulary["ab"] = 256.into();
    vocabulary["abc"] = 257.into();
    Ok(vec![
        (FILES[0], file("models/embedded/tokenizer.json")?),
        (FILES[1], file("models/embedded/tokenizer_config.json")?),
        (FILES[2], vocabulary.to_string().into_bytes()),
        (FILES[3], b"#version: 0.2\na b\nab c\n".to_vec()),
    ])
}

fn tokenizer(folder: &Path, name: &'static str) -> Result<Reader> {
    let mut config = small();
    config["vocab_size"] = 302.into();
    std::fs::write(folder.join("config.json"), config.to_string())?;
    let is_bpe = ["vocab.json", "merges.txt"].contains(&name);
    for (own, content) in own_files()? {
        if own != "tokenizer.json" || !is_bpe {
            std::fs::write(folder.join(own), content)?;
        }
    }
    let file = folder.join(name);
    let choice = ModelChoice { random_init: Some(0), ..at(folder) };
    Ok(Box::new(move |input| {
        std::fs::write(&file, input)?;
        let loaded = checked(circuit_models::load(&choice))?;
        loaded.tokenizer.as_ref().map_or(Ok(()), use_it)
    }))
}

fn use_it(tokenizer: &Tokenizer) -> Result<()> {
    let tokens = checked(tokenizer.encode("the man sees abc. é𝒳\u{0}"))?;
    checked(tokenizer.decode(&tokens))?;
    checked(tokenizer.dialogue("one and two?", "three"))?;
    Ok(())
}

fn templates() -> Result<Vec<Vec<u8>>> {
    let cases: Value = serde_json::from_slice(&file("tests/fixtures/chat_templates.json")?)?;
    let cases = cases["cases"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut templates: Vec<Vec<u8>> =
        cases.iter().filter_map(|case| Some(case["template"].as_str()?.into())).collect();
    templates.dedup();
    Ok(templates)
}

fn template(_: &Path) -> Result<Reader> {
    // Templates write both tokens.
    let plain = Tokenizer { beginning: Some(0), end: Some(1), ..byte_tokenizer()? };
    Ok(Box::new(move |input| {
        let chat_template = Some(String::from_utf8_lossy(input).into_owned());
        let tokenizer = Tokenizer { chat_template, ..plain.clone() };
        let message = |(role, content)| Message { role, content };
        let messages =
            [("system", "be brief"), ("user", "one?"), ("assistant", "two")].map(message);
        // Some templates raise an exception where there is a system message.
        let with = checked(tokenizer.render(&messages, false));
        let without = checked(tokenizer.render(&messages[1..], true));
        // Others write no answer behind their own prompt.
        let _ = checked(tokenizer.dialogue("one?", "two"));
        with.or(without).map(drop)
    }))
}
