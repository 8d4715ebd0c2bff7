//! What is marked in a prepared line: its verbs' subjects, and the attractors between them and the verbs.
//! tools/prepare_agreement.py writes them for the grammatical text; the published files have none.

use std::ops::Range;

use circuit_framework::{Result, refuse};

use super::counterfactual::bytes;
use super::{ATTRACTOR, Line, SUBJECT, Sentence};

/// Gives a line's two sentences the marks that stand in its file.
///
/// # Errors
/// If they don't stand in the grammatical text.
pub(super) fn mark(
    line: &Line,
    (clean, flipped): (&mut Sentence, &mut Sentence),
    origin: &str,
) -> Result<()> {
    let subjects = line.subject_spans.iter().flatten().map(|span| (SUBJECT, span));
    let attractors = line.attractor_spans.iter().flatten().map(|span| (ATTRACTOR, span));
    for (name, &[first, last]) in subjects.chain(attractors) {
        let Some(span) = bytes(&line.clean_text, first, last).filter(|span| !span.is_empty())
        else {
            refuse!(
                "{origin}: the {name} at {first}..{last} is not in clean_text; spans count characters, \
                 from 0"
            );
        };
        flipped.marks.extend(moved(span.clone(), clean, flipped).map(|span| (name, span)));
        clean.marks.push((name, span));
    }
    Ok(())
}

/// Where a part of the grammatical text stands in the flipped one; none where the texts differ in more than
/// the marked verbs before it.
fn moved(span: Range<usize>, clean: &Sentence, flipped: &Sentence) -> Option<Range<usize>> {
    let (mut grown, mut shrunk) = (0, 0);
    let verbs = clean.verbs.iter().zip(&flipped.verbs);
    for (own, other) in verbs.filter(|(own, _)| own.span.end <= span.start) {
        grown += other.span.len();
        shrunk += own.span.len();
    }
    let moved = span.start + grown - shrunk..span.end + grown - shrunk;
    (flipped.text.get(moved.clone()) == clean.text.get(span)).then_some(moved)
}
