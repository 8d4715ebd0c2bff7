//! A setting or an option that doesn't fit: which it is, and what would be right, in a user's words and not in
//! serde's.

use std::fmt;

use crate::error::suggestion;

/// The most characters of a value that a message shows.
const SHOWN: usize = 60;

/// What doesn't fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// Its dotted path; empty where all of it doesn't fit, or nobody says what.
    pub(crate) key: String,
    /// What is wrong, and what would be right.
    what: String,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Misfit {
    /// A misfit for an option that is none of those known.
    pub(crate) fn unknown<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let name = key.rsplit('.').next().unwrap_or(key);
        let what = format!("there is no key `{}`{}", cut(key), suggestion(name, known));
        Self { key: key.to_owned(), what }
    }

    /// A misfit for something else that is said of a key.
    pub(crate) fn other(key: &str, what: impl fmt::Display) -> Self {
        let what = one_line(&what.to_string());
        let what = match key {
            "" => what,
            key if what.contains(&format!("`{key}`")) => what,
            key => format!("`{key}`: {what}"),
        };
        Self { key: key.to_owned(), what }
    }

    /// The same, its key below a section.
    pub(crate) fn below(self, section: &str) -> Self {
        let key = format!("{section}.{}", self.key);
        Self { what: self.what.replace(&format!("`{}`", self.key), &format!("`{key}`")), key }
    }

    /// This misfit as one of a plugin's options, which stand in a section of an experiment.
    pub(crate) fn of_plugin(self, name: &str, section: &str) -> Self {
        let Self { key, what } = self.below(section);
        Self { key, what: format!("{name}: {what}") }
    }

    /// What serde said: a message, and on the next line the path, "in `tuning.lr`".
    pub(crate) fn of(message: &str) -> Self {
        let message = message.trim();
        let (said, key) = match message.rsplit_once("in `") {
            Some((said, path)) if path.ends_with('`') => (said.trim(), path.trim_end_matches('`')),
            _ => (message, ""),
        };
        let said = one_line(said);
        let names = quoted(&said);
        let below = |name: &str| match key {
            "" => name.to_owned(),
            key if key == name || key.ends_with(&format!(".{name}")) => key.to_owned(),
            key => format!("{key}.{name}"),
        };
        if said.starts_with("unknown field")
            && let [name, known @ ..] = &names[..]
        {
            return Self::unknown(&below(name), known.iter().copied());
        }
        if said.starts_with("unknown variant")
            && let [name, known @ ..] = &names[..]
        {
            let what =
                format!("{:?} is unknown{}", cut(name), suggestion(name, known.iter().copied()));
            return Self::other(key, what);
        }
        if said.starts_with("missing field")
            && let [name, ..] = names[..]
        {
            return Self::other(key, format!("`{name}` is missing; give it"));
        }
        let is_wrong = said.strip_prefix("invalid type: ").or(said.strip_prefix("invalid value: "));
        match is_wrong.and_then(|said| said.rsplit_once(", expected ")) {
            Some((found, expected)) => Self::other(
                key,
                format!("{} is given, but it must be {}", cut(found), kind(expected)),
            ),
            None => Self::other(key, said),
        }
    }
}

/// What serde expects, in words.
fn kind(expected: &str) -> &str {
    match expected {
        "usize" | "u64" | "u32" => "a whole number from 0 up",
        "i64" | "i32" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "path string" | "a string" | "string or map" => "text, in quotes",
        "a sequence" => "a list, in [ ]",
        "a map" => "a table of settings",
        expected if expected.starts_with("struct ") => "a table of settings",
        expected => expected,
    }
}

/// The names between backquotes.
fn quoted(message: &str) -> Vec<&str> {
    message.split('`').skip(1).step_by(2).collect()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A value as long as a message shows it.
fn cut(value: &str) -> String {
    match value.chars().count() > SHOWN {
        true => value.chars().take(SHOWN).chain(['…']).collect(),
        false => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serde_says_becomes_what_would_be_right() {
        for (said, key, what) in [
            (
                "invalid type: string \"three\", expected usize\nin `tuning.steps`\n",
                "tuning.steps",
                "`tuning.steps`: string \"three\" is given, but it must be a whole number from 0 up",
            ),
            (
                "unknown field `step`, expected one of `steps`, `epochs`\nin `tuning`\n",
                "tuning.step",
                "there is no key `tuning.step`; did you mean steps?",
            ),
            (
                "unknown variant `adamm`, expected one of `sgd`, `adam`\nin `tuning.optimizer`\n",
                "tuning.optimizer",
                "`tuning.optimizer`: \"adamm\" is unknown; did you mean adam?",
            ),
            ("unknown field `x`, expected `names`", "x", "there is no key `x`; known: names"),
            ("missing field `name`\nin `task`", "task", "`task`: `name` is missing; give it"),
            ("a number of seeds", "", "a number of seeds"),
        ] {
            let misfit = Misfit::of(said);
            assert_eq!((&misfit.key[..], &misfit.to_string()[..]), (key, what));
        }
        let long = format!("invalid type: string \"{}\", expected f64", "x".repeat(10_000));
        assert!(Misfit::of(&long).to_string().len() < 200);
    }
}
