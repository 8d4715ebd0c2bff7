//! A JSON Lines log of numbers as columns: a log of a thousand steps is then a dozen lists, not a thousand
//! tables.

use std::collections::BTreeMap;
use std::path::Path;

use circuit_framework::{Result, files};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::encoding::rounded;

/// A number a line; none where a line lacks it or it isn't finite.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Columns(pub BTreeMap<String, Vec<Option<f64>>>);

impl Columns {
    /// The columns of a log, or of what there is of it while it grows; none where there is no file.
    ///
    /// # Errors
    /// If a line is no JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        let mut columns: BTreeMap<String, Vec<Option<f64>>> = BTreeMap::new();
        for (index, line) in lines::<Map<String, Value>>(path)?.into_iter().enumerate() {
            for (key, value) in line {
                let Some(number) = number(&value) else { continue };
                let column = columns.entry(key).or_default();
                column.resize(index, None);
                column.push(Some(rounded(number)).filter(|number| number.is_finite()));
            }
        }
        let length = columns.values().map(Vec::len).max().unwrap_or(0);
        columns.values_mut().for_each(|column| column.resize(length, None));
        Ok(Self(columns))
    }

    /// A column with its steps, as far as there are numbers.
    pub fn points(&self, name: &str) -> Vec<(f64, f64)> {
        let column = |name: &str| self.0.get(name).map(Vec::as_slice).unwrap_or_default();
        let both = column("step").iter().zip(column(name));
        both.filter_map(|(step, value)| Some(((*step)?, (*value)?))).collect()
    }
}

/// A number, also one that JSON has no form for.
fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some(text) => text.parse().ok(),
        None => value.as_f64(),
    }
}

/// The lines of a log, or of `NAME.part` while it grows, whose last line may be half written.
///
/// # Errors
/// If a line can't be read.
pub fn lines<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    if path.exists() {
        return Ok(files::read_jsonl(path)?.into_iter().map(|(_, line)| line).collect());
    }
    let part = path.with_extension("jsonl.part");
    if !part.exists() {
        return Ok(Vec::new());
    }
    let text = files::read_text(&part)?;
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    Ok(whole.map_while(|line| serde_json::from_str(line).ok()).collect())
}
