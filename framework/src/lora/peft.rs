//! Adapters in the files of Hugging Face's PEFT.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Adapter, Adapters, Lora, tensor_name};
use crate::ops::weight;
use crate::weights::parameters::Parameters;
use crate::weights::projection::Projection;
use crate::{Error, Result, files, refuse};

impl Adapters {
    /// Writes a folder of `adapter_model.safetensors` and `adapter_config.json`, which PEFT loads. The latter
    /// names the model that the adapters belong to. The folder appears whole or not at all.
    ///
    /// # Errors
    /// If the folder exists or can't be written.
    pub fn save(&self, folder: &Path, base_model: Option<&Path>) -> Result<()> {
        let tensors = (self.parameters.iter())
            .map(|(_, p)| Ok((p.name.clone(), p.tensor.to_dtype(DType::F32)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
        let targets: BTreeSet<String> =
            self.adapters.iter().map(|adapter| last(&adapter.projection.name)).collect();
        // Of those whose rank is another, by their modules' names.
        let pattern = |of: fn(&Adapter) -> Value| -> Map<String, Value> {
            let others = self.adapters.iter().filter(|adapter| adapter.rank() != self.lora.rank);
            others.map(|adapter| (adapter.projection.name.clone(), of(adapter))).collect()
        };
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.lora.rank,
            "lora_alpha": self.lora.alpha,
            "rank_pattern": pattern(|adapter| adapter.rank().into()),
            "alpha_pattern": pattern(|adapter| adapter.alpha.into()),
            "lora_dropout": self.lora.dropout,
            "target_modules": targets,
            "fan_in_fan_out": self.adapters.iter().any(|a| a.projection.fan_in_fan_out),
            "bias": "none",
            "inference_mode": true,
        });
        files::make_folder(folder, |new| {
            files::write_tensors(&new.join(WEIGHTS), &tensors, Default::default())?;
            files::write_json(&new.join(CONFIG), &config)
        })
    }

    /// Reads adapters that this program or PEFT saved, for this model.
    ///
    /// # Errors
    /// If a file is missing, or holds what plain LoRA doesn't have or this model has no place for.
    pub fn load(folder: &Path, weights: &Parameters, projections: Vec<Projection>) -> Result<Self> {
        for file in [CONFIG, WEIGHTS] {
            files::check_regular(&folder.join(file))?;
        }
        let config: Config = files::read_json(&folder.join(CONFIG))?;
        let lora = config.lora(folder)?;
        let path = folder.join(WEIGHTS);
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
            .map_err(|error| Error::input(format!("{}: {error}", path.display())))?;
        let mut tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
        let has = |projection: &Projection| tensors.contains_key(&tensor_name(projection, "A"));
        if let (Some(theirs), Some(own)) = (tensors.keys().next(), projections.first())
            && !projections.iter().any(has)
        {
            refuse!(
                "{}: is an adapter for another model: it has tensor `{theirs}`, and this model would have `{}`",
                path.display(),
                tensor_name(own, "A")
            );
        }
        let projections: Vec<Projection> = projections.into_iter().filter(has).collect();
        let size = |projection: &Projection| config.size(projection);
        let adapters =
            Self::with(weights, lora, projections.into_iter(), size, |projection, a, b, (dtype, device)| {
                let mut take = |matrix: &str, shape: [usize; 2]| {
                    let name = tensor_name(projection, matrix);
                    match tensors.remove(&name) {
                        Some(tensor) if !weight::is_finite(&tensor)? => refuse!(
                            "{}: tensor `{name}` holds a value that is not finite; weights must be numbers",
                            path.display()
                        ),
                        Some(tensor) if tensor.dims() == shape => Ok(tensor.to_device(device)?.to_dtype(dtype)?),
                        Some(tensor) => refuse!(
                            "{}: tensor `{name}` is {:?}; in this model it must be {shape:?}: the adapter is for \
                             a model of another size",
                            path.display(),
                            tensor.dims()
                        ),
                        None => refuse!(
                            "{}: tensor `{name}` is missing, which goes with its other half",
                            path.display()
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
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
}

impl Config {
    fn lora(&self, folder: &Path) -> Result<Lora> {
        let plain = !self.use_rslora
            && !self.use_dora
            && self.rank_pattern.keys().chain(self.alpha_pattern.keys()).all(|key| is_name(key))
            && self.rank_pattern.values().all(|&rank| rank > 0)
            && self.bias.as_deref().is_none_or(|bias| bias == "none");
        if !plain {
            refuse!(
                "{}: only plain LoRA can be read: without rsLoRA, DoRA, biases, and patterns of ranks \
                 that are no module's name",
                folder.display()
            );
        }
        let lora = Lora { rank: self.r, alpha: self.lora_alpha, dropout: 0.0, layers: Vec::new() };
        lora.check()?;
        Ok(lora)
    }

    /// Returns the rank and α of a projection's adapter. As PEFT has it, the name of a pattern may be the end of a
    /// module's.
    fn size(&self, projection: &Projection) -> (usize, f64) {
        let names = |key: &str| {
            let rest = projection.name.strip_suffix(key);
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let rank = self.rank_pattern.iter().find(|(key, _)| names(key));
        let alpha = self.alpha_pattern.iter().find(|(key, _)| names(key));
        (rank.map_or(self.r, |(_, &rank)| rank), alpha.map_or(self.lora_alpha, |(_, &alpha)| alpha))
    }
}

/// Whether a pattern is the name of a module: PEFT takes regular expressions too.
fn is_name(pattern: &str) -> bool {
    pattern.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
