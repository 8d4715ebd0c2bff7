//! The hash by which a delta knows the model that it is of.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::Result;
use crate::weights::parameters::{Parameter, Parameters};
use crate::weights::rows::widened;

/// The SHA-256, in hexadecimal, of a model's weights: names, shapes, and the values as float64. Whether they are
/// kept in float32 or float64 makes no difference while they are the same numbers.
///
/// # Errors
/// If a tensor operation fails.
pub fn fingerprint(parameters: &Parameters) -> Result<String> {
    let all: Vec<&Parameter> = parameters.iter().map(|(_, parameter)| parameter).collect();
    let hashes: Vec<_> = all.into_par_iter().map(of_parameter).collect::<Result<_>>()?;
    let mut hasher = Sha256::new();
    hashes.iter().for_each(|hash| hasher.update(hash));
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn of_parameter(parameter: &Parameter) -> Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let shape = format!("{} [{}, {}]", parameter.name, parameter.rows(), parameter.width());
    hasher.update(shape.as_bytes());
    for block in widened(&parameter.tensor) {
        let bytes: Vec<u8> = block?.1.iter().flat_map(|value| value.to_le_bytes()).collect();
        hasher.update(bytes);
    }
    Ok(hasher.finalize().into())
}
