//! Tokenizers in and out of files: they cut no text, and begin one, in this program and in whatever
//! reads them after it, as their own files say.

use std::path::Path;

use circuit_framework::data::tokenizer::{Bos, Tokenizer};
use circuit_framework::run::experiment::ModelChoice;
use serde_json::{Value, json};

use crate::models::{json_of, program_with, refuses, with_config};
use crate::support::{at, load, repository};

/// A folder with the built-in model's tokenizer, changed, and what stands beside it.
fn tokenizer_folder(change: impl FnOnce(&mut Value), settings: Value) -> tempfile::TempDir {
    let folder = with_config("llama-key-mean", |config| config["vocab_size"] = json!(127));
    let mut tokenizer = json_of(&repository("models/embedded/tokenizer.json"));
    change(&mut tokenizer);
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), settings.to_string()).unwrap();
    folder
}

/// The tokenizer of a folder whose weights are drawn.
fn tokenizer(folder: &Path, bos: Bos) -> Tokenizer {
    load(ModelChoice { random_init: Some(0), bos, ..at(folder) }).tokenizer.unwrap()
}

const TEXT: &str = "the key to the cabinets is old";

#[test]
fn truncation_and_padding_are_switched_off() {
    let plain = tokenizer_folder(|_| {}, json!({}));
    let tokens = tokenizer(plain.path(), Bos::Auto).encode(TEXT).unwrap();
    assert_eq!(tokens.len(), 7);
    let folder = tokenizer_folder(
        |tokenizer| {
            tokenizer["truncation"] = json!({
                "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0,
            });
            tokenizer["padding"] = json!({
                "strategy": { "Fixed": 12 }, "direction": "Right", "pad_to_multiple_of": null,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
            });
        },
        json!({}),
    );
    assert_eq!(tokenizer(folder.path(), Bos::Auto).encode(TEXT).unwrap(), tokens);
}

#[test]
fn a_space_before_the_first_word_is_added_where_it_is_asked_for() {
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let words = |tokenizer: &mut Value| {
        tokenizer["pre_tokenizer"] = byte_level.clone();
        tokenizer["decoder"] = byte_level.clone();
        tokenizer["model"]["vocab"] = json!({ "<|endoftext|>": 0, "key": 1, "\u{120}key": 2 });
    };
    for (settings, expected) in [
        (json!({}), [1, 2]),
        (json!({ "add_prefix_space": false }), [1, 2]),
        (json!({ "add_prefix_space": true }), [2, 2]),
    ] {
        let folder = tokenizer_folder(words, settings);
        assert_eq!(tokenizer(folder.path(), Bos::Auto).encode("key key").unwrap(), expected);
    }
}

#[test]
fn chat_templates_are_read_where_transformers_reads_them() {
    let named = |name: &str| json!({ "name": name, "template": format!("the {name} one") });
    let list = json!({ "chat_template": [named("tool_use"), named("default")] });
    let template = |folder: &Path| tokenizer(folder, Bos::Auto).chat_template;
    let folder = tokenizer_folder(|_| {}, list);
    assert_eq!(template(folder.path()).as_deref(), Some("the default one"));
    let folder = tokenizer_folder(|_| {}, json!({ "chat_template": "the old one" }));
    assert_eq!(template(folder.path()).as_deref(), Some("the old one"));
    std::fs::write(folder.path().join("chat_template.jinja"), "the file's\n").unwrap();
    assert_eq!(template(folder.path()).as_deref(), Some("the file's\n"));
    std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
    assert_eq!(template(folder.path()).as_deref(), Some("the file's\n"));
    let folder = tokenizer_folder(|_| {}, json!({ "chat_template": [named("tool_use")] }));
    refuses(folder.path(), &["tokenizer_config.json", "`chat_template`", "`default`"]);
}

/// A post-processor that begins a text with a token, as Llama 3's does behind a byte-level one.
fn beginning_with(token: &str, id: u32) -> Value {
    let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let sequence = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let template = json!({
        "type": "TemplateProcessing", "single": [special, sequence("A")],
        "pair": [special, sequence("A"), sequence("B")],
        "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
    });
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true,
    });
    json!({ "type": "Sequence", "processors": [byte_level, template] })
}

