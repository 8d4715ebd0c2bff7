//! A problem's reasoning from the level's abstract template: variables become the problem's
//! propositions, and the formulas words, in the way of the published `gold_cot`.

use circuit_framework::{Result, refuse};
use serde_json::{Map, Value};

/// The template in the problem's words. Abstract problems have names for propositions, which are not
/// put in quotation marks.
pub(super) fn fill(
    template: &str,
    words: &Map<String, Value>,
    is_abstract: bool,
) -> Result<String> {
    let spelt = (template.replace("<<<", "<answer>").replace(">>>", "</answer>"))
        .replace(" = ", " whose corresponding truth value is ")
        .replace(" -> ", " logically implies ");
    let mut filled = String::with_capacity(2 * spelt.len());
    let mut rest = &spelt[..];
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        let (before, from) = rest.split_at(start);
        let end = from.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(from.len());
        let (word, after) = from.split_at(end);
        filled.push_str(before);
        match words.get(&format!("<{word}>")).and_then(Value::as_str) {
            Some(proposition) => {
                let proposition = proposition.trim().trim_end_matches('.');
                let quote = if is_abstract { "" } else { "\"" };
                filled.extend([quote, proposition, quote]);
            }
            None if is_variable(word) => refuse!("there is no proposition `<{word}>`"),
            None => filled.push_str(match word {
                "OR" => "or",
                "AND" => "and",
                "NOT" => "not",
                word => word,
            }),
        }
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Whether a word is one of the templates' variables: aaa, aab, … , abz.
fn is_variable(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.len() == 3
        && bytes[0] == b'a'
        && (b'a'..=b'b').contains(&bytes[1])
        && bytes[2].is_ascii_lowercase()
}
