//! The counterfactual of a prepared line: the sentence whose subjects have the other number, with its
//! verbs in it. The published files have none.

use std::ops::Range;

use circuit_framework::{Result, refuse};
use serde::Deserialize;

use super::{Direction, Line, Sentence, Verb};

/// As it stands in the file.
#[derive(Deserialize)]
pub(super) struct Marked {
    text: String,
    verbs: Vec<String>,
    /// First character and the one behind the last, counted in Unicode's code points.
    verb_spans: Vec<[usize; 2]>,
}

/// The line's counterfactual, if it has one, its verbs in the form of this direction.
pub(super) fn sentence(
    line: &Line,
    direction: Direction,
    origin: &str,
) -> Result<Option<Box<Sentence>>> {
    let Some(Marked { text, verbs, verb_spans }) = &line.counterfactual else { return Ok(None) };
    let counts = [verbs.len(), verb_spans.len()];
    if counts != [line.clean_verbs.len(); 2] {
        refuse!(
            "{origin}: the counterfactual has {} verbs and {} verb_spans for {} clean_verbs",
            counts[0],
            counts[1],
            line.clean_verbs.len()
        );
    }
    let mut marked = Vec::with_capacity(verbs.len());
    let mut end = 0;
    for ((verb, other), &[first, last]) in verbs.iter().zip(&line.clean_verbs).zip(verb_spans) {
        match bytes(text, first, last) {
            Some(span) if span.start >= end && text[span.clone()] == **verb => {
                end = span.end;
                marked.push(Verb { span, flipped: other.clone() });
            }
            _ => refuse!(
                "{origin}: the counterfactual's verb {verb:?} is not at {first}..{last} of its text; \
                 verb_spans count characters, from left to right"
            ),
        }
    }
    let sentence = Sentence {
        text: text.clone(),
        verbs: marked,
        counterfactual: None,
        marks: Vec::new(),
        origin: origin.to_owned(),
    };
    Ok(Some(Box::new(match direction {
        Direction::Agreement => sentence,
        Direction::Disagreement => flipped(&sentence),
    })))
}

/// The bytes of a text's characters `first..last`.
pub(super) fn bytes(text: &str, first: usize, last: usize) -> Option<Range<usize>> {
    let at = |count| text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(count);
    (first <= last).then_some(at(first)?..at(last)?)
}

/// The sentence with all its verbs, which stand from left to right, in their other form.
fn flipped(sentence: &Sentence) -> Sentence {
    let (mut text, mut verbs) = (String::with_capacity(sentence.text.len()), Vec::new());
    let mut end = 0;
    for verb in &sentence.verbs {
        text.push_str(&sentence.text[end..verb.span.start]);
        let start = text.len();
        text.push_str(&verb.flipped);
        let own = sentence.text[verb.span.clone()].to_owned();
        verbs.push(Verb { span: start..text.len(), flipped: own });
        end = verb.span.end;
    }
    text.push_str(&sentence.text[end..]);
    Sentence {
        text,
        verbs,
        counterfactual: None,
        marks: Vec::new(),
        origin: sentence.origin.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(spans: &str) -> Line {
        serde_json::from_str(&format!(
            r#"{{"clean_text": "é key is or isn't", "corr_text": "é key are or aren't",
                "clean_verbs": ["is", "isn"], "corr_verbs": ["are", "aren"],
                "counterfactual": {{"text": "é keys are or aren't", "verbs": ["are", "aren"],
                                    "verb_spans": {spans}}}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn both_directions_have_their_form() {
        let line = line("[[7, 10], [14, 18]]");
        for (direction, text, verbs) in [
            (Direction::Agreement, "é keys are or aren't", ["are", "aren"]),
            (Direction::Disagreement, "é keys is or isn't", ["is", "isn"]),
        ] {
            let sentence = sentence(&line, direction, "here").unwrap().unwrap();
            assert_eq!(sentence.text, text);
            let found: Vec<_> =
                sentence.verbs.iter().map(|verb| &text[verb.span.clone()]).collect();
            assert_eq!(found, verbs);
            assert_ne!(sentence.verbs[0].flipped, verbs[0]);
        }
    }

    #[test]
    fn spans_that_do_not_fit_are_refused() {
        for spans in
            ["[[7, 10]]", "[[7, 9], [14, 18]]", "[[14, 18], [7, 10]]", "[[7, 10], [14, 99]]"]
        {
            let error = sentence(&line(spans), Direction::Agreement, "here").unwrap_err();
            assert!(error.to_string().starts_with("here: the counterfactual"), "{error}");
        }
    }
}
