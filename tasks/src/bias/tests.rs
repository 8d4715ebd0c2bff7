//! Tests of task `bias` on fixtures and real data.

use super::*;
use crate::tests::{fixture, setting, shared};

fn load(path: PathBuf, bad_rows: BadRows) -> Result<Sentences> {
    let task = Bias { data: Some(path), bad_rows, ..Bias::default() };
    task.sentences(Split::Train, &setting(4096))
}

/// The text of the tokens at a span.
fn marked(
    example: &Example,
    name: &str,
    tokenizer: &circuit_framework::data::tokenizer::Tokenizer,
) -> String {
    let span = example.spans.get(name).map_or(&[][..], |span| span);
    let tokens: Vec<u32> = span.iter().map(|&at| example.tokens[at]).collect();
    tokenizer.decode(&tokens).unwrap().trim().to_owned()
}

#[test]
fn the_fixture_of_bug_is_read_and_its_bad_rows_are_named() {
    let error = load(fixture("bug.csv"), BadRows::Stop).unwrap_err().to_string();
    assert!(error.contains("bug.csv:4") && error.contains("\"it\""), "{error}");
    let loaded = load(fixture("bug.csv"), BadRows::Skip).unwrap();
    let shown: Vec<(&str, &str, &str)> = (loaded.sentences.iter())
        .map(|s| (&s.text[..], &s.counter[..], &s.occupation[..]))
        .collect();
    assert_eq!(
        shown,
        [
            ("The baker said that he was tired, and", "she", "baker"),
            ("A \"quick\" surgeon washed her hands.", "his", "surgeon"),
        ]
    );
    let tokenizer = crate::tests::tokenizer();
    for (sentence, example) in loaded.sentences.iter().zip(&loaded.examples) {
        assert_eq!(marked(example, "occupation", tokenizer), sentence.occupation);
        let [key] = &example.keys[..] else { panic!("one key") };
        // Tokens are bytes here, so positions are the text's.
        let own = &sentence.text[sentence.pronoun.clone()];
        let at = own.bytes().zip(sentence.counter.bytes()).position(|(a, b)| a != b).unwrap();
        assert_eq!(key.position, sentence.pronoun.start + at);
        assert_eq!(tokenizer.decode(&key.correct).unwrap(), own[at..at + 1]);
    }
}

#[test]
fn the_fixture_of_winobias_is_read_from_all_its_forms() {
    let loaded = load(fixture("winobias"), BadRows::Stop).unwrap();
    assert_eq!(loaded.parts, [("type1.pro", 0..2), ("type1.anti", 2..4)]);
    // The other file says "him" where the next word alone would be taken for a noun.
    assert_eq!(loaded.sentences[1].counter, "him");
    let processed = load(fixture("winobias/processed.jsonl"), BadRows::Skip).unwrap();
    assert_eq!(processed.sentences[0].text, loaded.sentences[0].text);
    assert_eq!(processed.sentences.len(), 1);
}

#[test]
fn all_of_winobias_is_read() {
    let Some(folder) = shared("bias/winobias") else { return };
    let task = Bias { data: Some(folder.clone()), bad_rows: BadRows::Skip, ..Bias::default() };
    for split in [Split::Train, Split::Test] {
        let loaded = task.sentences(split, &setting(4096)).unwrap();
        let counts: Vec<usize> = loaded.parts.iter().map(|(_, range)| range.len()).collect();
        assert_eq!(counts, [396, 396, 396, 396], "{split:?}");
    }
    let processed = load(folder.join("pro_stereotyped_type2_dev.jsonl"), BadRows::Skip).unwrap();
    assert_eq!(processed.examples.len(), 396);
}
#[test]
fn counterfactuals_are_as_long_and_of_another_occupation() {
    let Some(folder) = shared("bias/winobias") else { return };
    let task = Bias { data: Some(folder), bad_rows: BadRows::Skip, ..Bias::default() };
    for tokenizer in crate::tests::tokenizers() {
        let setting =
            Setting { counterfactuals: true, tokenizer: Some(tokenizer), ..setting(4096) };
        let loaded = task.sentences(Split::Train, &setting).unwrap();
        // Of 4 · 396 sentences; a few have no occupation before the pronoun.
        assert!(loaded.examples.len() > 1400, "{}", loaded.examples.len());
        crate::tests::check_counterfactuals(&loaded.examples);
        for (example, sentence) in loaded.examples.iter().zip(&loaded.sentences) {
            let occupation = marked(example, "occupation", tokenizer);
            assert!(occupation.eq_ignore_ascii_case(&sentence.occupation), "{occupation}");
            assert_eq!(
                marked(example, "pronoun", tokenizer),
                sentence.text[sentence.pronoun.clone()]
            );
            assert!(example.spans["pronoun"].contains(&example.keys[0].position));
            let other = &example.counterfactual.as_ref().unwrap().tokens;
            let other = tokenizer.decode(other).unwrap();
            let differing = |a: &str, b: &str| {
                a.split(' ').filter(|word| !b.split(' ').any(|own| own == *word)).count()
            };
            // The occupation alone, of one or two words.
            assert!((1..=2).contains(&differing(&other, &sentence.text)), "{other}");
        }
        let test = task.sentences(Split::Test, &setting).unwrap();
        assert_eq!(test.examples.len(), 4 * 396);
    }
}

#[test]
fn generated_sentences_end_in_the_occupation_s_pronoun() {
    for tokenizer in crate::tests::tokenizers() {
        let setting =
            Setting { counterfactuals: true, tokenizer: Some(tokenizer), ..setting(4096) };
        let task = Bias { train_examples: Some(300), test_examples: Some(90), ..Bias::default() };
        let train = task.sentences(Split::Train, &setting).unwrap();
        let test = task.sentences(Split::Test, &setting).unwrap();
        assert_eq!((train.examples.len(), test.examples.len()), (300, 90));
        crate::tests::check_counterfactuals(&train.examples);
        let trained: Vec<&str> = train.sentences.iter().map(|s| &s.text[..]).collect();
        assert!(test.sentences.iter().all(|sentence| !trained.contains(&&sentence.text[..])));
        for (example, sentence) in train.examples.iter().zip(&train.sentences) {
            // Several tokens, where tokens are bytes.
            let pronoun = &example.spans["pronoun"];
            assert_eq!(pronoun.first(), Some(&example.keys[0].position));
            assert_eq!(pronoun.last(), Some(&(example.tokens.len() - 1)));
            let occupation = marked(example, "occupation", tokenizer);
            assert!(occupation.eq_ignore_ascii_case(&sentence.occupation), "{occupation}");
        }
    }
}

#[test]
fn a_file_without_any_counterfactual_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("poets.txt.dev");
    std::fs::write(&path, "1 [The poet] said that [he] was ill.\n").unwrap();
    let task = Bias { data: Some(path), ..Bias::default() };
    let setting = Setting { counterfactuals: true, ..setting(4096) };
    let error = task.sentences(Split::Train, &setting).unwrap_err().to_string();
    assert!(error.contains("none of 1 sentences has a counterfactual"), "{error}");
}
