//! The models: GPT-2 and Llama as plugins, and getting them into and out of files.

mod embedded;
mod gguf;
mod gpt2;
mod hugging_face;
mod llama;
mod transformer;

use std::path::Path;

use candle_core::DType;
use circuit_framework::experiment::ModelChoice;
use circuit_framework::lora::Adapters;
use circuit_framework::model::Weights;
use circuit_framework::tokenizer::Tokenizer;
use circuit_framework::{Architecture, Checkpoint, Device, Model, Result, files, refuse, registry};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

pub use hugging_face::save;

/// A model with what came beside its weights.
pub struct Loaded {
    pub model: Box<dyn Model>,
    pub tokenizer: Option<Tokenizer>,
}

/// Loads a model from a Hugging Face folder or a GGUF file, or the one that is built in, `embedded`.
/// With `random_init` the weights are drawn with that seed and only the configuration is read.
///
/// # Errors
/// If a file is missing, cut short or contradicts the configuration, naming it; if the architecture
/// isn't registered or doesn't know an option.
pub fn load(choice: &ModelChoice) -> Result<Loaded> {
    let (mut checkpoint, tokenizer) = read(&choice.path, choice.random_init.is_some())?;
    if let Some(seed) = choice.random_init {
        checkpoint.weights = Weights::Random(Box::new(ChaCha8Rng::seed_from_u64(seed)));
    }
    checkpoint.device = choice.device.device()?;
    checkpoint.dtype = choice.dtype.dtype(&checkpoint.weights);
    let Some(architecture) = checkpoint.config["model_type"].as_str() else {
        refuse!("{}: config.json has no `model_type`", checkpoint.origin);
    };
    let plugin = registry::find::<dyn Architecture>(architecture).map_err(|error| {
        circuit_framework::Error::input(format!("{}: {error}", checkpoint.origin))
    })?;
    let model = plugin.build(&choice.options)?.build(checkpoint)?;
    if let Some(adapter) = &choice.adapter {
        Adapters::load(adapter, &*model)?.merge(&*model)?;
    }
    Ok(Loaded { model, tokenizer })
}

fn read(path: &Path, without_weights: bool) -> Result<(Checkpoint, Option<Tokenizer>)> {
    if path == Path::new(embedded::NAME) {
        let (checkpoint, tokenizer) = embedded::read(without_weights)?;
        return Ok((checkpoint, Some(tokenizer)));
    }
    if path.extension().is_some_and(|extension| extension == "gguf") {
        let (checkpoint, tokenizer) = gguf::read(path)?;
        return Ok((checkpoint, Some(tokenizer)));
    }
    if without_weights && path.ends_with("config.json") && path.is_file() {
        return read(path.parent().unwrap_or(path), true);
    }
    if !path.is_dir() {
        refuse!(
            "{}: there is no such model; give a Hugging Face folder, a .gguf file or `embedded`",
            path.display()
        );
    }
    let checkpoint = match without_weights {
        true => Checkpoint {
            config: files::read_json(&path.join("config.json"))?,
            weights: Weights::Given(Default::default()),
            dtype: DType::F32,
            device: Device::Cpu,
            origin: path.display().to_string(),
        },
        false => hugging_face::read_checkpoint(path)?,
    };
    let tokenizer = hugging_face::read_tokenizer(path, &checkpoint.config)?;
    Ok((checkpoint, tokenizer))
}
