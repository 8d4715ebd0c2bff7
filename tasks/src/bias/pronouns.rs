//! English pronouns of two genders, and the one of the other gender in a pronoun's place.

use std::ops::Range;

/// A pronoun's gender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gender {
    Male,
    Female,
}

/// How a pronoun serves in its sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Subject,
    Object,
    /// Before a noun.
    Possessive,
    Reflexive,
}

/// Male and female forms by role.
const FORMS: [(Role, &str, &str); 4] = [
    (Role::Subject, "he", "she"),
    (Role::Object, "him", "her"),
    (Role::Possessive, "his", "her"),
    (Role::Reflexive, "himself", "herself"),
];

/// The gender of a pronoun; none for other words.
pub(super) fn gender(word: &str) -> Option<Gender> {
    let word = word.to_ascii_lowercase();
    match &word[..] {
        "he" | "him" | "his" | "himself" => Some(Gender::Male),
        "she" | "her" | "hers" | "herself" => Some(Gender::Female),
        _ => None,
    }
}

/// The role of the pronoun at `span` of a text. That of "her" is told by the word that follows.
pub(super) fn role(text: &str, span: &Range<usize>) -> Role {
    let word = text[span.clone()].to_ascii_lowercase();
    if word == "her" {
        let rest = text[span.end..].trim_start();
        let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
        let next = rest[..end].to_ascii_lowercase();
        return match next.is_empty() || AFTER_OBJECTS.contains(&&next[..]) {
            true => Role::Object,
            false => Role::Possessive,
        };
    }
    role_of(&word).unwrap_or(Role::Possessive)
}

/// The role of a form that has only one.
pub(super) fn role_of(word: &str) -> Option<Role> {
    let word = word.to_ascii_lowercase();
    let mut fitting =
        FORMS.iter().filter(|(_, male, female)| [*male, *female].contains(&&word[..]));
    match (fitting.next(), fitting.next()) {
        (Some((role, ..)), None) => Some(*role),
        _ => None,
    }
}

/// The pronoun of the other gender in the same role, its first letter as large.
pub(super) fn counter(word: &str, role: Role) -> Option<String> {
    let gender = gender(word)?;
    let (_, male, female) = FORMS.iter().find(|(of, ..)| *of == role)?;
    let other = match gender {
        Gender::Male => female,
        Gender::Female => male,
    };
    Some(match word.starts_with(|c: char| c.is_ascii_uppercase()) {
        true => other[..1].to_ascii_uppercase() + &other[1..],
        false => (*other).to_owned(),
    })
}

/// Every pronoun of a text with a gender.
pub(super) fn spans(text: &str) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + text[at..].find(|c: char| c.is_alphanumeric())?;
        let end = text[start..].find(|c: char| !c.is_alphanumeric());
        at = end.map_or(text.len(), |end| start + end);
        Some(start..at)
    })
    .filter(|span| gender(&text[span.clone()]).is_some())
}

/// Words that follow "her" where it is an object, and never a "her" that belongs to a noun.
const AFTER_OBJECTS: &[&str] = &[
    "a",
    "about",
    "after",
    "again",
    "all",
    "alone",
    "although",
    "an",
    "and",
    "any",
    "anyways",
    "anywhere",
    "as",
    "at",
    "away",
    "because",
    "before",
    "but",
    "by",
    "do",
    "enter",
    "every",
    "feel",
    "for",
    "from",
    "had",
    "has",
    "how",
    "identify",
    "if",
    "in",
    "instead",
    "into",
    "is",
    "it",
    "less",
    "lots",
    "many",
    "more",
    "never",
    "not",
    "nothing",
    "of",
    "off",
    "often",
    "on",
    "one",
    "or",
    "out",
    "over",
    "regularly",
    "settle",
    "since",
    "so",
    "some",
    "something",
    "that",
    "the",
    "then",
    "through",
    "to",
    "tomorrow",
    "until",
    "up",
    "very",
    "was",
    "well",
    "what",
    "when",
    "where",
    "whether",
    "which",
    "while",
    "who",
    "why",
    "win",
    "with",
    "without",
    "yesterday",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn her_is_told_by_what_follows() {
        for (text, role) in [
            ("thanked her.", Role::Object),
            ("gave her the book", Role::Object),
            ("asked her to wait", Role::Object),
            ("found her book", Role::Possessive),
            ("of her own", Role::Possessive),
        ] {
            let span = spans(text).next().unwrap();
            assert_eq!(super::role(text, &span), role, "{text}");
        }
    }

    #[test]
    fn counters_keep_role_and_case() {
        for (word, role, other) in [
            ("he", Role::Subject, "she"),
            ("She", Role::Subject, "He"),
            ("him", Role::Object, "her"),
            ("her", Role::Object, "him"),
            ("her", Role::Possessive, "his"),
            ("His", Role::Possessive, "Her"),
            ("herself", Role::Reflexive, "himself"),
        ] {
            assert_eq!(counter(word, role).as_deref(), Some(other));
        }
        assert_eq!(counter("it", Role::Subject), None);
        assert_eq!(spans("The chef said she hers.").count(), 2);
    }
}
