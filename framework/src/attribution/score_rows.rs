//! The rows at which the graph is read: a token, or an example whose key positions are averaged; and the
//! means of a mean ablation that belong to them.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::Result;
use crate::ops::{Kept, add_by_place};

/// Rows to gather and, where an example has several key positions, how they are averaged.
pub(super) struct Fold {
    pub(super) rows: Vec<u32>,
    pub(super) average: Option<Average>,
}

/// Gathered rows averaged example by example.
pub(super) struct Average {
    pub(super) examples: usize,
    /// The example of each gathered row.
    example_of: Vec<u32>,
    /// What each counts in its example's mean.
    weights: Vec<f64>,
}

/// A mean ablation's means, each of a place: a position, or all tokens together.
pub(super) enum Places {
    /// Each score row has one.
    One(Vec<u32>),
    /// Examples with several key positions have several, each with a share.
    Several { score_rows: Vec<u32>, places: Vec<u32>, shares: Vec<f64> },
}

impl Fold {
    /// `keys[i]` are example i's key positions; a row is the position before.
    pub(super) fn of_keys(keys: &[Vec<usize>], seq: usize) -> Self {
        let (mut rows, mut example_of, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for (example, positions) in keys.iter().enumerate() {
            for position in positions {
                rows.push((example * seq + position - 1) as u32);
                example_of.push(example as u32);
                weights.push(1.0 / positions.len() as f64);
            }
        }
        let average = Average { examples: keys.len(), example_of, weights };
        let one_each = keys.iter().all(|positions| positions.len() == 1);
        Self { rows, average: (!one_each).then_some(average) }
    }

    /// Whether several rows make one score row.
    pub(super) fn averages(&self) -> bool {
        self.average.is_some()
    }

    /// values [batch·seq, width] → [score rows, width].
    pub(super) fn fold(&self, values: &Tensor) -> Result<Tensor> {
        let gathered = Kept::All.choose(values, &self.rows)?;
        Ok(self.average_rows(gathered.unsqueeze(0)?)?.squeeze(0)?)
    }

    /// [nodes, gathered rows, width] → [nodes, score rows, width].
    pub(super) fn average_rows(&self, gathered: Tensor) -> Result<Tensor> {
        let Some(Average { examples, example_of, weights }) = &self.average else {
            return Ok(gathered);
        };
        let (nodes, _, width) = gathered.dims3()?;
        let sums = Tensor::zeros((nodes, *examples, width), gathered.dtype(), gathered.device())?;
        Ok(add_by_place(sums, example_of, &scale_rows(&gathered, weights)?, 1.0)?)
    }
}

impl Places {
    /// Adds to sums [nodes, places, width] `fraction` times the gradients [nodes, score rows, width] of
    /// some score rows; where there are several places a row, of all of them.
    pub(super) fn add(
        &self,
        sums: Tensor,
        score_rows: Range<usize>,
        gradients: &Tensor,
        fraction: f64,
    ) -> Result<Tensor> {
        match self {
            Places::One(places) => {
                Ok(add_by_place(sums, &places[score_rows], gradients, fraction)?)
            }
            Places::Several { score_rows, places, shares } => {
                let index = Tensor::new(&score_rows[..], gradients.device())?;
                let gradients = scale_rows(&gradients.index_select(&index, 1)?, shares)?;
                Ok(add_by_place(sums, places, &gradients, fraction)?)
            }
        }
    }

    /// The mean of each of `rows` score rows, [rows, width], from those of all places, [places, width];
    /// where there are several places a row, their mean.
    pub(super) fn rows_of(&self, means: &Tensor, rows: usize) -> Result<Tensor> {
        let chosen = |places: &[u32]| -> Result<Tensor> {
            Ok(means.index_select(&Tensor::new(places, means.device())?, 0)?)
        };
        match self {
            Places::One(places) => chosen(places),
            Places::Several { score_rows, places, shares } => {
                let means = scale_rows(&chosen(places)?.unsqueeze(0)?, shares)?;
                let sums = (1, rows, means.dim(2)?);
                let sums = Tensor::zeros(sums, means.dtype(), means.device())?;
                Ok(add_by_place(sums, score_rows, &means, 1.0)?.squeeze(0)?)
            }
        }
    }
}

/// [nodes, rows, width] with each row multiplied by its own factor.
fn scale_rows(values: &Tensor, factors: &[f64]) -> Result<Tensor> {
    let factors = Tensor::new(factors, &Device::Cpu)?.unsqueeze(1)?;
    Ok(values.broadcast_mul(&like(&factors, values)?)?)
}

/// The places where examples with these key positions are read.
pub(super) fn places_of_keys(keys: &[Vec<usize>]) -> Places {
    if keys.iter().all(|positions| positions.len() == 1) {
        return Places::One(keys.iter().map(|positions| positions[0] as u32 - 1).collect());
    }
    let (mut score_rows, mut places, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for (example, positions) in keys.iter().enumerate() {
        for &position in positions {
            score_rows.push(example as u32);
            places.push(position as u32 - 1);
            shares.push(1.0 / positions.len() as f64);
        }
    }
    Places::Several { score_rows, places, shares }
}

/// `tensor` with the type and on the device of `other`.
pub(super) fn like(tensor: &Tensor, other: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_dtype(other.dtype())?.to_device(other.device())?)
}
