//! `tokens`: sentences with marked answers become the examples that task `tokens` reads.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::command_line::{refuses, succeeds, words};
use crate::support::{at, few, load, shared};

/// Runs `tokens` on a text; its lines.
fn tokens(folder: &Path, text: &str, rest: &str) -> Vec<Value> {
    std::fs::write(folder.join("text.txt"), text).unwrap();
    let lines = succeeds(folder, &words(&format!("tokens text.txt {rest}")));
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A tiny random model with GPT-2's own tokenizer in the folder `gpt2`, and the ids by token.
fn gpt2(folder: &Path) -> Option<BTreeMap<String, u32>> {
    let files = shared("tokenizers/gpt2")?;
    let model = folder.join("gpt2");
    std::fs::create_dir(&model).unwrap();
    for file in ["vocab.json", "merges.txt"] {
        std::fs::copy(files.join(file), model.join(file)).unwrap();
    }
    let config = json!({
        "model_type": "gpt2", "vocab_size": 50257, "n_positions": 32, "n_embd": 4, "n_layer": 2,
        "n_head": 2, "layer_norm_epsilon": 1e-5,
    });
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    let vocabulary = std::fs::read_to_string(model.join("vocab.json")).unwrap();
    Some(serde_json::from_str(&vocabulary).unwrap())
}

const GPT2: &str = "--model gpt2 --random-init 0";

#[test]
fn a_sentence_becomes_an_example_with_its_counterfactual() {
    let folder = tempfile::tempdir().unwrap();
    let Some(ids) = gpt2(folder.path()) else { return };
    let sentence = "When Mary and John went to the store, John gave a drink to";
    let other = sentence.replace(", John", ", Mary");
    let id = |word: &str| json!(ids[&format!("Ġ{word}")]);
    // Without brackets of its own the counterfactual is read where the sentence is.
    for marks in ["", "[[ John]]"] {
        let text = format!("{sentence}[[ Mary| John]]\t{other}{marks}\n");
        let [line] = &tokens(folder.path(), &text, GPT2)[..] else { panic!("one line") };
        assert_eq!(line["text"], format!("{sentence}[[ Mary| John]]"));
        assert_eq!((&line["correct"][0], &line["wrong"][0]), (&id("Mary"), &id("John")));
        let all = line["tokens"].as_array().unwrap();
        assert_eq!((all[1].clone(), all.last().unwrap().clone()), (id("Mary"), id("Mary")));
        assert_eq!(line["key_positions"], json!([all.len() - 1]));
        let corrupt = line["corrupt_tokens"].as_array().unwrap();
        assert_eq!((corrupt.len(), &corrupt[9]), (all.len(), &id("Mary")));
        assert_eq!(line["corrupt_key_positions"], line["key_positions"]);
    }
    let line = format!("tokens text.txt {GPT2} --out out.jsonl");
    let said = succeeds(folder.path(), &words(&line));
    assert!(said.contains("1 examples with 1 keys are in out.jsonl"), "{said}");
    let discover = "discover --task tokens --data out.jsonl --ablation corrupt --top-n 3";
    succeeds(folder.path(), &words(&format!("{discover} {GPT2}")));
}

#[test]
fn answers_can_be_several_and_a_text_can_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let Some(ids) = gpt2(folder.path()) else { return };
    let id = |word: &str| ids[&format!("Ġ{word}")];
    let text = "\
        The keys[[ are/ were| is/ was]] here\tThe long key[[ is]] here\n\
        \n\
        No answer in this one\n\
        One[[ two]] three[[ four]]\n";
    let [sets, plain, twice] = &tokens(folder.path(), text, GPT2)[..] else { panic!("three") };
    assert_eq!(sets["correct"], json!([[id("are"), id("were")]]));
    assert_eq!(sets["wrong"], json!([[id("is"), id("was")]]));
    assert_eq!(
        (&sets["key_positions"], &sets["corrupt_key_positions"]),
        (&json!([2]), &json!([3]))
    );
    assert_eq!(sets["tokens"].as_array().unwrap().last(), Some(&json!(id("here"))));
    assert_eq!(sets["corrupt_tokens"][3], json!(id("is")));
    let fields: Vec<&String> = plain.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["text", "tokens"]);
    assert_eq!(twice["key_positions"], json!([1, 3]));
    assert!(twice.get("wrong").is_none(), "{twice}");
    // A counterfactual of another length is read at its end, where the sentence ends with its key.
    let text = "The keys[[ are]]\tThe very old key\n";
    let [line] = &tokens(folder.path(), text, GPT2)[..] else { panic!("one line") };
    assert_eq!(line["corrupt_key_positions"], json!([4]));
    assert_eq!(line["corrupt_tokens"][4], json!(id("are")));
}

