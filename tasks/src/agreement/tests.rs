//! Tests of task `agreement` on fixtures and real data.

use super::*;
use crate::tests::{fixture, setting, tokenizer, tokenizers};

fn prepared(direction: Direction, counterfactuals: bool) -> Vec<Example> {
    let task =
        Agreement { data: Some(fixture("agreement.jsonl")), direction, ..Agreement::default() };
    let setting = Setting { counterfactuals, ..setting(4096) };
    task.sentences(Split::Train, &setting).unwrap().examples
}

/// Tokens are bytes here: a counterfactual is as long where the noun gains what the verb loses.
#[test]
fn prepared_lines_carry_a_counterfactual_of_their_own_length() {
    let examples = prepared(Direction::Agreement, false);
    let has: Vec<bool> = examples.iter().map(|e| e.counterfactual.is_some()).collect();
    assert_eq!(has, [true, true, false, true, false, false]);

    let text = |tokens: &[u32]| tokenizer().decode(tokens).unwrap();
    let counterfactual = examples[1].counterfactual.as_ref().unwrap();
    assert_eq!(
        text(&counterfactual.tokens),
        "the student near the house of the painters waits there"
    );
    // "wait" and "waits" differ behind the verb, and so do their counterfactuals.
    let [key] = &examples[1].keys[..] else { panic!("one key") };
    let [other] = counterfactual.key_positions[..] else { panic!("one key") };
    assert_eq!(
        text(&examples[1].tokens[..key.position]),
        "the students near the house of the painters wait"
    );
    assert_eq!(
        text(&counterfactual.tokens[..other]),
        "the student near the house of the painters wait"
    );
}

/// The words at a span, one for each mark that has room between it and the next.
fn words(example: &Example, name: &str, tokenizer: &Tokenizer) -> String {
    let span = example.spans.get(name).map_or(&[][..], |span| span);
    let tokens: Vec<u32> = span.iter().map(|&position| example.tokens[position]).collect();
    tokenizer.decode(&tokens).unwrap().replace(' ', "")
}

#[test]
fn subjects_and_attractors_are_marked_in_both_forms_and_all_tokenizers() {
    for tokenizer in tokenizers() {
        for direction in [Direction::Agreement, Direction::Disagreement] {
            let task = Agreement {
                data: Some(fixture("agreement.jsonl")),
                direction,
                ..Agreement::default()
            };
            let setting = Setting { tokenizer: Some(tokenizer), ..setting(4096) };
            let examples = task.sentences(Split::Train, &setting).unwrap().examples;
            let marked: Vec<_> = (examples.iter().take(3))
                .map(|example| [SUBJECT, ATTRACTOR].map(|name| words(example, name, tokenizer)))
                .collect();
            let expected =
                [["author", "picturesbridges"], ["students", "house"], ["key", "cabinetsdoors"]];
            assert_eq!(marked, expected);
            let made = Agreement { direction, ..Agreement::default() };
            for example in made.sentences(Split::Test, &setting).unwrap().examples {
                let text = tokenizer.decode(&example.tokens).unwrap();
                let subject = words(&example, SUBJECT, tokenizer);
                let before = text.split(&format!(" {subject} ")).next().unwrap();
                assert!(before.split(' ').count() <= 2, "the {subject} of {text}");
                assert!(example.spans[ATTRACTOR][0] > example.spans[SUBJECT][0]);
                assert!(*example.spans[ATTRACTOR].last().unwrap() < example.keys[0].position);
            }
        }
    }
}

#[test]
fn where_every_example_needs_one_the_others_are_left_out() {
    for (direction, text) in [
        (Direction::Agreement, "the author of the pictures near the old bridges seems strange"),
        (Direction::Disagreement, "the key to the cabinets behind the old doors are new"),
    ] {
        let examples = prepared(direction, true);
        assert!(examples.iter().all(|example| example.counterfactual.is_some()));
        assert!(examples.len() < 6 && tokenizer().decode(&examples[0].tokens).unwrap() == text);
    }
}

#[test]
fn published_lines_are_read_as_before() {
    let lines = "{\"clean_text\": \"a dog is\", \"corr_text\": \"a dog are\", \
                 \"clean_verbs\": [\"is\"], \"corr_verbs\": [\"are\"]}\n";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines).unwrap();
    let task = Agreement { data: Some(file.path().to_owned()), ..Agreement::default() };
    let setting = Setting { counterfactuals: true, ..setting(4096) };
    let examples = task.sentences(Split::Train, &setting).unwrap().examples;
    assert!(examples.len() == 1 && examples[0].counterfactual.is_none());
    assert!(task.why_no_counterfactual().is_some());
}
