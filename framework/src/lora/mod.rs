//! Low-rank adaptation (Hu et al., 2021, arXiv 2106.09685): beside a projection x ↦ W·x, whose W is
//! frozen, x ↦ (α/r)·B·A·dropout(x) is trained.

mod peft;
mod training;

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
pub(crate) use training::Applied;
pub use training::{AdapterGradients, Training};

use crate::ops::weight;
use crate::weights::parameters::{Param, Parameters, Selection};
use crate::weights::projection::Projection;
use crate::{Result, memory, refuse};

/// The size of the adapters, and how they are trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// r
    pub rank: usize,
    /// α
    pub alpha: f64,
    /// The share of a projection's inputs that its adapter doesn't see in a training pass.
    pub dropout: f64,
    /// The rank in each layer; empty where it is `rank` in all. What an adapter does is multiplied by α/rank
    /// in any layer.
    pub layers: Vec<usize>,
}

impl Lora {
    /// Returns an adapter's rank and α in a layer.
    fn in_layer(&self, layer: Option<usize>) -> (usize, f64) {
        let rank = layer.and_then(|layer| self.layers.get(layer)).copied().unwrap_or(self.rank);
        (rank, self.alpha * rank as f64 / self.rank as f64)
    }

    /// Refuses a rank for whose adapters there is no memory, their gradients and moments included.
    fn check_memory(&self, weights: &Parameters, projections: &[Projection]) -> Result<()> {
        let sides = projections.iter().map(|projection| sides(projection, weights));
        let (sum, most) = sides.fold((0, 0), |(sum, most), [input, output]| {
            (sum + input + output, most.max(input.min(output)))
        });
        let what = format!("rank is {}, and training adapters of that rank", self.rank);
        let remedy = format!("a rank of {most} is the most that a matrix here has");
        memory::check(&what, memory::product(&[self.rank, sum, 4 * size_of::<f32>()]), &remedy)
    }

    fn check(&self) -> Result<()> {
        if self.rank == 0
            || self.layers.contains(&0)
            || !(self.alpha.is_finite() && self.alpha > 0.0)
        {
            refuse!(
                "rank is {} and alpha {}; the rank must be at least 1 and alpha above 0",
                self.rank,
                self.alpha
            );
        }
        if !(0.0..1.0).contains(&self.dropout) {
            refuse!("dropout is {}; it must be from 0 to below 1", self.dropout);
        }
        Ok(())
    }
}

/// The low-rank update of one projection.
struct Adapter {
    projection: Projection,
    alpha: f64,
    /// A [rank, in]
    a: Param,
    /// B [out, rank]
    b: Param,
}

impl Adapter {
    fn rank(&self) -> usize {
        self.a.tensor.dims()[0]
    }

    /// Returns α/r: what the adapter's output is multiplied by.
    fn scale(&self) -> f64 {
        self.alpha / self.rank() as f64
    }
}

/// A model's adapters.
pub struct Adapters {
    lora: Lora,
    adapters: Vec<Adapter>,
    /// A and B of each, in the order of `adapters`.
    parameters: Parameters,
}

impl Adapters {
    /// Adapters for the projections all of whose rows are selected: A drawn with the seed as PEFT
    /// draws it, uniform within ±1/√in, B zero, so that the model is as it was.
    ///
    /// # Errors
    /// If a setting is out of range or no projection is selected.
    pub fn new(
        parameters: &Parameters,
        projections: Vec<Projection>,
        selection: &Selection,
        lora: Lora,
        seed: u64,
    ) -> Result<Self> {
        lora.check()?;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let selected = projections.into_iter().filter(|projection| {
            projection.rows.iter().all(|rows| {
                let within =
                    |range: &Range<usize>| range.start <= rows.start && rows.end <= range.end;
                selection.ranges(projection.parameter).iter().any(within)
            })
        });
        let sizes = lora.clone();
        let size = |projection: &Projection| sizes.in_layer(projection.layer(parameters));
        let drawn = |_: &Projection,
                     [rank, input]: [usize; 2],
                     [output, _]: [usize; 2],
                     (dtype, device): (DType, &Device)| {
            let bound = 1.0 / (input as f64).sqrt();
            let values: Vec<f64> =
                (0..rank * input).map(|_| random.random_range(-bound..bound)).collect();
            let a = Tensor::from_vec(values, (rank, input), device)?.to_dtype(dtype)?;
            Ok([a, Tensor::zeros((output, rank), dtype, device)?])
        };
        Self::with(parameters, lora, selected, size, drawn)
    }

