//! Low-rank adaptation (Hu et al., 2021, arXiv 2106.09685): beside a projection x ↦ W·x, whose W is
//! frozen, x ↦ (α/r)·B·A·dropout(x) is trained. Saved and loaded in the layout of Hugging Face's PEFT.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde_json::json;

use crate::model::checkpoint::is_finite;
use crate::model::{Model, Projection};
use crate::ops::weight;
use crate::weights::parameters::{Param, ParamId, Parameters, Selection};
use crate::{Error, Result, files, refuse};

/// The size of the adapters, and how they are trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lora {
    /// r
    pub rank: usize,
    /// α
    pub alpha: f64,
    /// The share of a projection's inputs that its adapter doesn't see in a training pass.
    pub dropout: f64,
}

impl Lora {
    /// α/r: what an adapter's output is multiplied by.
    fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    fn check(&self) -> Result<()> {
        if self.rank == 0 || !(self.alpha.is_finite() && self.alpha > 0.0) {
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
    /// A [rank, in]
    a: Param,
    /// B [out, rank]
    b: Param,
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
    pub fn new(model: &dyn Model, selection: &Selection, lora: Lora, seed: u64) -> Result<Self> {
        lora.check()?;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let selected = model.projections().into_iter().filter(|projection| {
            projection.rows.iter().all(|rows| {
                let within =
                    |range: &Range<usize>| range.start <= rows.start && rows.end <= range.end;
                selection.ranges(projection.parameter).iter().any(within)
            })
        });
        Self::with(model, lora, selected, |_, [rank, input], [output, _], (dtype, device)| {
            let bound = 1.0 / (input as f64).sqrt();
            let values: Vec<f64> =
                (0..rank * input).map(|_| random.random_range(-bound..bound)).collect();
            let a = Tensor::from_vec(values, (rank, input), device)?.to_dtype(dtype)?;
            Ok([a, Tensor::zeros((output, rank), dtype, device)?])
        })
    }

    /// Adapters whose A [rank, in] and B [out, rank] `values` gives for each projection.
    fn with(
        model: &dyn Model,
        lora: Lora,
        projections: impl Iterator<Item = Projection>,
        mut values: impl FnMut(
            &Projection,
            [usize; 2],
            [usize; 2],
            (DType, &Device),
        ) -> Result<[Tensor; 2]>,
    ) -> Result<Self> {
        let mut parameters = Parameters::default();
        let mut adapters = Vec::new();
        for projection in projections {
            let weight = model.parameters().get(projection.parameter);
            let (rows, d_model) = (projection.height(), weight.width());
            let (input, output) = if projection.reads { (d_model, rows) } else { (rows, d_model) };
            let kind = (weight::computing(weight.tensor.dtype()), weight.tensor.device());
            let [a, b] = values(&projection, [lora.rank, input], [output, lora.rank], kind)?;
            let a = parameters.add_shared(tensor_name(&projection, "A"), a)?;
            let b = parameters.add_shared(tensor_name(&projection, "B"), b)?;
            adapters.push(Adapter { projection, a, b });
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
    pub fn merge(&self, model: &dyn Model) -> Result<()> {
        for adapter in &self.adapters {
            if !weight::is_finite(&self.merged(adapter, model)?)? {
                refuse!(
                    "merging the adapter of {} gives weights that are not finite; lower tuning.lr or alpha",
                    adapter.projection.name
                );
            }
        }
        for adapter in &self.adapters {
            let merged = self.merged(adapter, model)?;
            let weight = &model.parameters().get(adapter.projection.parameter).tensor;
            for (rows, at) in adapter.projection.parts() {
                weight.slice_set(&merged.narrow(0, at, rows.len())?, 0, rows.start)?;
            }
        }
        Ok(())
    }

    /// The rows of a projection, in its own order, with its adapter added.
    fn merged(&self, Adapter { projection, a, b }: &Adapter, model: &dyn Model) -> Result<Tensor> {
        let product = b.tensor.matmul(&a.tensor)?.affine(self.lora.scale(), 0.0)?;
        let product = if projection.reads { product } else { product.t()? };
        let weight = &model.parameters().get(projection.parameter).tensor;
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
    pub fn while_merged<T>(&self, model: &dyn Model, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let _frozen = model.parameters().put_back_on_drop()?;
        self.merge(model)?;
        f()
    }

    /// Writes `adapter_model.safetensors` and `adapter_config.json`, which PEFT loads. The latter names
    /// the model that the adapters belong to.
    ///
    /// # Errors
    /// If the folder exists or can't be written.
    pub fn save(&self, folder: &Path, base_model: Option<&Path>) -> Result<()> {
        if folder.exists() {
            refuse!("{}: exists already; name a new folder", folder.display());
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let tensors = (self.parameters.iter())
            .map(|(_, p)| Ok((p.name.clone(), p.tensor.to_dtype(DType::F32)?)))
            .collect::<Result<HashMap<_, _>>>()?;
        candle_core::safetensors::save(&tensors, folder.join(WEIGHTS))?;
        let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
        let targets: BTreeSet<String> =
            self.adapters.iter().map(|adapter| last(&adapter.projection.name)).collect();
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.lora.rank,
            "lora_alpha": self.lora.alpha,
            "lora_dropout": self.lora.dropout,
            "target_modules": targets,
            "fan_in_fan_out": self.adapters.iter().any(|a| a.projection.fan_in_fan_out),
            "bias": "none",
            "inference_mode": true,
        });
        files::write_json(&folder.join(CONFIG), &config)
    }

    /// Reads adapters that this program or PEFT saved, for this model.
    ///
    /// # Errors
    /// If a file is missing, or holds what plain LoRA doesn't have or this model has no place for.
    pub fn load(folder: &Path, model: &dyn Model) -> Result<Self> {
        let config: Config = files::read_json(&folder.join(CONFIG))?;
        let lora = config.lora(folder)?;
        let path = folder.join(WEIGHTS);
        let tensors = candle_core::safetensors::load(&path, &model.device())
            .map_err(|error| Error::input(format!("{}: {error}", path.display())))?;
        let mut tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
        let projections: Vec<Projection> = (model.projections().into_iter())
            .filter(|projection| tensors.contains_key(&tensor_name(projection, "A")))
            .collect();
        let adapters =
            Self::with(model, lora, projections.into_iter(), |projection, a, b, (dtype, _)| {
                let mut take = |matrix: &str, shape: [usize; 2]| {
                    let name = tensor_name(projection, matrix);
                    match tensors.remove(&name) {
                        Some(tensor) if !is_finite(&tensor.to_device(&Device::Cpu)?)? => refuse!(
                            "{}: tensor `{name}` holds a value that is not finite; weights must be numbers",
                            path.display()
                        ),
                        Some(tensor) if tensor.dims() == shape => Ok(tensor.to_dtype(dtype)?),
                        found => refuse!(
                            "{}: tensor `{name}` is {:?}; in this model it must be {shape:?}",
                            path.display(),
                            found.map(|tensor| tensor.dims().to_vec())
                        ),
                    }
                };
                Ok([take("A", a)?, take("B", b)?])
            })
            .map_err(|error| Error::input(format!("{}: {error}", folder.display())))?;
        if let Some(name) = tensors.keys().next() {
            refuse!("{}: this model has no projection for tensor `{name}`", path.display());
        }
        Ok(adapters)
    }
}

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

fn tensor_name(projection: &Projection, matrix: &str) -> String {
    format!("base_model.model.{}.lora_{matrix}.weight", projection.name)
}

/// What counts of PEFT's `adapter_config.json`.
#[derive(Deserialize)]
struct Config {
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    bias: Option<String>,
    #[serde(default)]
    rank_pattern: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    alpha_pattern: serde_json::Map<String, serde_json::Value>,
}

impl Config {
    fn lora(&self, folder: &Path) -> Result<Lora> {
        let plain = !self.use_rslora
            && !self.use_dora
            && self.rank_pattern.is_empty()
            && self.alpha_pattern.is_empty()
            && self.bias.as_deref().is_none_or(|bias| bias == "none");
        if !plain {
            refuse!(
                "{}: only plain LoRA can be read: without rsLoRA, DoRA, biases, rank and alpha \
                 patterns",
                folder.display()
            );
        }
        let lora = Lora { rank: self.r, alpha: self.lora_alpha, dropout: 0.0 };
        lora.check()?;
        Ok(lora)
    }
}

/// Adapters in a training pass: with dropout.
#[derive(Clone)]
pub struct Training {
    pub adapters: Arc<Adapters>,
    /// Draws the dropout.
    pub random: Arc<Mutex<ChaCha8Rng>>,
}

/// What one adapter did in a forward pass.
pub(crate) struct Applied {
    index: usize,
    /// The projection's input [n, in], after dropout.
    input: Tensor,
    /// What dropout multiplied the input with.
    mask: Option<Tensor>,
    /// input · Aᵀ [n, rank]
    hidden: Tensor,
}

/// The gradients of an adapter's parameters.
#[derive(Clone, Debug)]
pub struct AdapterGradients {
    pub a: (ParamId, Tensor),
    pub b: (ParamId, Tensor),
}

impl Training {
    /// Adds the adapters of a reading projection, of input [n, d_model], to its output [n, rows].
    pub(crate) fn read(
        &self,
        weight: ParamId,
        input: &Tensor,
        output: &Tensor,
    ) -> candle_core::Result<Vec<Applied>> {
        self.of(weight, |index, projection| {
            let (applied, update) = self.apply(index, input)?;
            for (rows, at) in projection.parts() {
                let (start, len) = (rows.start, rows.len());
                let sum = (output.narrow(1, start, len)? + update.narrow(1, at, len)?)?;
                output.slice_set(&sum.contiguous()?, 1, start)?;
            }
            Ok(applied)
        })
    }

    /// The same for a writing projection, of input [n, rows] and output [n, d_model].
    pub(crate) fn write(
        &self,
        weight: ParamId,
        input: &Tensor,
        output: &Tensor,
    ) -> candle_core::Result<Vec<Applied>> {
        self.of(weight, |index, projection| {
            let input = columns(input, projection)?;
            let (applied, update) = self.apply(index, &input)?;
            output.slice_set(&(output + update)?, 0, 0)?;
            Ok(applied)
        })
    }

    /// Calls `apply` for each adapter of a weight, with its index.
    fn of(
        &self,
        weight: ParamId,
        apply: impl Fn(usize, &Projection) -> candle_core::Result<Applied>,
    ) -> candle_core::Result<Vec<Applied>> {
        (self.adapters.adapters.iter().enumerate())
            .filter(|(_, adapter)| adapter.projection.parameter == weight)
            .map(|(index, adapter)| apply(index, &adapter.projection))
            .collect()
    }

    fn apply(&self, index: usize, input: &Tensor) -> candle_core::Result<(Applied, Tensor)> {
        let Adapter { a, b, .. } = &self.adapters.adapters[index];
        let mask = self.mask(input)?;
        let input = match &mask {
            Some(mask) => (input * mask)?,
            None => input.clone(),
        };
        let hidden = input.matmul(&a.tensor.t()?)?;
        let update = hidden.matmul(&b.tensor.t()?)?.affine(self.adapters.lora.scale(), 0.0)?;
        Ok((Applied { index, input, mask, hidden }, update))
    }

    /// 0 with probability p, else 1/(1 − p).
    fn mask(&self, input: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let dropout = self.adapters.lora.dropout;
        if dropout == 0.0 {
            return Ok(None);
        }
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = (1.0 / (1.0 - dropout)) as f32;
        let mask: Vec<f32> = (0..input.elem_count())
            .map(|_| if random.random::<f64>() < dropout { 0.0 } else { kept })
            .collect();
        let mask = Tensor::from_vec(mask, input.shape(), input.device())?;
        Ok(Some(mask.to_dtype(input.dtype())?))
    }

    /// From the gradient at a projection's output, adds the adapters' share to the gradient at its
    /// input, and returns the gradients of their own parameters.
    pub(crate) fn backward(
        &self,
        applied: &[Applied],
        at_output: &Tensor,
        at_input: &Tensor,
    ) -> candle_core::Result<Vec<AdapterGradients>> {
        let scale = self.adapters.lora.scale();
        let backward = |applied: &Applied| {
            let Adapter { projection, a, b } = &self.adapters.adapters[applied.index];
            let gradient = match projection.reads {
                true => columns(at_output, projection)?,
                false => at_output.clone(),
            };
            let d_b = gradient.t()?.matmul(&applied.hidden)?.affine(scale, 0.0)?;
            let d_hidden = gradient.matmul(&b.tensor)?.affine(scale, 0.0)?;
            let d_a = d_hidden.t()?.matmul(&applied.input)?;
            let mut d_input = d_hidden.matmul(&a.tensor)?;
            if let Some(mask) = &applied.mask {
                d_input = (d_input * mask)?;
            }
            let whole = [(0..d_input.dim(1)?, 0)];
            let parts = match projection.reads {
                true => whole.into(),
                false => projection.parts().collect::<Vec<_>>(),
            };
            for (columns, at) in parts {
                let (start, len) = (columns.start, columns.len());
                let sum = (at_input.narrow(1, start, len)? + d_input.narrow(1, at, len)?)?;
                at_input.slice_set(&sum.contiguous()?, 1, start)?;
            }
            Ok(AdapterGradients { a: (a.id, d_a), b: (b.id, d_b) })
        };
        applied.iter().map(backward).collect()
    }
}

/// The columns [n, rows] of a tensor [n, all rows of the parameter] that are a projection's, in its order.
fn columns(tensor: &Tensor, projection: &Projection) -> candle_core::Result<Tensor> {
    let parts = projection.parts().map(|(rows, _)| tensor.narrow(1, rows.start, rows.len()));
    Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 1)?.contiguous()
}
