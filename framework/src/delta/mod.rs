//! What tuning changed of a model: the rows whose values are others, with their values before and after.
//! Applied to the model that it was made of it gives the tuned one, and reverted that model again, both
//! to the bit. Its file is `file.rs`'s, sums and multiples of deltas are `arithmetic.rs`'s.
//!
//! Both values of a row are kept, though either would do beside the base model's: what is read back is
//! exact without a sum that rounds, and deltas are added, scaled and negated without the model at hand.

mod arithmetic;
mod file;
mod fingerprint;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use candle_core::{DType, Tensor};
pub use fingerprint::fingerprint;
use serde::{Deserialize, Serialize};

use crate::ops::weight;
use crate::weights::parameters::{Owner, ParamId, Parameter, Parameters, Selection};
use crate::weights::rows::{gathered, put_back, widened};
use crate::{Result, refuse};

/// The rows of a model that tuning changed.
#[derive(Clone, Debug)]
pub struct Delta {
    base: Base,
    /// What stands for it in messages: its file.
    origin: String,
    /// By the parameter's name; each has one row at least.
    parameters: BTreeMap<String, Rows>,
}

/// The model that a delta is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// What [`fingerprint`] gives for its weights.
    pub sha256: String,
    /// The model as it was named, for whoever looks for it.
    pub model: String,
}

/// The changed rows of one parameter.
#[derive(Clone, Debug)]
struct Rows {
    /// Where they are: sorted, disjoint, not touching.
    ranges: Vec<Range<usize>>,
    /// Their values before, [rows, width], in float32, or float64 where that doesn't hold them.
    base: Tensor,
    /// Their values after, in the type of those before.
    tuned: Tensor,
}

/// How much a delta changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    pub rows: usize,
    /// The entries of these rows.
    pub parameters: usize,
}

impl Delta {
    /// The rows that differ between a model and the same model tuned. `model` is what the first is called.
    ///
    /// # Errors
    /// If the two are of different shapes, or no row differs.
    pub fn between(base: &Parameters, tuned: &Parameters, model: &str) -> Result<Self> {
        if base.len() != tuned.len() {
            refuse!("{model}: has {} parameters, and the tuned model {}", base.len(), tuned.len());
        }
        let mut parameters = BTreeMap::new();
        for ((_, before), (_, after)) in base.iter().zip(tuned.iter()) {
            let shapes = [before, after].map(|parameter| parameter.tensor.dims());
            if before.name != after.name || shapes[0] != shapes[1] {
                refuse!(
                    "{model}: parameter `{}` is {:?}, and `{}` of the tuned model {:?}; they must be one model",
                    before.name,
                    shapes[0],
                    after.name,
                    shapes[1]
                );
            }
            let ranges = changed(&before.tensor, &after.tensor)?;
            if !ranges.is_empty() {
                // Copies: a single range alone would be a view of the model's weights.
                let copy = |parameter: &Parameter| -> Result<Tensor> {
                    Ok(gathered(&parameter.tensor, &ranges)?.copy()?)
                };
                let (before_rows, after_rows) = (copy(before)?, copy(after)?);
                let rows = Rows::new(ranges, before_rows, after_rows)?;
                parameters.insert(before.name.clone(), rows);
            }
        }
        if parameters.is_empty() {
            refuse!("{model}: the tuned model is the same to the bit; there is nothing to keep");
        }
        let base = Base { sha256: fingerprint(base)?, model: model.to_owned() };
        Ok(Self { base, origin: "the delta".to_owned(), parameters })
    }

    /// The model that it is of.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// How much it changes.
    pub fn extent(&self) -> Extent {
        let sizes = self.parameters.values().map(|rows| rows.tuned.dims());
        sizes.fold(Extent { rows: 0, parameters: 0 }, |extent, size| Extent {
            rows: extent.rows + size[0],
            parameters: extent.parameters + size[0] * size[1],
        })
    }

    /// Puts the rows' values after tuning into the model that it is of. A model kept in bfloat16 gets them
    /// rounded.
    ///
    /// # Errors
    /// If the model is another one; then nothing is changed.
    pub fn apply(&self, parameters: &Parameters) -> Result<()> {
        self.check_base(parameters)?;
        self.put(parameters, |rows| &rows.tuned)
    }

    /// Puts the rows' values before tuning into a model that it was applied to: it is the model that the delta
    /// is of again.
    ///
    /// # Errors
    /// If the model isn't that one with this delta; then it is as it was.
    pub fn revert(&self, parameters: &Parameters) -> Result<()> {
        for (id, rows) in self.places(parameters)? {
            let parameter = parameters.get(id);
            let found = gathered(&parameter.tensor, &rows.ranges)?;
            let expected = rows.tuned.to_dtype(found.dtype())?.to_device(found.device())?;
            if !changed(&found, &expected)?.is_empty() {
                refuse!(
                    "{}: has not been applied to this model: rows of `{}` hold other values; give the model \
                     that `delta apply` made with it, or the run's",
                    self.origin,
                    parameter.name
                );
            }
        }
        self.put(parameters, |rows| &rows.base)?;
        self.check_base(parameters).inspect_err(|_| {
            if let Err(error) = self.put(parameters, |rows| &rows.tuned) {
                log::error!("the weights can't be put back: {error}");
            }
        })
    }

