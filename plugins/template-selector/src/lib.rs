//! A selector: of every node in the circuit, the rows with the largest weights.

use std::collections::BTreeSet;

use circuit_framework::candle_core::DType;
use circuit_framework::{
    Circuit, Model, ParamSelector, Result, Selection, Tensor, refuse, register,
};
use serde::{Deserialize, Serialize};

/// Of each block of rows that a node of the circuit owns, the share with the largest norms.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct LargestRows {
    /// Which share of a node's rows, above 0 and at most 1; one row at least.
    share: f64,
}

impl Default for LargestRows {
    fn default() -> Self {
        Self { share: 0.5 }
    }
}

impl ParamSelector for LargestRows {
    fn select(&self, circuit: &Circuit, model: &dyn Model, _seed: u64) -> Result<Selection> {
        let owners = circuit.owners();
        let parameters = model.parameters();
        let mut chosen = BTreeSet::new();
        for (id, parameter) in parameters.iter() {
            let norms = squared_norms(&parameter.tensor)?;
            for block in parameter.blocks.iter().filter(|block| owners.contains(&block.owner)) {
                let rows = self.largest(&norms[block.rows.clone()]);
                chosen.extend(rows.into_iter().map(|row| (id, block.rows.start + row)));
            }
        }
        Ok(Selection::rows_where(parameters, |id, row| chosen.contains(&(id, row))))
    }
}

impl LargestRows {
    /// The indices of the largest values, as many as the share says; of equal ones the first.
    fn largest(&self, values: &[f64]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
        order.truncate(((self.share * values.len() as f64).round() as usize).max(1));
        order
    }
}

/// ‖row‖² of a weight [rows, width].
fn squared_norms(weight: &Tensor) -> Result<Vec<f64>> {
    Ok(weight.to_dtype(DType::F64)?.sqr()?.sum(1)?.to_vec1()?)
}

impl LargestRows {
    fn check(&self) -> Result<()> {
        if !(self.share > 0.0 && self.share <= 1.0) {
            refuse!("share is {}; give a number above 0 and at most 1", self.share);
        }
        Ok(())
    }
}

register!(
    dyn ParamSelector,
    LargestRows,
    "largest_rows",
    "of each node in the circuit, the rows with the largest weights",
    check = LargestRows::check
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_taken_and_one_at_least() {
        let of = |share| LargestRows { share }.largest(&[1.0, 3.0, 2.0, 3.0]);
        assert_eq!(of(0.5), [1, 3]);
        assert_eq!(of(0.01), [1]);
        assert_eq!(of(1.0).len(), 4);
    }

    #[test]
    fn a_share_out_of_range_is_refused() {
        assert!(LargestRows { share: 0.0 }.check().is_err());
        assert!(LargestRows { share: f64::NAN }.check().is_err());
    }
}
