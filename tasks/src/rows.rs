//! Rows of a data file that can't be used. Each is named by file and line; by option it stops the
//! loading or is skipped, and what is skipped is counted and named in a warning.

use std::path::Path;

use circuit_framework::{Error, Example, Result, Setting, files, refuse};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::prompt::Prompts;

/// What to do with a row that can't be used.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BadRows {
    #[default]
    Stop,
    Skip,
}

/// A row with where it stands, "file:line".
pub(crate) struct Row<T> {
    pub(crate) origin: String,
    pub(crate) value: Result<T>,
}

/// The lines of a JSON Lines file; one that is malformed is a row that can't be used.
pub(crate) fn jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<Row<T>>> {
    let text = files::read_text(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    Ok(lines
        .map(|(index, line)| Row {
            origin: format!("{}:{}", path.display(), index + 1),
            value: files::parse_row(line).map_err(Error::input),
        })
        .collect())
}

/// Whether a path is a CSV's.
pub(crate) fn is_csv(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "csv")
}

/// The records of a CSV file with a header; one that is malformed is a row that can't be used.
pub(crate) fn csv<T: DeserializeOwned>(path: &Path) -> Result<Vec<Row<T>>> {
    let text = files::read_text(path)?;
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let headers = reader
        .headers()
        .map_err(|error| Error::input(format!("{}: {error}", path.display())))?
        .clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let mut line = rows.len() as u64 + 2;
        let value = record
            .and_then(|record| {
                line = record.position().map_or(line, csv::Position::line);
                record.deserialize::<T>(Some(&headers))
            })
            .map_err(|error| Error::input(format!("malformed row: {error}")));
        rows.push(Row { origin: format!("{}:{line}", path.display()), value });
    }
    Ok(rows)
}

/// What `read` makes of each row.
pub(crate) fn map<T, U>(rows: Vec<Row<T>>, read: impl Fn(T) -> Result<U>) -> Vec<Row<U>> {
    let one = |row: Row<T>| Row { origin: row.origin, value: row.value.and_then(&read) };
    rows.into_iter().map(one).collect()
}

/// Rows that a warning names one by one.
const NAMED: usize = 20;

/// What became of a file's rows.
#[derive(Debug)]
pub(crate) struct Sieve {
    /// What messages call the data.
    data: String,
    policy: BadRows,
    /// The longest example, in tokens.
    longest: usize,
    /// Rows that can't be used, each with its reason.
    pub(crate) bad: Vec<String>,
    /// Examples that are too long.
    pub(crate) too_long: usize,
}

impl Sieve {
    /// For `data`; examples may have `max_tokens`, and never more than the model's context.
    pub(crate) fn new(
        data: &Path,
        policy: BadRows,
        max_tokens: Option<usize>,
        setting: &Setting,
    ) -> Self {
        Self {
            data: data.display().to_string(),
            policy,
            longest: max_tokens.unwrap_or(usize::MAX).min(setting.context),
            bad: Vec::new(),
            too_long: 0,
        }
    }

    /// The row's value, none where it is bad and to be skipped.
    pub(crate) fn keep<T>(&mut self, origin: &str, value: Result<T>) -> Result<Option<T>> {
        match (value, self.policy) {
            (Ok(value), _) => Ok(Some(value)),
            // It is no row's fault.
            (Err(error @ Error::Template(_)), _) => Err(error),
            (Err(error), BadRows::Skip) => {
                self.bad.push(format!("{origin}: {error}"));
                Ok(None)
            }
            (Err(error), BadRows::Stop) => {
                refuse!("{origin}: {error}; task.bad_rows=skip leaves such rows out")
            }
        }
    }

    /// What `read` makes of the rows that can be used, in order.
    pub(crate) fn keep_all<T, U>(
        &mut self,
        rows: Vec<Row<T>>,
        read: impl Fn(T, &str) -> Result<U>,
    ) -> Result<Vec<U>> {
        let mut kept = Vec::with_capacity(rows.len());
        for Row { origin, value } in rows {
            let value = value.and_then(|value| read(value, &origin));
            kept.extend(self.keep(&origin, value)?);
        }
        Ok(kept)
    }

    /// The example, if it isn't too long.
    pub(crate) fn fit(&mut self, example: Example) -> Option<Example> {
        let fits = example.tokens.len() <= self.longest;
        self.too_long += usize::from(!fits);
        fits.then_some(example)
    }

    /// At most `most` examples that aren't too long, with what was left out said.
    ///
    /// # Errors
    /// If none is left.
    pub(crate) fn prompts(
        &mut self,
        examples: Vec<Example>,
        most: Option<usize>,
    ) -> Result<Prompts> {
        let fitting = examples.into_iter().filter_map(|example| self.fit(example));
        let fitting: Vec<Example> = fitting.take(most.unwrap_or(usize::MAX)).collect();
        self.report(fitting.len())?;
        Ok(Prompts(fitting))
    }

    /// Says what was left out; nothing vanishes without a count.
    ///
    /// # Errors
    /// If of all rows none is `left`.
    pub(crate) fn report(&self, left: usize) -> Result<()> {
        let Self { data, bad, too_long, longest, .. } = self;
        if !bad.is_empty() {
            let named = &bad[..bad.len().min(NAMED)];
            let more = match bad.len() - named.len() {
                0 => String::new(),
                more => format!("; and {more} more"),
            };
            log::warn!("{data}: {} rows left out: {}{more}", bad.len(), named.join("; "));
        }
        if *too_long > 0 {
            log::warn!("{data}: {too_long} examples left out, longer than {longest} tokens");
        }
        if left == 0 {
            refuse!(
                "{data}: no examples; {} rows can't be used and {too_long} are longer than \
                 {longest} tokens",
                bad.len()
            );
        }
        Ok(())
    }
}
