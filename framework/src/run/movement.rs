//! How far tuning moved what each node owns.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::graph::Port;
use crate::weights::parameters::{Owner, Parameters};

/// How far a part of a node's rows moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Movement {
    /// The node, or where it is read through an input of its own that input.
    pub owner: String,
    /// The Euclidean norm of the difference between the rows after tuning and before.
    pub moved: f64,
    /// The norm of the rows before tuning.
    pub norm: f64,
}

/// How far the rows moved from `untuned`, owner by owner: what a node reads through, by input, and what it
/// writes through.
///
/// # Errors
/// If a tensor operation fails.
pub fn movements(parameters: &Parameters, untuned: &[Tensor]) -> Result<Vec<Movement>> {
    let mut sums: BTreeMap<Owner, [f64; 2]> = BTreeMap::new();
    for ((_, parameter), before) in parameters.iter().zip(untuned) {
        let of_rows = |values: &Tensor| -> Result<Vec<f64>> {
            Ok(values.to_dtype(DType::F32)?.sqr()?.sum(1)?.to_dtype(DType::F64)?.to_vec1()?)
        };
        let moved = of_rows(&(&parameter.tensor - before)?)?;
        let norms = of_rows(before)?;
        for block in &parameter.blocks {
            let sum = sums.entry(block.owner).or_default();
            sum[0] += moved[block.rows.clone()].iter().sum::<f64>();
            sum[1] += norms[block.rows.clone()].iter().sum::<f64>();
        }
    }
    let of = |(owner, [moved, norm]): (Owner, [f64; 2])| Movement {
        owner: name(owner),
        moved: moved.sqrt(),
        norm: norm.sqrt(),
    };
    Ok(sums.into_iter().map(of).collect())
}

/// `head.1.2.q`, `mlp.0 in`, `head.1.2 out`, `shared`.
fn name(owner: Owner) -> String {
    match owner {
        Owner::Reader(input) if input.port == Port::Input => format!("{input} in"),
        Owner::Reader(input) => input.to_string(),
        Owner::Writer(node) => format!("{node} out"),
        Owner::Shared => "shared".to_owned(),
    }
}
