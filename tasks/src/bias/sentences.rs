//! Sentences about somebody with an occupation and a pronoun for them, from BUG's CSV (Levy et al.,
//! 2021, arXiv 2109.03858) and from WinoBias (Zhao et al., 2018, arXiv 1804.06876): its numbered lines
//! with brackets, or the same processed to JSON Lines.
//!
//! A sentence is cut before the next pronoun with a gender, which may be somebody else's, unless the
//! file shows that it is the same person's.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use circuit_framework::{Error, Result, files, refuse};
use serde::Deserialize;

use super::pronouns::{self, Gender, Role};
use crate::rows::{self, Row};

/// A sentence up to where its pronoun's gender is no longer the only one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sentence {
    pub(super) text: String,
    /// Where the pronoun stands.
    pub(super) pronoun: Range<usize>,
    /// The pronoun of the other gender in its place.
    pub(super) counter: String,
    pub(super) gender: Gender,
    /// In lower case, without an article.
    pub(super) occupation: String,
}

impl Sentence {
    /// Where the occupation stands as a whole word before the pronoun.
    pub(super) fn occupation_span(&self) -> Option<Range<usize>> {
        let text = self.text.to_ascii_lowercase();
        let before = &text[..self.pronoun.start];
        let is_letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        (before.match_indices(&self.occupation[..]))
            .map(|(start, occupation)| start..start + occupation.len())
            .find(|span| {
                !is_letter(before[..span.start].chars().next_back())
                    && !is_letter(before[span.end..].chars().next())
            })
    }
}

/// A file's sentences, each with where it stands.
pub(super) fn read(path: &Path) -> Result<Vec<Row<Sentence>>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => bug(path),
        _ => winobias(path),
    }
}

/// A sentence before it is cut.
struct Marked {
    text: String,
    pronoun: Range<usize>,
    /// Other pronouns of the same person.
    same: Vec<Range<usize>>,
    occupation: String,
}

impl Marked {
    /// The text with a mark in the place of the person's pronouns: the same for both genders.
    fn masked(&self) -> String {
        let mut text = self.text.clone();
        for span in self.same.iter().rev().chain([&self.pronoun]) {
            text.replace_range(span.clone(), "_");
        }
        text
    }

    fn gold(&self) -> &str {
        &self.text[self.pronoun.clone()]
    }

    /// `role` is the pronoun's where another source tells it.
    fn sentence(self, role: Option<Role>) -> Result<Sentence> {
        let word = self.gold();
        let Some(gender) = pronouns::gender(word) else {
            refuse!("the pronoun is {word:?}; it must be he, she, him, her, his or a reflexive");
        };
        let role = role.unwrap_or_else(|| pronouns::role(&self.text, &self.pronoun));
        let Some(counter) = pronouns::counter(word, role) else {
            refuse!("the pronoun {word:?} has no counterpart as {role:?}");
        };
        let foreign = pronouns::spans(&self.text)
            .find(|span| span.start >= self.pronoun.end && !self.same.contains(span));
        let end = foreign.map_or(self.text.len(), |span| span.start);
        let article = |text: &str| -> String {
            let text = text.trim().to_lowercase();
            let short = ["the ", "a ", "an "].iter().find_map(|article| text.strip_prefix(article));
            short.unwrap_or(&text).to_owned()
        };
        Ok(Sentence {
            text: self.text[..end].trim_end().to_owned(),
            counter,
            gender,
            occupation: article(&self.occupation),
            pronoun: self.pronoun,
        })
    }
}

/// The columns of BUG's CSV that count.
#[derive(Deserialize)]
struct Bug {
    sentence_text: String,
    tokens: String,
    profession: String,
    g: String,
    g_first_index: usize,
}

fn bug(path: &Path) -> Result<Vec<Row<Sentence>>> {
    Ok(rows::map(rows::csv::<Bug>(path)?, |row| row.marked()?.sentence(None)))
}

impl Bug {
    fn marked(self) -> Result<Marked> {
        let tokens = python_strings(&self.tokens)?;
        let mut at = 0;
        for (index, token) in tokens.iter().enumerate() {
            let Some(found) = self.sentence_text[at..].find(token) else {
                refuse!("token {index}, {token:?}, is not in the sentence after those before it");
            };
            let span = at + found..at + found + token.len();
            if index == self.g_first_index {
                if !token.eq_ignore_ascii_case(&self.g) {
                    refuse!(
                        "the pronoun is {:?}, but g_first_index, {index}, points at {token:?}",
                        self.g
                    );
                }
                return Ok(Marked {
                    text: self.sentence_text,
                    pronoun: span,
                    same: Vec::new(),
                    occupation: self.profession,
                });
            }
            at = span.end;
        }
        refuse!("g_first_index is {}, but there are {} tokens", self.g_first_index, tokens.len())
    }
}

/// The strings of a Python list literal, as `['The', "chef's"]`.
fn python_strings(literal: &str) -> Result<Vec<String>> {
    let malformed = || Error::input(format!("tokens is no Python list of strings: {literal:?}"));
    let inner = literal.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let mut characters = inner.ok_or_else(malformed)?.chars();
    let mut strings = Vec::new();
    while let Some(character) = characters.next() {
        match character {
            quote @ ('\'' | '"') => {
                let mut string = String::new();
                loop {
                    match characters.next().ok_or_else(malformed)? {
                        '\\' => match characters.next().ok_or_else(malformed)? {
                            'n' => string.push('\n'),
                            't' => string.push('\t'),
                            other => string.push(other),
                        },
                        end if end == quote => break,
                        other => string.push(other),
                    }
                }
                strings.push(string);
            }
            ',' | ' ' => {}
            _ => return Err(malformed()),
        }
    }
    Ok(strings)
}

