//! What an architecture must keep to.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::model::{draw, logits, model};
use super::values::largest;
use crate::model::checkpoint::{Checkpoint, Stored, Weights};
use crate::model::{Architecture, Model};
use crate::{Result, refuse};

/// Checks that the model an architecture builds from a config.json, its weights drawn with the seed,
/// conforms, and that built again from its own `state_dict` it gives the same logits.
///
/// # Errors
/// Saying what is broken, or that the model can't be built.
pub fn architecture(architecture: &dyn Architecture, config: &Value, seed: u64) -> Result<()> {
    let build = |weights: Weights| {
        architecture.build(Checkpoint {
            config: config.clone(),
            weights,
            dtype: DType::F64,
            device: Device::Cpu,
            origin: "config.json".to_owned(),
        })
    };
    let built = build(Weights::Random(seed))?;
    // As drawn, norms are all ones and biases all zeros: one could stand in another's place.
    stir(&*built, seed)?;
    model(&*built, seed)?;
    let again = build(stored(built.state_dict()?))?;
    let tokens = draw(&*built, (2, built.context().min(5)), seed)?;
    let seq = tokens.dim(1)?;
    let worst = largest(&(logits(&*built, &tokens, seq)? - logits(&*again, &tokens, seq)?)?)?;
    if worst > 1e-9 {
        refuse!(
            "built again from its own state_dict, the model's logits are {worst} off; {}",
            first_difference(&*built, &*again)?
        );
    }
    Ok(())
}

/// Adds noise to every parameter, matrices' to the scale at which what they project stays of order 1.
fn stir(model: &dyn Model, seed: u64) -> Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for (_, parameter) in model.parameters().iter() {
        let bound = 1.0 / (parameter.width() as f64).sqrt();
        let noise: Vec<f64> = (0..parameter.tensor.elem_count())
            .map(|_| random.random_range(-bound..bound))
            .collect();
        let noise = Tensor::from_vec(noise, parameter.tensor.shape(), parameter.tensor.device())?;
        parameter.tensor.slice_set(&(&parameter.tensor + noise)?, 0, 0)?;
    }
    Ok(())
}

/// Tensors as a file would hold them.
fn stored(tensors: BTreeMap<String, Tensor>) -> Weights {
    let stored = |(name, tensor): (String, Tensor)| {
        let shape = tensor.dims().to_vec();
        (name, Stored { shape, read: Box::new(move || Ok(tensor)) })
    };
    Weights::Stored(tensors.into_iter().map(stored).collect())
}

/// Says which parameter is the first that came back otherwise.
fn first_difference(built: &dyn Model, again: &dyn Model) -> Result<String> {
    for ((_, before), (_, after)) in built.parameters().iter().zip(again.parameters().iter()) {
        if before.tensor.dims() != after.tensor.dims()
            || largest(&(&before.tensor - &after.tensor)?)? > 0.0
        {
            return Ok(format!("`{}` is the first of its parameters to differ", before.name));
        }
    }
    Ok("its parameters are the same".to_owned())
}