    /// Adapters whose rank and α `size`, and A [rank, in] and B [out, rank] `values` gives for each projection.
    fn with(
        weights: &Parameters,
        lora: Lora,
        projections: impl Iterator<Item = Projection>,
        size: impl Fn(&Projection) -> (usize, f64),
        mut values: impl FnMut(
            &Projection,
            [usize; 2],
            [usize; 2],
            (DType, &Device),
        ) -> Result<[Tensor; 2]>,
    ) -> Result<Self> {
        let mut parameters = Parameters::default();
        let mut adapters = Vec::new();
        let projections: Vec<Projection> = projections.collect();
        lora.check_memory(weights, &projections)?;
        for projection in projections {
            let weight = weights.get(projection.parameter);
            let [input, output] = sides(&projection, weights);
            let kind = (weight::computing(weight.tensor.dtype()), weight.tensor.device());
            let (rank, alpha) = size(&projection);
            let [a, b] = values(&projection, [rank, input], [output, rank], kind)?;
            let a = parameters.add_shared(tensor_name(&projection, "A"), a)?;
            let b = parameters.add_shared(tensor_name(&projection, "B"), b)?;
            adapters.push(Adapter { projection, alpha, a, b });
        }
        if adapters.is_empty() {
            refuse!("no whole projection is selected for an adapter");
        }
        Ok(Self { lora, adapters, parameters })
    }

    /// A and B of every adapter, under PEFT's names.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Adds what the adapters amount to, (α/r)·B·A, to the model's weights for good.
    ///
    /// # Errors
    /// If a sum isn't a finite number, which leaves the weights as they are, or if a tensor operation
    /// fails.
    pub fn merge(&self, weights: &Parameters) -> Result<()> {
        for adapter in &self.adapters {
            if !weight::is_finite(&self.merged(adapter, weights)?)? {
                refuse!(
                    "merging the adapter of {} gives weights that are not finite; lower tuning.lr or alpha",
                    adapter.projection.name
                );
            }
        }
        for adapter in &self.adapters {
            let merged = self.merged(adapter, weights)?;
            let weight = &weights.get(adapter.projection.parameter).tensor;
            for (rows, at) in adapter.projection.parts() {
                weight.slice_set(&merged.narrow(0, at, rows.len())?, 0, rows.start)?;
            }
        }
        Ok(())
    }

    /// The rows of a projection, in its own order, with its adapter added.
    fn merged(&self, adapter: &Adapter, weights: &Parameters) -> Result<Tensor> {
        let Adapter { projection, a, b, .. } = adapter;
        let product = b.tensor.matmul(&a.tensor)?.affine(adapter.scale(), 0.0)?;
        let product = if projection.reads { product } else { product.t()? };
        let weight = &weights.get(projection.parameter).tensor;
        let parts = projection.parts().map(|(rows, _)| weight.narrow(0, rows.start, rows.len()));
        let rows = Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let sum = (weight::widened(&rows)? + product)?.to_dtype(weight.dtype())?;
        Ok(sum.contiguous()?)
    }

    /// Runs `f` on the model with the adapters merged. Afterwards its weights are as they were, even if
    /// `f` panics.
    ///
    /// # Errors
    /// As `f`, and if a tensor operation fails.
    pub fn while_merged<T>(
        &self,
        weights: &Parameters,
        f: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let _frozen = weights.put_back_on_drop()?;
        self.merge(weights)?;
        f()
    }
}

/// The widths of what a projection reads and of what it gives.
fn sides(projection: &Projection, weights: &Parameters) -> [usize; 2] {
    let (rows, d_model) = (projection.height(), weights.get(projection.parameter).width());
    if projection.reads { [d_model, rows] } else { [rows, d_model] }
}

/// The name of an adapter's matrix, A or B, in PEFT's files.
fn tensor_name(projection: &Projection, matrix: &str) -> String {
    format!("base_model.model.{}.lora_{matrix}.weight", projection.name)
}