#[test]
fn texts_begin_as_the_tokenizer_says_and_a_saved_one_says_it_too() {
    let bos = json!({ "bos_token": "key", "eos_token": "<|endoftext|>" });
    let with = |add: bool| {
        let mut settings = bos.clone();
        settings["add_bos_token"] = json!(add);
        settings
    };
    let none = json!(null);
    let llama3 = beginning_with("key", 2);
    // Settings beside the tokenizer, its post-processor, and what comes of them.
    let cases = [
        (bos.clone(), &none, None),
        (with(true), &none, Some(2)),
        (with(false), &none, None),
        (bos.clone(), &llama3, Some(2)),
        (with(false), &llama3, None),
        (json!({}), &llama3, Some(2)),
        (json!({}), &none, None),
    ];
    for (settings, processor, expected) in cases {
        let change = |tokenizer: &mut Value| tokenizer["post_processor"] = processor.clone();
        let folder = tokenizer_folder(change, settings.clone());
        for (bos, expected) in
            [(Bos::Auto, expected), (Bos::Always, expected.or(Some(2))), (Bos::Never, None)]
        {
            let choice = ModelChoice { random_init: Some(0), bos, ..at(folder.path()) };
            // The configuration's own bos_token_id is 1, where no file names a token.
            let expected = match (&settings, processor, bos) {
                (Value::Object(keys), Value::Null, Bos::Always) if keys.is_empty() => Some(1),
                _ => expected,
            };
            let loaded = load(choice);
            let given = loaded.tokenizer.unwrap();
            assert_eq!(given.prefix(), expected, "{settings} {processor} {bos:?}");
            let saved = folder.path().join(format!("saved-{bos:?}"));
            circuit_models::save(&saved, &*loaded.model, Some(&given)).unwrap();
            let again = tokenizer(&saved, Bos::Auto);
            assert_eq!(again.prefix(), expected);
            assert_eq!(
                json_of(&saved.join("tokenizer_config.json"))["add_bos_token"],
                expected.is_some()
            );
            // transformers 5 asks the post-processor alone.
            let ids = again.inner.encode(TEXT, true).unwrap().get_ids().to_vec();
            let mut whole: Vec<u32> = expected.into_iter().collect();
            whole.extend(given.encode(TEXT).unwrap());
            assert_eq!(ids, whole);
        }
    }
}

#[test]
fn a_beginning_that_is_asked_for_and_is_not_there_is_refused() {
    let folder = tokenizer_folder(|_| {}, json!({ "add_bos_token": true }));
    let config = folder.path().join("config.json");
    let mut json = json_of(&config);
    json.as_object_mut().unwrap().remove("bos_token_id");
    std::fs::write(&config, json.to_string()).unwrap();
    refuses(folder.path(), &["tokenizer_config.json", "`add_bos_token`"]);
    std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
    let choice = ModelChoice { bos: Bos::Always, random_init: Some(0), ..at(folder.path()) };
    let error = circuit_models::load(&choice).err().unwrap().to_string();
    assert!(error.contains("model.bos"), "{error}");
}

#[test]
fn what_texts_begin_with_is_shown_and_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("", "embedded: texts begin without a beginning-of-sequence token", Value::Null),
        (
            "--set model.bos=always",
            "embedded: texts begin with <|endoftext|>",
            json!("<|endoftext|>"),
        ),
    ];
    for (flags, shown, written) in cases {
        let arguments = format!(
            "discover --task agreement --set task.train_examples=4 --top-n 5 --force --circuit c.json {flags}"
        );
        let output = program_with(folder.path(), &arguments, ("HF_HOME", folder.path()));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{errors}");
        assert_eq!(errors.lines().filter(|line| line.starts_with(shown)).count(), 1, "{errors}");
        let circuit = json_of(&folder.path().join("c.json"));
        assert_eq!(circuit["provenance"]["bos"], written);
    }
}
