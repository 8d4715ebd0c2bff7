//! Text out of files and settings, a task's name, a token, a tensor's name, as it may be shown: on a terminal, in
//! a drawing, a page or a table, nothing of it means anything but itself.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character does something else than being seen: control characters, and those that turn the
/// direction of writing, so that a line reads as another than it is.
fn acts(c: char) -> bool {
    let turns =
        matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
    turns || (c.is_control() && !matches!(c, '\n' | '\t'))
}

/// The text with every character that acts spelt out, `\u{1b}`; ends of lines and tabs stay.
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return text.into();
    }
    let mut plain = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match acts(c) {
            // Writing to a String cannot fail.
            true => drop(write!(plain, "{}", c.escape_unicode())),
            false => plain.push(c),
        }
    }
    plain.into()
}

/// The text on one line.
pub fn one_line(text: &str) -> String {
    plain(text).split(['\n', '\t']).map(str::trim).collect::<Vec<_>>().join(" ")
}

/// The text as a cell of a Markdown table, or a heading: on one line, without what ends a cell or begins HTML.
pub fn markdown(text: &str) -> String {
    one_line(text).replace('|', "\\|").replace('<', "&lt;")
}

/// The text as a comma-separated value (RFC 4180).
pub fn csv(text: &str) -> String {
    let text = plain(text);
    match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.into_owned(),
    }
}

/// The text in HTML and SVG, attributes included.
pub fn escape(text: &str) -> String {
    let text = plain(text);
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the text.
        #[test]
        fn nothing_that_acts_is_left(text in any::<String>(), mark in "[|<>&\"',\n\u{1b}\u{9b}\u{202e}\0a]{0,12}") {
            let text = text + &mark;
            prop_assert!(!plain(&text).contains(acts));
            let cell = markdown(&text);
            prop_assert!(!cell.contains(['\n', '<']) && !cell.replace("\\|", "").contains('|'));
            prop_assert!(!escape(&text).contains(['<', '>', '"', '\'']));
            let value = csv(&text);
            let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            match inner {
                Some(inner) => prop_assert_eq!(&inner.replace("\"\"", "\""), &*plain(&text)),
                None => prop_assert!(!value.contains([',', '"', '\n'])),
            }
        }
    }

    #[test]
    fn what_acts_is_spelt_out_and_what_is_seen_stays() {
        assert_eq!(plain("\u{1b}[31mred\u{7}"), "\\u{1b}[31mred\\u{7}");
        assert_eq!(plain("Zoë → 東京\n\tπ"), "Zoë → 東京\n\tπ");
        assert_eq!(markdown("a|b\n<i>"), "a\\|b &lt;i>");
    }
}
