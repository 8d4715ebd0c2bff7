//! The loss of a step and its gradients. Discovery's forward pass serves the loss too where one
//! micro-batch is the whole step, and its backward pass where the metric is the loss.

use super::gradients::Gradients;
use super::objective::Terms;
use super::{Objective, Tuner};
use crate::Result;
use crate::attribution::Run;
use crate::data::example::{Batch, Example};
use crate::lora::Training;
use crate::pass::{Pass, scalar};

impl Tuner<'_> {
    /// The step's loss, metric, and gradients of the selected rows. `kept` is discovery's pass over
    /// the step's one micro-batch, `metric` the value it found.
    pub(super) fn gradients(
        &self,
        mut gradients: Gradients,
        adapters: Option<&Training>,
        examples: &[&Example],
        batches: &[Batch],
        kept: Option<Run>,
        metric: Option<f64>,
    ) -> Result<(f64, f64, Gradients)> {
        let terms = Terms::of(self.tuning, examples)?;
        let metric_is_objective = self.metric.is_loss()
            && self.tuning.objective == Objective::Standard
            && !examples.iter().any(|example| example.forget);
        let penalty = self.tuning.metric_penalty;
        if let (true, Some(run), Some(value), true) =
            (metric_is_objective, &kept, metric, penalty == 0.0)
        {
            match &run.captured {
                Some(captured) => {
                    captured.iter().try_for_each(|left| gradients.accumulate(left))?
                }
                None => {
                    run.pass.backward(&run.share, &mut |left| gradients.accumulate(&left))?;
                }
            }
            return Ok((value, value, gradients));
        }
        let total_weight: f64 = examples.iter().map(|example| self.metric.weight(example)).sum();
        // d|m| = sign(m)·dm, where m is the metric of the whole step: known before any of its
        // micro-batches is differentiated.
        let sign = match (penalty == 0.0, metric) {
            (true, _) => 0.0,
            (_, Some(metric)) => metric.signum(),
            (_, None) => self.metric_of(batches, adapters, total_weight)?.signum(),
        };
        let (mut loss, mut metric_sum) = (0.0, 0.0);
        let mut kept = kept.map(|run| (run.pass, run.readout));
        for batch in batches {
            let (pass, readout) = match kept.take() {
                Some(run) => run,
                None => {
                    let pass = Pass::with_gradients(&self.model.device())?
                        .with_checkpoints(self.tuning.activation_checkpointing)
                        .with_adapters(adapters.cloned());
                    let readout = self.model.forward(&pass, &batch.tokens)?;
                    (pass, readout)
                }
            };
            let objective = terms.loss(batch, &readout)?;
            loss += scalar(&objective)?;
            let mut total = objective;
            if penalty != 0.0 || (metric.is_none() && !metric_is_objective) {
                let sum = self.metric.sum(&readout, batch)?;
                metric_sum += scalar(&sum)?;
                if penalty != 0.0 {
                    total = (total + sum.affine(penalty * sign / total_weight, 0.0)?)?;
                }
            }
            pass.backward(&total, &mut |left| match adapters {
                Some(_) => gradients.accumulate_adapters(&left),
                None => gradients.accumulate(&left),
            })?;
        }
        let metric = match metric {
            Some(metric) => metric,
            None if metric_is_objective && penalty == 0.0 => loss,
            None => metric_sum / total_weight,
        };
        Ok((loss, metric, gradients))
    }

    /// The metric over the batches, without gradients.
    fn metric_of(
        &self,
        batches: &[Batch],
        adapters: Option<&Training>,
        total_weight: f64,
    ) -> Result<f64> {
        let mut sum = 0.0;
        for batch in batches {
            let pass = Pass::forward_only().with_adapters(adapters.cloned());
            let readout = self.model.forward(&pass, &batch.tokens)?;
            sum += scalar(&self.metric.sum(&readout, batch)?)?;
        }
        Ok(sum / total_weight)
    }
}
