//! Finding a line's verbs in its two texts by walking them side by side. A verb's word may occur
//! elsewhere unannotated, so a word counts only where both texts have their form of it; between
//! the verbs the texts may differ in spaces ("it's" / "it 's").

use super::{Line, Sentence, Verb};

/// The line's two sentences, or none where the texts don't run in parallel.
pub(super) fn align(line: &Line, origin: &str) -> Option<(Sentence, Sentence)> {
    let (clean, flipped) = (&line.clean_text, &line.corr_text);
    let mut pairs = line.clean_verbs.iter().zip(&line.corr_verbs).peekable();
    let (mut clean_verbs, mut flipped_verbs) = (Vec::new(), Vec::new());
    let (mut i, mut j) = (0, 0);
    while i < clean.len() || j < flipped.len() {
        if let Some((a, b)) = pairs.peek()
            && stands_at(clean, i, a)
            && stands_at(flipped, j, b)
        {
            clean_verbs.push(Verb { span: i..i + a.len(), flipped: b.to_string() });
            flipped_verbs.push(Verb { span: j..j + b.len(), flipped: a.to_string() });
            i += a.len();
            j += b.len();
            pairs.next();
            continue;
        }
        let (x, y) = (clean[i..].chars().next(), flipped[j..].chars().next());
        match (x, y) {
            (Some(x), Some(y)) if x == y => {
                i += x.len_utf8();
                j += y.len_utf8();
            }
            (Some(x), _) if x.is_whitespace() => i += x.len_utf8(),
            (_, Some(y)) if y.is_whitespace() => j += y.len_utf8(),
            _ => return None,
        }
    }
    if pairs.peek().is_some() {
        return None;
    }
    let sentence = |text: &str, verbs| Sentence {
        text: text.to_owned(),
        verbs,
        counterfactual: None,
        origin: origin.to_owned(),
    };
    Some((sentence(clean, clean_verbs), sentence(flipped, flipped_verbs)))
}

/// Whether `word` stands at `at` as a word of its own; "n't" may follow, and an apostrophe is where
/// a contracted verb begins.
fn stands_at(text: &str, at: usize, word: &str) -> bool {
    let Some(rest) = text[at..].strip_prefix(word) else {
        return false;
    };
    let inside = |c: char| c.is_alphanumeric();
    let begins = word.starts_with(['\'', '’']) || !text[..at].ends_with(inside);
    let ends = !rest.starts_with(inside) || rest.starts_with("n't") || rest.starts_with("n’t");
    begins && ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(clean: &str, flipped: &str, verbs: [&[&str]; 2]) -> Option<Vec<std::ops::Range<usize>>> {
        let words = |verbs: &[&str]| verbs.iter().map(|verb| verb.to_string()).collect();
        let line = Line {
            clean_text: clean.to_owned(),
            corr_text: flipped.to_owned(),
            clean_verbs: words(verbs[0]),
            corr_verbs: words(verbs[1]),
            clean_verb_pos: None,
            clean_verb_ids: None,
        };
        let (clean, _) = align(&line, "here")?;
        Some(clean.verbs.into_iter().map(|verb| verb.span).collect())
    }

    #[test]
    fn a_word_counts_only_where_both_texts_have_their_form() {
        let found = spans("That is what is is", "That is what are is", [&["is"], &["are"]]);
        assert_eq!(found, Some(vec![13..15]));
    }

    #[test]
    fn spaces_may_differ() {
        let found = spans("it's what it does", "it 's what it do", [&["does"], &["do"]]);
        assert_eq!(found, Some(vec![13..17]));
        let found = spans("it's here", "it 're here", [&["'s"], &["'re"]]);
        assert_eq!(found, Some(vec![2..4]));
    }

    #[test]
    fn texts_that_do_not_run_in_parallel_are_not_aligned() {
        assert_eq!(spans("a dog is", "a cat are", [&["is"], &["are"]]), None);
        assert_eq!(spans("a dog barks", "a dog barks", [&["is"], &["are"]]), None);
    }
}
