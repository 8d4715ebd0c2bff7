//! The loss of a step and its gradients, chunk by chunk. Discovery's forward passes serve the loss too where each
//! chunk is one micro-batch, and its backward passes where the metric is the loss.

use super::chunks::Chunks;
use super::gradients::Gradients;
use super::objective::Terms;
use super::{Objective, Tuner};
use crate::Result;
use crate::attribution::Run;
use crate::data::example::{Batch, Example};
use crate::lora::Training;
use crate::pass::{Pass, scalar};
use crate::peers::{self, Tree};

/// How a step's loss is formed.
struct Loss<'a> {
    terms: Terms,
    adapters: Option<&'a Training>,
    /// What the metric's sum over examples is multiplied by where it is added to the loss.
    penalty: Option<f64>,
    /// Whether the metric's sum is wanted, beside the loss or in it.
    with_metric: bool,
    /// Whether discovery's backward passes are the loss's.
    is_differentiated: bool,
}

impl Tuner<'_> {
    /// The step's loss, metric, and gradients of the selected rows. `kept` are discovery's passes over
    /// this process's chunks, `metric` the value it found.
    pub(super) fn gradients(
        &self,
        mut gradients: Gradients,
        adapters: Option<&Training>,
        examples: &[&Example],
        chunks: &Chunks,
        kept: Vec<Run>,
        metric: Option<f64>,
    ) -> Result<(f64, f64, Gradients)> {
        let metric_is_objective = self.metric.is_loss()
            && self.tuning.objective == Objective::Standard
            && !examples.iter().any(|example| example.forget);
        let penalty = self.tuning.metric_penalty;
        let total_weight: f64 = examples.iter().map(|example| self.metric.weight(example)).sum();
        // d|m| = sign(m)·dm, where m is the metric of the whole step: known before any of its
        // micro-batches is differentiated.
        let sign = match (penalty == 0.0, metric) {
            (true, _) => 0.0,
            (_, Some(metric)) => metric.signum(),
            (_, None) => self.metric_of(chunks, adapters, total_weight)?.signum(),
        };
        let loss = Loss {
            terms: Terms::of(self.tuning, examples)?,
            adapters,
            penalty: (penalty != 0.0).then_some(penalty * sign / total_weight),
            with_metric: penalty != 0.0 || (metric.is_none() && !metric_is_objective),
            is_differentiated: metric_is_objective && metric.is_some() && penalty == 0.0,
        };
        let (count, mut tree, mut own) = (chunks.chunks.len(), Tree::default(), Vec::new());
        let mut kept = kept.into_iter();
        for (number, chunk) in peers::own(self.peers, chunks.chunks.iter().enumerate()) {
            let kept = kept.next();
            own.push(self.chunk(&mut gradients, &loss, chunk, kept)?.to_vec());
            tree.add(number, gradients.take())?;
        }
        let (mut value, mut metric_sum) = (0.0, 0.0);
        for of_chunk in peers::exchange(self.peers, count, own)? {
            value += of_chunk[0];
            metric_sum += of_chunk[1];
        }
        gradients.put(tree.finish(self.peers, count, &self.model.device())?);
        let metric = match metric {
            Some(metric) => metric,
            None if metric_is_objective && penalty == 0.0 => value,
            None => metric_sum / total_weight,
        };
        Ok((value, metric, gradients))
    }

    /// Adds a chunk's gradients, and returns its share of the loss and, where it is wanted, its sum of the
    /// metric.
    fn chunk(
        &self,
        gradients: &mut Gradients,
        loss: &Loss,
        chunk: &[Vec<&Example>],
        kept: Option<Run>,
    ) -> Result<[f64; 2]> {
        let kept = match kept {
            Some(run) if loss.is_differentiated => {
                match &run.captured {
                    Some(captured) => {
                        captured.iter().try_for_each(|left| gradients.accumulate(left))?;
                    }
                    None => {
                        run.pass.backward(&run.share, &mut |left| gradients.accumulate(&left))?;
                    }
                }
                return Ok([scalar(&run.share)?, 0.0]);
            }
            kept => kept,
        };
        let (mut value, mut metric_sum) = (0.0, 0.0);
        let mut kept = kept.map(|run| (run.pass, run.readout));
        for examples in chunk {
            let batch = Batch::new(examples.clone(), &self.model.device())?;
            let (pass, readout) = match kept.take() {
                Some(run) => run,
                None => {
                    let pass = Pass::with_gradients(&self.model.device())?
                        .with_checkpoints(self.tuning.activation_checkpointing)
                        .with_adapters(loss.adapters.cloned());
                    let readout = self.model.forward(&pass, &batch.tokens)?;
                    (pass, readout)
                }
            };
            let objective = loss.terms.loss(&batch, &readout)?;
            value += scalar(&objective)?;
            let mut total = objective;
            if loss.with_metric {
                let sum = self.metric.sum(&readout, &batch)?;
                metric_sum += scalar(&sum)?;
                if let Some(factor) = loss.penalty {
                    total = (total + sum.affine(factor, 0.0)?)?;
                }
            }
            pass.backward(&total, &mut |left| match loss.adapters {
                Some(_) => gradients.accumulate_adapters(&left),
                None => gradients.accumulate(&left),
            })?;
        }
        Ok([value, metric_sum])
    }

    /// The metric over the step's examples, without gradients.
    fn metric_of(
        &self,
        chunks: &Chunks,
        adapters: Option<&Training>,
        total_weight: f64,
    ) -> Result<f64> {
        let of_batches = peers::share(self.peers, chunks.batches(), |examples| {
            let batch = Batch::new(examples.clone(), &self.model.device())?;
            let pass = Pass::forward_only().with_adapters(adapters.cloned());
            let readout = self.model.forward(&pass, &batch.tokens)?;
            Ok(vec![scalar(&self.metric.sum(&readout, &batch)?)?])
        })?;
        Ok(of_batches.into_iter().flatten().sum::<f64>() / total_weight)
    }
}
