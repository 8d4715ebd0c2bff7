//! A metric: how far the right answer's logit is above the best others.

use circuit_framework::candle_core::DType;
use circuit_framework::{
    Batch, Example, PatchingMetric, Readout, Result, Tensor, refuse, register,
};
use serde::{Deserialize, Serialize};

/// The right answers' mean logit less the mean of the `k` largest other logits, averaged over an
/// example's keys.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct TopKMargin {
    /// How many of the other tokens the right one is held against.
    k: usize,
}

impl Default for TopKMargin {
    fn default() -> Self {
        Self { k: 3 }
    }
}

impl PatchingMetric for TopKMargin {
    fn sum(&self, readout: &Readout, batch: &Batch) -> Result<Tensor> {
        let rows: Vec<u32> = batch.keys().map(|(_, _, row)| row).collect();
        let logits = readout.logits(&rows)?; // [keys, vocabulary]
        let weights: Vec<Vec<f64>> = (batch.keys().zip(logits.to_dtype(DType::F64)?.to_vec2()?))
            .map(|((example, key, _), logits)| {
                let share = 1.0 / batch.examples[example].keys.len() as f64;
                self.weights(&logits, &key.correct, share)
            })
            .collect();
        let weights = Tensor::new(weights, logits.device())?.to_dtype(logits.dtype())?;
        Ok((logits * weights)?.sum_all()?)
    }

    fn check(&self, example: &Example) -> Result<()> {
        if example.keys.is_empty() {
            refuse!("there are no key positions");
        }
        Ok(())
    }
}

impl TopKMargin {
    /// What each logit counts: `share` in all for the right tokens, −share in all for the best others.
    fn weights(&self, logits: &[f64], correct: &[u32], share: f64) -> Vec<f64> {
        let mut others: Vec<usize> =
            (0..logits.len()).filter(|&token| !correct.contains(&(token as u32))).collect();
        others.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        others.truncate(self.k);
        let mut weights = vec![0.0; logits.len()];
        for &token in correct {
            weights[token as usize] = share / correct.len() as f64;
        }
        for &token in &others {
            weights[token] = -share / others.len() as f64;
        }
        weights
    }
}

impl TopKMargin {
    fn check(&self) -> Result<()> {
        if self.k == 0 {
            refuse!("k is 0; hold the right answer against at least one other");
        }
        Ok(())
    }
}

register!(
    dyn PatchingMetric,
    TopKMargin,
    "top_k_margin",
    "logit(right) less the mean of the k best others",
    check = TopKMargin::check
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_token_is_held_against_the_best_others() {
        let weights = TopKMargin { k: 2 }.weights(&[5.0, 1.0, 9.0, 7.0, 6.0], &[2], 1.0);
        assert_eq!(weights, [0.0, 0.0, 1.0, -0.5, -0.5]);
    }

    #[test]
    fn it_is_registered_and_knows_its_options() {
        let plugin =
            circuit_framework::plugin::registry::find::<dyn PatchingMetric>("top_k_margin");
        let plugin = plugin.unwrap();
        assert_eq!(plugin.options()[0].default, 3);
        assert!(plugin.build(&[("k".to_owned(), 0.into())].into_iter().collect()).is_err());
    }
}
