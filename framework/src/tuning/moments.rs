//! What the optimizer keeps of one parameter from update to update, and how it is written to a file and
//! read again: the rows that were updated alone.

use std::ops::Range;

use candle_core::{DType, Device, Tensor, WithDType};

use crate::Result;
use crate::ops::{is_fused, squared_norm, weight};
use crate::weights::parameters::Parameter;
use crate::weights::rows::{gathered, put_back};

/// Of one parameter; empty until one of its rows is first selected.
#[derive(Default)]
pub(super) struct Moments {
    /// Updates each row has had, [rows].
    pub(super) counts: Vec<u32>,
    pub(super) f32: OfRows<f32>,
    pub(super) f64: OfRows<f64>,
    /// Of weights kept in bfloat16, the selected rows in float32 [rows, width]: an update can be too
    /// small for bfloat16 to show, and is not to be lost.
    pub(super) master: Vec<f32>,
    /// First and second moment and master [rows, width] where the parameter isn't on the CPU.
    pub(super) tensors: Option<[Tensor; 3]>,
}

/// In the type of the parameter.
#[derive(Default)]
pub(super) struct OfRows<T> {
    /// Momentum buffer or first moment, [rows, width].
    pub(super) first: Vec<T>,
    /// Second moment, [rows, width]; none for SGD.
    pub(super) second: Vec<T>,
}

/// A part of the moments, by its name in files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    First,
    Second,
    Master,
}

impl Part {
    pub(super) const ALL: [Part; 3] = [Part::First, Part::Second, Part::Master];

    pub(super) fn name(self) -> &'static str {
        match self {
            Part::First => "first",
            Part::Second => "second",
            Part::Master => "master",
        }
    }
}

impl Moments {
    /// Σ of the squared first moments.
    pub(super) fn first_squared(&self) -> Result<f64> {
        let on_cpu = self.f32.first.iter().map(|&first| f64::from(first).powi(2)).sum::<f64>()
            + self.f64.first.iter().map(|first| first.powi(2)).sum::<f64>();
        match &self.tensors {
            Some([first, ..]) => Ok(on_cpu + squared_norm(first)?),
            None => Ok(on_cpu),
        }
    }

    /// The type of a part; none where there is no such part.
    pub(super) fn dtype(&self, part: Part) -> Option<DType> {
        if let Some(tensors) = &self.tensors {
            return Some(tensors[part as usize].dtype());
        }
        let Self { f32, f64, master, .. } = self;
        let (single, double) = match part {
            Part::First => (!f32.first.is_empty(), !f64.first.is_empty()),
            Part::Second => (!f32.second.is_empty(), !f64.second.is_empty()),
            Part::Master => (!master.is_empty(), false),
        };
        single.then_some(DType::F32).or(double.then_some(DType::F64))
    }

    /// Some rows of a part, [rows, width].
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub(super) fn part(&self, part: Part, rows: &[Range<usize>], width: usize) -> Result<Tensor> {
        let Self { f32, f64, master, tensors, .. } = self;
        if let Some(tensors) = tensors {
            return gathered(&tensors[part as usize], rows);
        }
        let single = match part {
            Part::First => &f32.first,
            Part::Second => &f32.second,
            Part::Master => master,
        };
        let double = if part == Part::First { &f64.first } else { &f64.second };
        match single.is_empty() {
            false => copied(single, rows, width),
            true => copied(double, rows, width),
        }
    }

    /// What was kept of some rows of a parameter: all rows' counts of updates, and what `part` gives of
    /// each part, [rows, width].
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub(super) fn restored(
        parameter: &Parameter,
        rows: &[Range<usize>],
        counts: &[u32],
        part: impl Fn(Part) -> Option<Tensor>,
    ) -> Result<Self> {
        let mut moments = Self { counts: counts.to_vec(), ..Self::default() };
        let whole = |part: &Tensor| -> Result<Tensor> {
            let shape = parameter.tensor.shape();
            let whole = Tensor::zeros(shape, part.dtype(), parameter.tensor.device())?;
            put_back(&whole, part, rows)?;
            Ok(whole)
        };
        if !is_fused(&parameter.tensor) {
            // Without bfloat16 the weight is its own master.
            let master = weight::widened(&parameter.tensor)?;
            if let Some(kept) = part(Part::Master) {
                put_back(&master, &kept, rows)?;
            }
            let moment = |kind| match part(kind) {
                Some(kept) => whole(&kept),
                None => Ok(master.zeros_like()?),
            };
            moments.tensors = Some([moment(Part::First)?, moment(Part::Second)?, master]);
            return Ok(moments);
        }
        for kind in Part::ALL {
            let Some(kept) = part(kind) else { continue };
            let whole = whole(&kept)?.flatten_all()?;
            let Self { f32, f64, master, .. } = &mut moments;
            match (kind, kept.dtype()) {
                (Part::First, DType::F64) => f64.first = whole.to_vec1()?,
                (Part::Second, DType::F64) => f64.second = whole.to_vec1()?,
                (Part::First, _) => f32.first = whole.to_vec1()?,
                (Part::Second, _) => f32.second = whole.to_vec1()?,
                (Part::Master, _) => *master = whole.to_vec1()?,
            }
        }
        Ok(moments)
    }
}

/// Rows of values [rows, width], as a tensor.
fn copied<T: WithDType>(values: &[T], rows: &[Range<usize>], width: usize) -> Result<Tensor> {
    let of = rows.iter().map(|rows| &values[rows.start * width..rows.end * width]);
    let copied: Vec<T> = of.flatten().copied().collect();
    let height = copied.len() / width;
    Ok(Tensor::from_vec(copied, (height, width), &Device::Cpu)?)
}