#[test]
fn what_is_no_example_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    if gpt2(folder.path()).is_none() {
        return;
    }
    let long = "word ".repeat(40);
    for (line, parts) in [
        ("He saw[[ Mary Ann]]", &["` Mary Ann` is 2 tokens", "one token"][..]),
        ("He saw [[Mary]]", &["`Mary` becomes one token with the text before", "space"]),
        ("He saw[[ Mar]]y", &["becomes one token with ` Mar`"]),
        ("[[ Mary]] saw him", &["nothing stands before"]),
        ("He saw[[ Mary", &["[[ without ]]"]),
        ("He saw[[ Mary/| John]]", &["empty"]),
        ("He saw[[ Mary| Mary]]", &["stands twice"]),
        ("He saw[[ Mary]] there\tShe saw", &["counterfactual", "2 tokens", "4"]),
        (&long[..], &["context is 32"]),
    ] {
        let fine = "The first one[[ is]]\n";
        std::fs::write(folder.path().join("text.txt"), format!("{fine}{line}\n")).unwrap();
        let command = format!("tokens text.txt {GPT2} --out out.jsonl");
        refuses(folder.path(), &words(&command), &[&["text.txt:2"], parts].concat());
        assert!(!folder.path().join("out.jsonl").exists(), "something was written");
    }
    std::fs::write(folder.path().join("text.txt"), "the keys[[ aren]] old\n").unwrap();
    let unknown = ["text.txt:1", "` aren` is not in the vocabulary"];
    refuses(folder.path(), &words("tokens text.txt"), &unknown);
    std::fs::write(folder.path().join("text.txt"), "\n").unwrap();
    refuses(folder.path(), &words("tokens text.txt"), &["text.txt", "no line"]);
}

proptest! {
    #![proptest_config(few(4))]

    /// Sentences of the built-in model's words with one word marked: the tokens are the sentence's.
    #[test]
    fn the_tokens_are_those_of_the_sentence_with_the_key_where_it_is_marked(
        sentences in prop::collection::vec(
            (prop::collection::vec(1..120u32, 2..12), any::<prop::sample::Index>()), 20),
    ) {
        let tokenizer = load(at(Path::new("embedded"))).tokenizer.unwrap();
        let mut text = String::new();
        for (ids, key) in &sentences {
            let key = 1 + key.index(ids.len() - 1);
            let said: Vec<String> = ids.iter().map(|&id| tokenizer.text(id).unwrap()).collect();
            let after: String = said[key + 1..].iter().map(|word| format!(" {word}")).collect();
            text += &format!("{}[[ {}]]{after}\n", said[..key].join(" "), said[key]);
        }
        let folder = tempfile::tempdir().unwrap();
        let lines = tokens(folder.path(), &text, "");
        for ((ids, key), line) in sentences.iter().zip(lines) {
            let key = 1 + key.index(ids.len() - 1);
            prop_assert_eq!(&line["tokens"], &json!(ids));
            prop_assert_eq!(&line["key_positions"], &json!([key]));
            prop_assert_eq!(&line["correct"], &json!([ids[key]]));
        }
    }
}
