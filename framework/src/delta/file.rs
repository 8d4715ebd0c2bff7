//! A delta in a safetensors file: of each parameter that it changes the tensors `base/NAME` and `tuned/NAME`
//! [rows, width], the rows' values before and after. The metadata has, each as JSON, `rows`, where the rows are in
//! their parameters: `{NAME: [[start, end], …]}`; and `base`, the model's hash and name.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};

use super::{Base, Delta, Rows};
use crate::{Error, Result, files, refuse};

const BASE: &str = "base";
const TUNED: &str = "tuned";
const ROWS: &str = "rows";

/// Where the rows of each parameter begin and end.
type Places = BTreeMap<String, Vec<[usize; 2]>>;

impl Delta {
    /// Writes the file.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let places = |rows: &Rows| rows.ranges.iter().map(|rows| [rows.start, rows.end]).collect();
        let places: Places =
            self.parameters.iter().map(|(name, rows)| (name.clone(), places(rows))).collect();
        let text = |value: Value| Value::from(value.to_string());
        let metadata = Map::from_iter([
            (BASE.to_owned(), text(json!(self.base))),
            (ROWS.to_owned(), text(json!(places))),
        ]);
        let tensors = self.parameters.iter().flat_map(|(name, rows)| {
            [(BASE, &rows.base), (TUNED, &rows.tuned)]
                .map(|(kind, tensor)| (format!("{kind}/{name}"), tensor.clone()))
        });
        files::write_tensors(path, &tensors.collect(), metadata)
    }

    /// Reads a file that [`Delta::save`] wrote.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn load(path: &Path) -> Result<Self> {
        let misfit = |what: &str| Error::input(format!("{}: {what}", path.display()));
        let bytes = files::read(path)?;
        let whole =
            |_| misfit("is no whole safetensors file; make it again with `delta RUN --out`");
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(whole)?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
            .map_err(|error| misfit(&error.to_string()))?;
        let entry = |key: &str| header.metadata().as_ref()?.get(key);
        let none = || misfit("is no delta; `delta RUN --out` makes one");
        let base: Base =
            entry(BASE).and_then(|text| serde_json::from_str(text).ok()).ok_or_else(none)?;
        let places: Places =
            entry(ROWS).and_then(|text| serde_json::from_str(text).ok()).ok_or_else(none)?;
        let mut parameters = BTreeMap::new();
        for (name, places) in places {
            let [base, tuned] = [BASE, TUNED].map(|kind| tensors.get(&format!("{kind}/{name}")));
            let rows = rows(&places, base, tuned)
                .map_err(|error| misfit(&format!("rows of `{name}`: {error}")))?;
            parameters.insert(name, rows);
        }
        if parameters.is_empty() || tensors.len() != 2 * parameters.len() {
            return Err(misfit("its tensors aren't those that its metadata lists under `rows`"));
        }
        Ok(Self { base, origin: path.display().to_string(), parameters })
    }
}

/// The rows of a parameter, if they are sound.
fn rows(places: &[[usize; 2]], base: Option<&Tensor>, tuned: Option<&Tensor>) -> Result<Rows> {
    let (Some(base), Some(tuned)) = (base, tuned) else {
        refuse!("there is no tensor for them");
    };
    let is_sorted = places.is_sorted_by(|before, after| before[1] < after[0]);
    if !is_sorted || places.iter().any(|[start, end]| start >= end) {
        refuse!("the places are not ascending ranges");
    }
    let count = places.iter().map(|[start, end]| end - start).fold(0, usize::saturating_add);
    let is_fit = base.rank() == 2
        && base.dims()[1] > 0
        && base.dims()[0] == count
        && base.dims() == tuned.dims();
    let is_float = matches!(base.dtype(), DType::F32 | DType::F64) && base.dtype() == tuned.dtype();
    if !is_fit || !is_float {
        refuse!(
            "{count} of them, but the tensors are {:?} {:?} and {:?} {:?}; they must be [rows, width], of float32 \
             or float64",
            base.dtype(),
            base.dims(),
            tuned.dtype(),
            tuned.dims()
        );
    }
    let ranges = places.iter().map(|&[start, end]| start..end).collect();
    let rows = Rows { ranges, base: base.clone(), tuned: tuned.clone() };
    if !rows.is_finite()? {
        refuse!("a value is not finite; weights must be numbers");
    }
    Ok(rows)
}