/// A line of the processed files.
#[derive(Deserialize)]
struct Processed {
    orig_sentence: String,
}

fn winobias(path: &Path) -> Result<Vec<Row<Sentence>>> {
    // The same sentence with a pronoun of the other gender tells which role "her" has.
    let mut others: BTreeMap<String, Role> = BTreeMap::new();
    if let Some(other) = counterpart(path).filter(|other| other.exists()) {
        for marked in marked_lines(&other)?.into_iter().filter_map(|row| row.value.ok()) {
            if let Some(role) = pronouns::role_of(marked.gold()) {
                others.insert(marked.masked(), role);
            }
        }
    }
    Ok((marked_lines(path)?.into_iter())
        .map(|Row { origin, value }| Row {
            origin,
            value: value.and_then(|marked| {
                let known = pronouns::role_of(marked.gold());
                let role = known.or_else(|| {
                    let role = others.get(&marked.masked()).copied();
                    role.filter(|role| pronouns::counter(marked.gold(), *role).is_some())
                        .filter(|role| [Role::Object, Role::Possessive].contains(role))
                });
                marked.sentence(role)
            }),
        })
        .collect())
}

/// The file with the same sentences and the other gender's pronouns.
fn counterpart(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let other = match name.strip_prefix("pro_") {
        Some(rest) => format!("anti_{rest}"),
        None => format!("pro_{}", name.strip_prefix("anti_")?),
    };
    Some(path.with_file_name(other))
}

fn marked_lines(path: &Path) -> Result<Vec<Row<Marked>>> {
    if path.extension().is_some_and(|extension| extension == "jsonl") {
        return Ok((rows::jsonl::<Processed>(path)?.into_iter())
            .map(|Row { origin, value }| Row {
                origin,
                value: value.and_then(|line| unbracket(&line.orig_sentence)),
            })
            .collect());
    }
    let text = files::read_text(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    Ok(lines
        .map(|(index, line)| {
            let sentence = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim();
            let origin = format!("{}:{}", path.display(), index + 1);
            Row { origin, value: unbracket(sentence) }
        })
        .collect())
}

/// A sentence whose occupation and pronouns of one person stand in brackets.
fn unbracket(bracketed: &str) -> Result<Marked> {
    let mut text = String::with_capacity(bracketed.len());
    let mut spans = Vec::new();
    let mut rest = bracketed;
    while let Some((before, after)) = rest.split_once('[') {
        let Some((inside, after)) = after.split_once(']') else {
            refuse!("a bracket is opened and not closed");
        };
        text.push_str(before);
        spans.push(text.len()..text.len() + inside.len());
        text.push_str(inside);
        rest = after;
    }
    text.push_str(rest);
    let (pronouns, entities): (Vec<_>, Vec<_>) =
        spans.into_iter().partition(|span| pronouns::gender(&text[span.clone()]).is_some());
    let (Some(entity), Some(pronoun)) = (entities.first(), pronouns.first()) else {
        refuse!("there must be an [occupation] and a [pronoun] in brackets");
    };
    Ok(Marked {
        occupation: text[entity.clone()].to_owned(),
        pronoun: pronoun.clone(),
        same: pronouns[1..].to_vec(),
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::shared;

    #[test]
    fn python_lists_are_read() {
        let tokens = python_strings(r#"['The', "chef's", 'o\'clock', ',']"#).unwrap();
        assert_eq!(tokens, ["The", "chef's", "o'clock", ","]);
        assert!(python_strings("['The'").is_err() && python_strings("[1]").is_err());
    }

    #[test]
    fn a_foreign_pronoun_cuts_and_one_of_the_same_person_does_not() {
        let cut = |bracketed: &str| unbracket(bracketed).unwrap().sentence(None).unwrap();
        let sentence = cut("[The chef] said [she] saw him.");
        assert_eq!((&sentence.text[..], &sentence.counter[..]), ("The chef said she saw", "he"));
        assert_eq!(
            cut("[The chef] hid [her] knife in [her] bag.").text,
            "The chef hid her knife in her bag."
        );
        assert_eq!(sentence.occupation, "chef");
    }

    /// Where both versions of a sentence are there, the words after "her" tell its role as well as the
    /// other version does, but for nouns that follow an object ("gave her money").
    #[test]
    fn the_following_word_tells_the_role_of_her() {
        let Some(folder) = shared("bias/winobias") else { return };
        let (mut told, mut right) = (0, 0);
        for kind in ["type1", "type2"] {
            for split in ["dev", "test"] {
                for side in ["pro", "anti"] {
                    let path = folder.join(format!("{side}_stereotyped_{kind}.txt.{split}"));
                    let others: BTreeMap<String, Role> = marked_lines(&counterpart(&path).unwrap())
                        .unwrap()
                        .into_iter()
                        .filter_map(|row| row.value.ok())
                        .filter_map(|m| Some((m.masked(), pronouns::role_of(m.gold())?)))
                        .collect();
                    for marked in
                        marked_lines(&path).unwrap().into_iter().filter_map(|r| r.value.ok())
                    {
                        let Some(role) = others.get(&marked.masked()) else { continue };
                        if marked.gold().eq_ignore_ascii_case("her") && *role != Role::Subject {
                            told += 1;
                            right +=
                                usize::from(pronouns::role(&marked.text, &marked.pronoun) == *role);
                        }
                    }
                }
            }
        }
        assert!(told > 800, "{told}");
        assert!(right as f64 > 0.93 * told as f64, "{right} of {told}");
    }
}
