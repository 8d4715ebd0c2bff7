//! Where a setting stands: a message about it names the line of the experiment's file.

use toml::Value;
use toml::de::{DeTable, DeValue};

/// The file and line of a key, `mine.toml:3`, where `origin` is an experiment's file and says what is in
/// `settings`; else `origin`, as for what a flag or `--set` changed.
pub(super) fn place(origin: &str, key: &str, settings: &toml::Table) -> String {
    let line = || {
        let text = origin.ends_with(".toml").then(|| std::fs::read_to_string(origin).ok())??;
        let file: toml::Table = toml::from_str(&text).ok()?;
        let path: Vec<&str> = key.split('.').collect();
        if value(&file, &path)? != value(settings, &path)? {
            return None;
        }
        let start = start(DeTable::parse(&text).ok()?.get_ref(), &path)?;
        Some(text[..start].lines().count().max(1) + usize::from(text[..start].ends_with('\n')))
    };
    match line() {
        Some(line) => format!("{origin}:{line}"),
        None => origin.to_owned(),
    }
}

fn value<'t>(table: &'t toml::Table, path: &[&str]) -> Option<&'t Value> {
    let (first, rest) = path.split_first()?;
    match (table.get(*first)?, rest) {
        (value, []) => Some(value),
        (Value::Table(inner), rest) => value(inner, rest),
        _ => None,
    }
}

/// Where a key stands in the text, in bytes.
fn start(table: &DeTable, path: &[&str]) -> Option<usize> {
    let (first, rest) = path.split_first()?;
    let (key, value) = table.iter().find(|(key, _)| key.get_ref() == first)?;
    match (value.get_ref(), rest) {
        (_, []) => Some(key.span().start),
        (DeValue::Table(inner), rest) => start(inner, rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_with_its_line_unless_something_changed_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.toml");
        std::fs::write(&file, "seed = 1\n\n[tuning]\nsteps = 2\ntop_n_schedule.start = 3\n")
            .unwrap();
        let origin = file.display().to_string();
        let mut settings: toml::Table =
            toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let line = |key: &str, settings: &toml::Table| -> Option<usize> {
            place(&origin, key, settings).strip_prefix(&format!("{origin}:"))?.parse().ok()
        };
        assert_eq!(line("seed", &settings), Some(1));
        assert_eq!(line("tuning.steps", &settings), Some(4));
        assert_eq!(line("tuning.top_n_schedule.start", &settings), Some(5));
        assert_eq!(line("tuning.lr", &settings), None);
        settings.insert("seed".to_owned(), 2.into());
        assert_eq!(line("seed", &settings), None);
        assert_eq!(place("settings", "seed", &settings), "settings");
    }
}
