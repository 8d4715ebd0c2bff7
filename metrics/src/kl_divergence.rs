//! KL(untuned ‖ tuned) of the next token's distribution, in nats: how far tuning has moved the model.
//! Its gradient is zero at the untuned model, so nothing can be discovered with it and it only
//! reports.

use candle_core::DType;
use circuit_framework::attribution::Positions;
use circuit_framework::{
    Batch, Evaluation, Example, MeasuringMetric, Options, Pass, Plugin, Result, Tensor, answers,
    inventory, origin,
};
use serde::{Deserialize, Serialize};

/// Where the distributions are compared.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct KlDivergence {
    /// Where a key token is predicted (`key`), or wherever the loss is taken (`all`).
    positions: Positions,
}

impl KlDivergence {
    fn rows(&self, batch: &Batch) -> Vec<u32> {
        match self.positions {
            Positions::Key => batch.keys().map(|(_, _, row)| row).collect(),
            Positions::All => batch.predicted().map(|(_, _, row)| row).collect(),
        }
    }
}

impl MeasuringMetric for KlDivergence {
    fn measure(&self, evaluation: &Evaluation, examples: &[Example]) -> Result<f64> {
        let (mut sum, mut count) = (0.0, 0);
        if evaluation.untuned.is_none() {
            return Ok(sum);
        }
        evaluation.for_each_batch(examples, |_, batch, readout| {
            let rows = self.rows(batch);
            let tuned = answers::log_probs(&readout.logits(&rows)?)?;
            let untuned = evaluation.untuned(|| {
                let readout = evaluation.model.forward(&Pass::forward_only(), &batch.tokens)?;
                answers::log_probs(&readout.logits(&rows)?)
            })?;
            let terms: Tensor = (untuned.exp()? * (&untuned - tuned)?)?;
            sum += terms.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
            count += rows.len();
            Ok(())
        })?;
        Ok(sum / count as f64)
    }

    fn check(&self, example: &Example) -> Result<()> {
        match self.positions {
            Positions::Key => answers::check_keys(example),
            Positions::All => Ok(()),
        }
    }

    fn needs_untuned(&self) -> bool {
        true
    }
}

impl Options<dyn MeasuringMetric> for KlDivergence {
    fn build(self) -> Result<Box<dyn MeasuringMetric>> {
        Ok(Box::new(self))
    }
}

inventory::submit! {
    Plugin::<dyn MeasuringMetric>::new::<KlDivergence>(
        "kl_divergence", "KL(untuned ‖ tuned) of the next token's distribution, in nats", origin!(),
    )
}
