//! Finding a line's verbs in its two texts by walking them side by side, word by word. A verb's word
//! may occur elsewhere unannotated, so it counts only where both texts have their form of it; the
//! texts may differ in spaces ("it's" / "it 's"), and in verbs that were flipped but not annotated.

use std::ops::Range;

use super::{Line, Sentence, Verb};

/// The line's two sentences, or none where the texts don't run in parallel.
pub(super) fn align(line: &Line, origin: &str) -> Option<(Sentence, Sentence)> {
    let (clean, flipped) = (&line.clean_text, &line.corr_text);
    let (clean_words, flipped_words) = (words(clean), words(flipped));
    let mut pairs = line.clean_verbs.iter().zip(&line.corr_verbs).peekable();
    let (mut clean_verbs, mut flipped_verbs) = (Vec::new(), Vec::new());
    let (mut i, mut j) = (0, 0);
    while i < clean_words.len() && j < flipped_words.len() {
        let found = pairs.peek().and_then(|(a, b)| {
            let a_span = form_at(clean, &clean_words[i..], a)?;
            Some((*a, a_span, *b, form_at(flipped, &flipped_words[j..], b)?))
        });
        match found {
            Some((a, a_span, b, b_span)) => {
                clean_verbs.push(Verb { span: a_span, flipped: b.clone() });
                flipped_verbs.push(Verb { span: b_span, flipped: a.clone() });
                // The forms may differ in length: "I've" is flipped to "I has".
                i += words(a).len();
                j += words(b).len();
                pairs.next();
            }
            None => {
                // A space may be missing between two words ("in a" / "ina").
                let joined = |text: &str, words: &[Range<usize>], one: &str| {
                    words.len() > 1
                        && [&text[words[0].clone()], &text[words[1].clone()]].concat() == one
                };
                let clean_joins =
                    joined(clean, &clean_words[i..], &flipped[flipped_words[j].clone()]);
                let flipped_joins =
                    joined(flipped, &flipped_words[j..], &clean[clean_words[i].clone()]);
                i += 1 + usize::from(clean_joins);
                j += 1 + usize::from(flipped_joins);
            }
        }
    }
    if pairs.peek().is_some() || clean_words.len() - i != flipped_words.len() - j {
        return None;
    }
    let sentence = |text: &str, verbs| Sentence {
        text: text.to_owned(),
        verbs,
        counterfactual: None,
        marks: Vec::new(),
        origin: origin.to_owned(),
    };
    Some((sentence(clean, clean_verbs), sentence(flipped, flipped_verbs)))
}

/// The text's words and, one by one, its other signs that are no spaces.
fn words(text: &str) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    let mut in_word = false;
    for (at, c) in text.char_indices() {
        let end = at + c.len_utf8();
        match words.last_mut() {
            Some(word) if in_word && c.is_alphanumeric() => word.end = end,
            _ if !c.is_whitespace() => words.push(at..end),
            _ => {}
        }
        in_word = c.is_alphanumeric();
    }
    words
}

/// Where `form` stands if the next words spell it.
fn form_at(text: &str, next: &[Range<usize>], form: &str) -> Option<Range<usize>> {
    let parts = words(form);
    let spelt = next.len() >= parts.len()
        && (parts.iter().zip(next)).all(|(part, word)| form[part.clone()] == text[word.clone()]);
    (spelt && !parts.is_empty()).then(|| next[0].start..next[parts.len() - 1].end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(clean: &str, flipped: &str, verbs: [&[&str]; 2]) -> Option<Vec<(usize, usize)>> {
        let words = |verbs: &[&str]| verbs.iter().map(|verb| verb.to_string()).collect();
        let line = Line {
            clean_text: clean.to_owned(),
            corr_text: flipped.to_owned(),
            clean_verbs: words(verbs[0]),
            corr_verbs: words(verbs[1]),
            clean_verb_pos: None,
            clean_verb_ids: None,
            counterfactual: None,
            subject_spans: Vec::new(),
            attractor_spans: Vec::new(),
        };
        let (clean, _) = align(&line, "here")?;
        Some(clean.verbs.into_iter().map(|verb| (verb.span.start, verb.span.end)).collect())
    }

    #[test]
    fn a_word_counts_only_where_both_texts_have_their_form() {
        let found = spans("That is what is is", "That is what are is", [&["is"], &["are"]]);
        assert_eq!(found, Some(vec![(13, 15)]));
    }

    #[test]
    fn spaces_may_differ() {
        let found = spans("it's what it does", "it 's what it do", [&["does"], &["do"]]);
        assert_eq!(found, Some(vec![(13, 17)]));
        let found = spans("on a hill it is", "ona hill it are", [&["is"], &["are"]]);
        assert_eq!(found, Some(vec![(13, 15)]));
        let found = spans("it's here", "it 're here", [&["'s"], &["'re"]]);
        assert_eq!(found, Some(vec![(2, 4)]));
    }

    #[test]
    fn other_verbs_may_be_flipped_too() {
        let found = spans("he says it isn't so", "he say it aren't so", [&["isn"], &["aren"]]);
        assert_eq!(found, Some(vec![(11, 14)]));
    }

    #[test]
    fn texts_that_do_not_run_in_parallel_are_not_aligned() {
        assert_eq!(spans("a dog is", "a big dog are", [&["is"], &["are"]]), None);
        assert_eq!(spans("a dog barks", "a dog barks", [&["is"], &["are"]]), None);
    }
}
