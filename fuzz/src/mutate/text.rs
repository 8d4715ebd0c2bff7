//! Changing text: words that readers know, numbers, lines; now and then bytes, so that it is no text.

use super::{Random, bytes};

/// What readers of text look for, or stumble over.
const WORDS: [&str; 42] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    ",",
    ":",
    "\n",
    "\r\n",
    "\t",
    "\\",
    "\\u0000",
    "\\ud800",
    "null",
    "true",
    "false",
    "NaN",
    "-Infinity",
    "1e999",
    "-1",
    "0",
    "0.5",
    "{{",
    "}}",
    "{%",
    "%}",
    "[[",
    "]]",
    "=",
    "#",
    "é",
    "\u{feff}",
    "\u{202e}",
    "𝒳",
    "\u{0}",
    "\u{1b}[31m",
    "|",
    "<<",
    ">>",
    "../x",
    "/dev/zero",
];

/// Changes a text in one to four places; `others` are texts whose parts may get into it.
pub fn mutate(random: &mut Random, file: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    if random.one_in(4) {
        return bytes(random, file, others);
    }
    let mut text = String::from_utf8_lossy(file).into_owned();
    for _ in 0..1 + random.below(4) {
        change(random, &mut text, others);
    }
    text.into_bytes()
}

/// The first place at or behind `at` where a character begins.
fn boundary(text: &str, at: usize) -> usize {
    (at..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len())
}

fn change(random: &mut Random, text: &mut String, others: &[Vec<u8>]) {
    let range = random.range(text.len());
    let range = boundary(text, range.start)..boundary(text, range.end);
    match random.below(6) {
        0 => text.insert_str(range.start, random.choose::<&str>(&WORDS)),
        1 => text.replace_range(range, random.choose::<&str>(&WORDS)),
        2 => replace_number(random, text),
        3 => {
            let other = random.choose(others);
            let part = String::from_utf8_lossy(&other[random.range(other.len())]).into_owned();
            text.replace_range(range, &part);
        }
        4 => {
            let part = text[range.clone()].repeat(1 + random.below(8));
            text.insert_str(range.start, &part);
        }
        _ => *text = change_lines(random, text),
    }
}

fn replace_number(random: &mut Random, text: &mut String) {
    let is_digit = |(_, c): &(usize, char)| c.is_ascii_digit();
    let digits: Vec<usize> = text.char_indices().filter(is_digit).map(|(at, _)| at).collect();
    if digits.is_empty() {
        return;
    }
    let start = *random.choose(&digits);
    let length = text[start..].find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len() - start);
    text.replace_range(start..start + length, &random.integer().to_string());
}

/// One line removed, written twice or put elsewhere.
fn change_lines(random: &mut Random, text: &str) -> String {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    if lines.is_empty() {
        return String::new();
    }
    let (from, to) = (random.below(lines.len()), random.below(lines.len()));
    match random.below(3) {
        0 => drop(lines.remove(from)),
        1 => lines.insert(to, lines[from]),
        _ => lines.swap(from, to),
    }
    lines.concat()
}
