//! Keys of config.json that change what a model computes, and of which only some values can be read:
//! every other value is refused by name. What an architecture needs to know is its own to parse.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::model::checkpoint::Checkpoint;
use crate::{Error, Result, refuse};

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