    /// Its rows that these owners have, in the model that it is of.
    ///
    /// # Errors
    /// If the model is another one, or none of the rows is theirs.
    pub fn restrict(&self, parameters: &Parameters, owners: &BTreeSet<Owner>) -> Result<Self> {
        self.check_base(parameters)?;
        let owned = Selection::blocks(parameters, |_, block| owners.contains(&block.owner));
        let mut kept = BTreeMap::new();
        for (id, rows) in self.places(parameters)? {
            let is_owned = |row: usize| owned.ranges(id).iter().any(|range| range.contains(&row));
            if let Some(rows) = rows.filtered(is_owned)? {
                kept.insert(parameters.get(id).name.clone(), rows);
            }
        }
        if kept.is_empty() {
            refuse!("{}: changes no row that the circuit's nodes own", self.origin);
        }
        Ok(Self { parameters: kept, ..self.clone() })
    }

    /// Refuses another model than the one that it is of.
    fn check_base(&self, parameters: &Parameters) -> Result<()> {
        let found = fingerprint(parameters)?;
        if found != self.base.sha256 {
            refuse!(
                "{}: is a delta of another model, {}, whose weights' hash is {}…, and this one's is {}…; give \
                 that model",
                self.origin,
                self.base.model,
                self.base.sha256.get(..12).unwrap_or_default(),
                &found[..12]
            );
        }
        Ok(())
    }

    /// Its rows, with the model's parameters that they are of.
    fn places(&self, parameters: &Parameters) -> Result<Vec<(ParamId, &Rows)>> {
        let mut places = Vec::new();
        for (name, rows) in &self.parameters {
            let last = rows.ranges.last().map_or(0, |range| range.end);
            let fits = |parameter: &Parameter| {
                parameter.name == *name
                    && parameter.width() == rows.base.dims()[1]
                    && parameter.rows() >= last
            };
            let Some((id, _)) = parameters.iter().find(|(_, parameter)| fits(parameter)) else {
                refuse!(
                    "{}: changes rows of `{name}` that this model has not; give the model that it is of, {}",
                    self.origin,
                    self.base.model
                );
            };
            places.push((id, rows));
        }
        Ok(places)
    }

    fn put(&self, parameters: &Parameters, values: fn(&Rows) -> &Tensor) -> Result<()> {
        for (id, rows) in self.places(parameters)? {
            put_back(&parameters.get(id).tensor, values(rows), &rows.ranges)?;
        }
        Ok(())
    }
}

impl Rows {
    /// Values before and after in float32, or in float64 where that would round one.
    fn new(ranges: Vec<Range<usize>>, base: Tensor, tuned: Tensor) -> Result<Self> {
        let narrow = |tensor: &Tensor| tensor.to_dtype(DType::F32);
        let is_exact = |tensor: &Tensor| Ok(changed(&narrow(tensor)?, tensor)?.is_empty());
        let fits = [&base, &tuned].into_iter().map(is_exact).collect::<Result<Vec<_>>>()?;
        if fits.contains(&false) {
            return Ok(Self { ranges, base, tuned });
        }
        Ok(Self { ranges, base: narrow(&base)?, tuned: narrow(&tuned)? })
    }

    /// The indices of the rows in the parameter.
    fn indices(&self) -> impl Iterator<Item = usize> + '_ {
        self.ranges.iter().cloned().flatten()
    }

    /// Those for which `keep` holds, if there are any.
    fn filtered(&self, keep: impl Fn(usize) -> bool) -> Result<Option<Self>> {
        let indices = || self.indices().enumerate().filter(|(_, row)| keep(*row));
        let ranges = ranges(indices().map(|(_, row)| row));
        if ranges.is_empty() {
            return Ok(None);
        }
        let places: Vec<u32> = indices().map(|(place, _)| place as u32).collect();
        let places = Tensor::new(places, self.base.device())?;
        let [base, tuned] = [&self.base, &self.tuned].map(|values| values.index_select(&places, 0));
        Ok(Some(Self { ranges, base: base?, tuned: tuned? }))
    }

    fn is_finite(&self) -> Result<bool> {
        Ok(weight::is_finite(&self.base)? && weight::is_finite(&self.tuned)?)
    }
}

/// The rows in which two tensors [rows, width] differ by a bit of the numbers that they hold.
fn changed(one: &Tensor, other: &Tensor) -> Result<Vec<Range<usize>>> {
    let width = one.dim(1)?;
    let mut differing = Vec::new();
    for (mine, theirs) in widened(one).zip(widened(other)) {
        let ((start, mine), (_, theirs)) = (mine?, theirs?);
        let is_same =
            |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        let rows = mine.chunks(width).zip(theirs.chunks(width)).enumerate();
        let differ = rows.filter(|(_, (mine, theirs))| !is_same(mine, theirs));
        differing.extend(differ.map(|(row, _)| start + row));
    }
    Ok(ranges(differing.into_iter()))
}

/// Ascending indices as ranges.
fn ranges(indices: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for index in indices {
        match ranges.last_mut() {
            Some(last) if last.end == index => last.end += 1,
            _ => ranges.push(index..index + 1),
        }
    }
    ranges
}
