//! A folder's tokenizer: tokenizer.json, or vocab.json and merges.txt, with what tokenizer_config.json
//! and chat_template.jinja say beside it. Settings are read as transformers reads them.

use std::path::Path;

use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::panics::caught;
use circuit_framework::{Error, Result, files, refuse};
use serde_json::{Value, json};
use tokenizers::PreTokenizerWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;

/// Reads a folder's tokenizer, if it has one; `config` is the model's.
pub(crate) fn read(folder: &Path, config: &Value) -> Result<Option<Tokenizer>> {
    // The tokenizers crate panics on some files that are malformed.
    caught(&format!("{}: the tokenizer", folder.display()), || read_files(folder, config))
}

fn read_files(folder: &Path, config: &Value) -> Result<Option<Tokenizer>> {
    let Some(mut inner) = read_inner(folder)? else {
        return Ok(None);
    };
    let path = folder.join("tokenizer_config.json");
    let settings: Value = match path.exists() {
        true => files::read_json(&path)?,
        false => Value::Null,
    };
    if let (Some(add), Some(PreTokenizerWrapper::ByteLevel(byte_level))) =
        (settings["add_prefix_space"].as_bool(), inner.get_pre_tokenizer().cloned())
    {
        inner.with_pre_tokenizer(Some(byte_level.add_prefix_space(add)));
    }
    let special = |token: &str, id: &str| {
        let text = settings[token].as_str().or(settings[token]["content"].as_str());
        let by_text = text.and_then(|text| inner.token_to_id(text));
        by_text.or(config[id].as_u64().map(|id| id as u32))
    };
    let first = first_special(&inner)?;
    let named = special("bos_token", "bos_token_id");
    let end = special("eos_token", "eos_token_id");
    let (beginning, add_beginning) = match settings["add_bos_token"].as_bool() {
        Some(add) => (named.or(first), add),
        None => (first.or(named), first.is_some()),
    };
    if add_beginning != first.is_some() && folder.join("tokenizer.json").exists() {
        log::warn!(
            "{}: `add_bos_token` is {add_beginning}, against tokenizer.json's post-processor, which \
             transformers 5 goes by; model.bos = \"always\" or \"never\" settles it",
            path.display()
        );
    }
    if add_beginning && beginning.is_none() {
        refuse!("{}: `add_bos_token` is true, but there is no bos_token", path.display());
    }
    let chat_template = chat_template(folder, &settings)?;
    Ok(Some(Tokenizer { inner, beginning, end, add_beginning, chat_template }))
}

fn read_inner(folder: &Path) -> Result<Option<tokenizers::Tokenizer>> {
    let (json, vocab, merges) =
        (folder.join("tokenizer.json"), folder.join("vocab.json"), folder.join("merges.txt"));
    let unreadable = |path: &Path| {
        let path = path.display().to_string();
        move |error| Error::input(format!("{path}: {error}"))
    };
    let mut inner = if json.exists() {
        tokenizers::Tokenizer::from_file(&json).map_err(unreadable(&json))?
    } else if vocab.exists() && merges.exists() {
        let bpe = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy()).build();
        byte_level_bpe(bpe.map_err(unreadable(&vocab))?)
    } else {
        return Ok(None);
    };
    // Settings that were left on when the file was saved; transformers too applies them on request only.
    inner.with_truncation(None).map_err(unreadable(&json))?;
    inner.with_padding(None);
    Ok(Some(inner))
}

/// GPT-2's byte-level BPE around a vocabulary.
fn byte_level_bpe(bpe: BPE) -> tokenizers::Tokenizer {
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer
}

/// The special token that tokenizer.json's post-processor puts before a text, if it does.
fn first_special(inner: &tokenizers::Tokenizer) -> Result<Option<u32>> {
    let encoding = (inner.encode("a", true))
        .map_err(|error| Error::input(format!("tokenizer.json: {error}")))?;
    let is_special = encoding.get_special_tokens_mask().first() == Some(&1);
    Ok(encoding.get_ids().first().copied().filter(|_| is_special))
}

/// The chat template: `chat_template.jinja`, or else tokenizer_config.json's, which may be a list of
/// named ones.
fn chat_template(folder: &Path, settings: &Value) -> Result<Option<String>> {
    let file = folder.join("chat_template.jinja");
    if file.exists() {
        return Ok(Some(files::read_text(&file)?));
    }
    let template = &settings["chat_template"];
    let Some(named) = template.as_array() else {
        return Ok(template.as_str().map(str::to_owned));
    };
    let default = named.iter().find(|template| template["name"] == "default");
    match default.and_then(|template| template["template"].as_str()) {
        Some(template) => Ok(Some(template.to_owned())),
        None => refuse!(
            "{}: `chat_template` is a list without a template named `default`",
            folder.join("tokenizer_config.json").display()
        ),
    }
}

/// Writes a tokenizer's files; whatever reads them begins texts as this tokenizer does.
pub(super) fn write(folder: &Path, tokenizer: &Tokenizer) -> Result<()> {
    let path = folder.join("tokenizer.json");
    let failed = |error: tokenizers::Error| Error::input(format!("{}: {error}", path.display()));
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.inner.id_to_token(id));
    let mut inner = tokenizer.inner.clone();
    if first_special(&inner)? != tokenizer.prefix() {
        // transformers 5 goes by the post-processor alone.
        let single: Vec<String> =
            tokenizer.prefix_text().into_iter().chain(["$A".to_owned()]).collect();
        let tokens: Vec<(String, u32)> =
            tokenizer.prefix_text().into_iter().zip(tokenizer.prefix()).collect();
        let processor = (TemplateProcessing::builder().try_single(single))
            .and_then(|builder| builder.special_tokens(tokens).build().map_err(|e| e.to_string()))
            .map_err(|error| failed(error.into()))?;
        inner.with_post_processor(Some(processor));
    }
    inner.save(&path, false).map_err(failed)?;
    let mut settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_beginning,
    });
    let values = [
        ("bos_token", text(tokenizer.beginning)),
        ("eos_token", text(tokenizer.end)),
        ("chat_template", tokenizer.chat_template.clone()),
    ];
    for (key, value) in values {
        if let Some(value) = value {
            settings[key] = json!(value);
        }
    }
    files::write_json(&folder.join("tokenizer_config.json"), &settings)
}
