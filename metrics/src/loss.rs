//! Next-token cross-entropy over all predicted tokens: the training loss itself, so that its
//! backward pass serves discovery and tuning at once.

use circuit_framework::ops::cross_entropy::Target;
use circuit_framework::{Batch, Example, PatchingMetric, Readout, Result, Tensor, register};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Loss {}

impl PatchingMetric for Loss {
    fn sum(&self, readout: &Readout, batch: &Batch) -> Result<Tensor> {
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (example, position, row) in batch.predicted() {
            let token = batch.examples[example].tokens[position];
            rows.push(row);
            targets.push(Target { token, weight: 1.0 });
        }
        readout.cross_entropy(&rows, targets)
    }

    fn weight(&self, example: &Example) -> f64 {
        example.predicted.len() as f64
    }

    fn is_loss(&self) -> bool {
        true
    }
}

register!(dyn PatchingMetric, Loss, "loss", "next-token cross-entropy over all predicted tokens");
