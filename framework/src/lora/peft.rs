//! Adapters in the files of Hugging Face's PEFT.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::json;

use super::{Adapters, Lora, tensor_name};
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
        let adapters =
            Self::with(weights, lora, projections.into_iter(), |projection, a, b, (dtype, device)| {
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
