//! Keys of config.json that change what a model computes, and of which only some values can be read:
//! every other value is refused by name; and the sizes that a model is built by, which are held against the
//! file and the memory before anything is built. What an architecture needs to know is its own to parse.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::memory::{self, product};
use crate::model::checkpoint::{Checkpoint, Weights};
use crate::{Error, Result, refuse};

/// A size in config.json: its key and its value.
pub type Size = (&'static str, usize);

/// The sizes of a decoder.
pub struct Sizes {
    pub layers: Size,
    pub d_model: Size,
    pub heads: Size,
    /// A layer's hidden width in its MLP.
    pub mlp: Size,
    pub vocabulary: Size,
    pub context: Size,
    pub kv_heads: usize,
    /// The width of a head.
    pub d_head: Size,
    /// How many projections an MLP reads through.
    pub mlp_inputs: usize,
    /// Whether positions have embeddings; else heads are rotated, by tables of all positions.
    pub has_positions: bool,
}

/// What a layer takes beside its weights: its names and its nodes.
const LAYER: usize = 4096;

impl Sizes {
    /// Refuses sizes that no model has, that the checkpoint's file hasn't, or for whose model there is no
    /// memory.
    ///
    /// # Errors
    /// Naming the key.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        let origin = &checkpoint.origin;
        let Self { layers, d_model, heads, mlp, vocabulary, context, d_head, .. } = *self;
        let all = [layers, d_model, heads, mlp, vocabulary, context, d_head];
        if let Some((key, _)) = all.iter().find(|(_, size)| *size == 0) {
            refuse!("{origin}: config.json: `{key}` is 0; it must be at least 1");
        }
        if let Weights::Stored(tensors) = &checkpoint.weights
            && layers.1 > tensors.len()
        {
            refuse!(
                "{origin}: config.json: `{}` is {}, but there are only {} tensors; they are of another model, or \
                 the number is wrong",
                layers.0,
                layers.1,
                tensors.len()
            );
        }
        let (key, largest) = all.into_iter().max_by_key(|(_, size)| *size).unwrap_or(layers);
        let what =
            format!("{origin}: config.json: `{key}` is {largest}, and a model of such sizes");
        // What is only outlined takes next to none.
        if !matches!(checkpoint.weights, Weights::Absent) {
            memory::check(&what, self.bytes(checkpoint), "give the sizes that the weights have")?;
        }
        let nodes = |inputs: u64| (layers.1 as u64).saturating_mul(inputs.saturating_add(1));
        let (heads, kv_heads) = (heads.1 as u64, self.kv_heads as u64);
        let readers = nodes(heads.saturating_add(kv_heads.saturating_mul(2)));
        let key = format!("config.json: `{}` is {}", layers.0, layers.1);
        memory::check_graph(origin, nodes(heads), readers, &key)
    }

    /// The least bytes of a model of these sizes, its weights included where they are in memory.
    fn bytes(&self, checkpoint: &Checkpoint) -> u64 {
        let [layers, d_model, heads, mlp, vocabulary, context, d_head] = [
            self.layers.1,
            self.d_model.1,
            self.heads.1,
            self.mlp.1,
            self.vocabulary.1,
            self.context.1,
            self.d_head.1,
        ];
        let weight = if checkpoint.device.is_cpu() { checkpoint.dtype.size_in_bytes() } else { 0 };
        let heads = heads.saturating_mul(2).saturating_add(self.kv_heads.saturating_mul(2));
        let positions = match self.has_positions {
            true => product(&[context, d_model, weight]),
            false => product(&[context, d_head, 8]),
        };
        let matrices = [
            product(&[layers, LAYER]),
            product(&[layers, heads, d_head, d_model, weight]),
            product(&[layers, self.mlp_inputs + 1, mlp, d_model, weight]),
            product(&[vocabulary, d_model, weight]),
            positions,
        ];
        matrices.into_iter().fold(0, u64::saturating_add)
    }
}

/// A configuration's keys as an architecture's own type.
///
/// # Errors
/// If one is missing or of another type.
pub fn parse<T: DeserializeOwned>(checkpoint: &Checkpoint) -> Result<T> {
    serde_json::from_value(checkpoint.config.clone())
        .map_err(|error| Error::input(format!("{}: config.json: {error}", checkpoint.origin)))
}

/// Checks keys, each with the values that can be read; a key that isn't given has its default.
///
/// # Errors
/// Naming the first key with another value.
pub fn accept(checkpoint: &Checkpoint, keys: &[(&str, &[Value])]) -> Result<()> {
    for (key, accepted) in keys {
        let Some(given) = checkpoint.config.get(key) else { continue };
        if accepted.contains(given) {
            continue;
        }
        let given = match given {
            Value::Object(_) | Value::Array(_) => "set".to_owned(),
            value => value.to_string(),
        };
        let accepted: Vec<String> = accepted.iter().map(Value::to_string).collect();
        refuse!(
            "{}: config.json: `{key}` is {given}; what can be read is {}",
            checkpoint.origin,
            accepted.join(" or ")
        );
    }
    Ok(())
}
