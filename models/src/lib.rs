//! The models: families of decoders as plugins, a file each, and getting them into and out of files.

mod embedded;
mod gemma2;
mod gemma3;
mod gguf;
mod gpt2;
mod gpt_neox;
mod hub;
mod hugging_face;
mod llama;
mod mistral;
mod olmo2;
mod qwen2;
mod qwen3;

use std::path::Path;

use candle_core::DType;
use circuit_framework::data::tokenizer::{Bos, Tokenizer};
use circuit_framework::lora::Adapters;
use circuit_framework::model::checkpoint::Weights;
use circuit_framework::run::experiment::ModelChoice;
use circuit_framework::{
    Architecture, Checkpoint, Delta, Device, Error, Model, Plugin, Result, files, plugin::registry,
    refuse,
};
use serde::Serialize;

pub use hugging_face::save;

/// A model with what came beside its weights.
pub struct Loaded {
    pub model: Box<dyn Model>,
    pub tokenizer: Option<Tokenizer>,
}

/// Loads a model from a Hugging Face folder, Hugging Face's local cache or a GGUF file, or the one that
/// is built in, `embedded`. With `random_init` the weights are drawn with that seed and only the
/// configuration is read.
///
/// # Errors
/// If a file is missing, cut short or contradicts the configuration, naming it; if it asks for what
/// can't be done or a weight isn't finite; if the architecture isn't registered or doesn't know an
/// option.
pub fn load(choice: &ModelChoice) -> Result<Loaded> {
    let (mut checkpoint, mut tokenizer) = read(&choice.path, choice.random_init.is_some())?;
    if let Some(tokenizer) = &mut tokenizer {
        begin(tokenizer, choice.bos, &checkpoint.origin)?;
    }
    if let Some(seed) = choice.random_init {
        checkpoint.weights = Weights::Random(seed);
    }
    checkpoint.device = choice.device.device()?;
    checkpoint.dtype = choice.dtype.dtype(&checkpoint.weights);
    let model = build(checkpoint, choice)?;
    if let Some(adapter) = &choice.adapter {
        Adapters::load(adapter, model.parameters(), model.projections())?
            .merge(model.parameters())?;
    }
    if let Some(delta) = &choice.delta {
        Delta::load(delta)?.apply(model.parameters())?;
    }
    Ok(Loaded { model, tokenizer })
}

/// The shapes of a model, whose weights are neither read nor drawn and take no memory.
///
/// # Errors
/// If config.json is missing or describes no model that there is.
pub fn outline(choice: &ModelChoice) -> Result<Box<dyn Model>> {
    let (mut checkpoint, _) = read(&choice.path, true)?;
    checkpoint.weights = Weights::Absent;
    build(checkpoint, choice)
}

/// What an architecture can do.
#[derive(Serialize)]
pub struct Abilities {
    /// The name of the architecture in GGUF files, where these can be read beside Hugging Face folders.
    pub gguf: Option<&'static str>,
    /// The features of the model of its example.
    pub features: Vec<&'static str>,
}

/// What a registered architecture can do, with its options as they are by default.
///
/// # Errors
/// If it can't build the model of its own example.
pub fn abilities(plugin: &Plugin<dyn Architecture>) -> Result<Abilities> {
    let architecture = plugin.build(&toml::Table::new())?;
    let features = match architecture.example() {
        Some(config) => {
            let (weights, origin) = (Weights::Absent, format!("the example of `{}`", plugin.name));
            let (dtype, device) = (DType::F32, Device::Cpu);
            let checkpoint = Checkpoint { config, weights, dtype, device, origin };
            architecture.build(checkpoint)?.features()
        }
        None => Vec::new(),
    };
    Ok(Abilities { gguf: gguf::architecture(plugin.name), features })
}

/// The model of a checkpoint, by the architecture that its configuration names.
fn build(checkpoint: Checkpoint, choice: &ModelChoice) -> Result<Box<dyn Model>> {
    let Some(architecture) = checkpoint.config["model_type"].as_str() else {
        refuse!("{}: config.json has no `model_type`", checkpoint.origin);
    };
    let plugin = registry::find::<dyn Architecture>(architecture)
        .map_err(|error| Error::input(format!("{}: {error}", checkpoint.origin)))?;
    plugin.build(&choice.options)?.build(checkpoint)
}

/// Settles what texts begin with, and says it.
fn begin(tokenizer: &mut Tokenizer, bos: Bos, origin: &str) -> Result<()> {
    tokenizer.set_bos(bos).map_err(|error| Error::input(format!("{origin}: {error}")))?;
    let what = match tokenizer.prefix_text() {
        Some(token) => format!("begin with {token}"),
        None => "begin without a beginning-of-sequence token".to_owned(),
    };
    let why = match bos {
        Bos::Auto => "as its tokenizer says",
        Bos::Always => "model.bos = \"always\"",
        Bos::Never => "model.bos = \"never\"",
    };
    log::info!("{origin}: texts {what} ({why})");
    Ok(())
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
        return read(files::parent(path), true);
    }
    if path.is_file() {
        refuse!(
            "{}: is no .gguf file; of a Hugging Face model give the folder, {}",
            path.display(),
            files::parent(path).display()
        );
    }
    if !path.is_dir() {
        return read(&hub::snapshot(path)?, without_weights);
    }
    let checkpoint = hugging_face::read_checkpoint(path, without_weights)?;
    let tokenizer = hugging_face::tokenizer::read(path, &checkpoint.config)?;
    Ok((checkpoint, tokenizer))
}
