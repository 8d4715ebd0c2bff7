//! What every plugin must keep to, as functions that a plugin's own tests call. Each returns an error
//! that says what is broken; the built-in plugins are held to the same.
//!
//! Gradients are compared with central differences, so models are wanted in float64
//! (`model.dtype = "float64"`) and small.

mod architecture;
mod method;
mod metric;
mod model;
mod selector;
mod task;
mod values;

use candle_core::{DType, Tensor};
use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

pub use architecture::architecture;
pub use method::attribution_method;
pub use metric::metric;
pub use model::model;
pub use selector::selector;
pub use task::task;

use crate::data::tokenizer::Tokenizer;
use crate::model::Model;
use crate::{Error, Result, refuse};

/// A tokenizer that needs no file: a token a byte, 256 in all, without special tokens or a template.
///
/// # Errors
/// None that a caller can cause.
pub fn byte_tokenizer() -> Result<Tokenizer> {
    let mut bytes: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    bytes.sort_unstable();
    let vocab: serde_json::Map<String, Value> =
        bytes.into_iter().enumerate().map(|(id, byte)| (byte, id.into())).collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let json = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    let inner = (json.to_string().parse())
        .map_err(|error| Error::input(format!("the byte tokenizer can't be built: {error}")))?;
    Ok(Tokenizer { inner, beginning: None, end: None, add_beginning: false, chat_template: None })
}

/// Refuses a model that computes in float32, whose rounding central differences would magnify.
fn check_float64(model: &dyn Model) -> Result<()> {
    if model.parameters().iter().any(|(_, parameter)| parameter.tensor.dtype() != DType::F64) {
        refuse!("the model must be float64 here: load it with dtype = \"float64\"");
    }
    Ok(())
}

/// How far a weight is moved for a central difference.
const STEP: f64 = 1e-6;

/// ∂f/∂w of one entry of a weight [rows, width], from f at two and at four steps around it, so that
/// the third derivative, large where a layer norm has little to divide by, drops out. The weight is
/// put back.
///
/// # Errors
/// As `f`, and if the weight is not float64.
pub fn central_difference(
    weight: &Tensor,
    entry: usize,
    f: impl Fn() -> Result<f64>,
) -> Result<f64> {
    let original = weight.copy()?;
    let at = |by: f64| {
        let mut values: Vec<f64> = original.flatten_all()?.to_vec1()?;
        values[entry] += by;
        weight.slice_set(&Tensor::from_vec(values, weight.shape(), weight.device())?, 0, 0)?;
        f()
    };
    let around = |by: f64| Ok::<_, Error>(at(by)? - at(-by)?);
    let near = around(STEP);
    let far = around(2.0 * STEP);
    weight.slice_set(&original, 0, 0)?;
    Ok((8.0 * near? - far?) / (12.0 * STEP))
}

/// Whether a gradient agrees with a central difference, as far as the latter is exact.
fn agrees(gradient: f64, difference: f64) -> bool {
    (gradient - difference).abs() <= 1e-5 * (1.0 + difference.abs())
}
