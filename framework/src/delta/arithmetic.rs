//! Deltas as numbers: multiples, sums, and several of different rows as one. Each entry is computed in float64
//! and rounded once.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::{Delta, Rows, ranges};
use crate::weights::rows::widened;
use crate::{Result, refuse};

impl Delta {
    /// `factor` times the change: the rows after are factor · after + (1 − factor) · before. With −1 it is the
    /// change the other way, with 0 none.
    ///
    /// # Errors
    /// If a value isn't finite.
    pub fn scale(&self, factor: f64) -> Result<Self> {
        combine(&[self], &mut |_, base, tuned| {
            let scaled = |(base, tuned): (&f64, &f64)| factor * tuned + (1.0 - factor) * base;
            Ok(base.iter().zip(tuned[0]).map(scaled).collect())
        })
    }

    /// The sum of the changes of deltas of one model.
    ///
    /// # Errors
    /// If they are of several models, or a value isn't finite.
    pub fn add(deltas: &[&Self]) -> Result<Self> {
        combine(deltas, &mut |_, base, tuned| {
            let more = (tuned.len() - 1) as f64;
            let sum = |(entry, base): (usize, &f64)| {
                tuned.iter().map(|row| row[entry]).sum::<f64>() - more * base
            };
            Ok(base.iter().enumerate().map(sum).collect())
        })
    }

    /// Deltas of one model, each of rows of its own, as one. Rows that several change, they must change alike.
    ///
    /// # Errors
    /// If they are of several models, or change a row to different values.
    pub fn merge(deltas: &[&Self]) -> Result<Self> {
        combine(deltas, &mut |place, _, tuned| {
            let is_same = |row: &&[f64]| {
                row.iter().zip(tuned[0]).all(|(one, other)| one.to_bits() == other.to_bits())
            };
            if !tuned.iter().all(is_same) {
                refuse!(
                    "two deltas change {place} to different values, so they can't be merged; `delta add` sums \
                     their changes"
                );
            }
            Ok(tuned[0].to_vec())
        })
    }
}

/// What becomes of a row: of its place, its values before, and its values after by each delta that changes it.
type Combination<'c> = dyn FnMut(&str, &[f64], &[&[f64]]) -> Result<Vec<f64>> + 'c;

/// The delta of all rows that some delta changes.
fn combine(deltas: &[&Delta], combination: &mut Combination) -> Result<Delta> {
    let Some(first) = deltas.first() else {
        refuse!("there are no deltas; give one at least");
    };
    if let Some(other) = deltas.iter().find(|delta| delta.base.sha256 != first.base.sha256) {
        refuse!(
            "{}: is a delta of {}, but {} is one of {}; give deltas of one model",
            other.origin,
            other.base.model,
            first.origin,
            first.base.model
        );
    }
    let mut of_names: BTreeMap<&String, Vec<&Rows>> = BTreeMap::new();
    for (name, rows) in deltas.iter().flat_map(|delta| &delta.parameters) {
        of_names.entry(name).or_default().push(rows);
    }
    let combined = |(name, rows): (&String, Vec<&Rows>)| {
        Ok((name.clone(), combine_rows(name, &rows, combination)?))
    };
    let parameters = of_names.into_iter().map(combined).collect::<Result<_>>()?;
    Ok(Delta { base: first.base.clone(), origin: "the delta".to_owned(), parameters })
}

/// A row's values before, and those after.
type Changes = (Vec<f64>, Vec<Vec<f64>>);

/// The rows of one parameter, of all deltas that change some.
fn combine_rows(name: &str, all: &[&Rows], combination: &mut Combination) -> Result<Rows> {
    let width = all[0].base.dim(1)?;
    let mut changes: BTreeMap<usize, Changes> = BTreeMap::new();
    for rows in all {
        if rows.base.dim(1)? != width {
            refuse!("rows of `{name}` are of different widths; give deltas of one model");
        }
        let mut indices = rows.indices();
        for (base, tuned) in widened(&rows.base).zip(widened(&rows.tuned)) {
            let (base, tuned) = (base?.1, tuned?.1);
            let pairs = base.chunks(width).zip(tuned.chunks(width));
            for ((base, tuned), index) in pairs.zip(&mut indices) {
                let change = changes.entry(index).or_insert_with(|| (base.to_vec(), Vec::new()));
                change.1.push(tuned.to_vec());
            }
        }
    }
    let (mut base, mut tuned) = (Vec::new(), Vec::new());
    for (row, (before, after)) in &changes {
        let after: Vec<&[f64]> = after.iter().map(|row| &row[..]).collect();
        tuned.extend(combination(&format!("row {row} of `{name}`"), before, &after)?);
        base.extend(before);
    }
    let is_wide = all.iter().any(|rows| rows.base.dtype() == DType::F64);
    let dtype = if is_wide { DType::F64 } else { DType::F32 };
    let tensor = |values: Vec<f64>| {
        Tensor::from_vec(values, (changes.len(), width), &Device::Cpu)?.to_dtype(dtype)
    };
    let (base, tuned) = (tensor(base)?, tensor(tuned)?);
    let rows = Rows { ranges: ranges(changes.into_keys()), base, tuned };
    if !rows.is_finite()? {
        refuse!("rows of `{name}` come to values that aren't finite; take a smaller factor");
    }
    Ok(rows)
}
