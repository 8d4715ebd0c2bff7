//! The third extension point: what an edge's worth is measured by.

use candle_core::Tensor;

use crate::Result;
use crate::data::example::{Batch, Example};
use crate::evaluation::Evaluation;
use crate::pass::Readout;

/// From a model's output to a differentiable number. A metric is a weighted mean over examples, so
/// that it comes out the same however they are split into batches: the engine adds up [`sum`] over
/// the batches and divides by the added [`weight`]s.
///
/// [`sum`]: PatchingMetric::sum
/// [`weight`]: PatchingMetric::weight
///
/// ```
/// use circuit_framework::{Batch, Example, PatchingMetric, Readout, Result, Tensor};
/// use circuit_framework::register;
///
/// /// The logit of the right answer at the first key position.
/// #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
/// #[serde(default, deny_unknown_fields)]
/// struct FirstLogit {}
///
/// impl PatchingMetric for FirstLogit {
///     fn sum(&self, readout: &Readout, batch: &Batch) -> Result<Tensor> {
///         let (mut rows, mut answers) = (Vec::new(), Vec::new());
///         for (index, example) in batch.examples.iter().enumerate() {
///             rows.push(batch.row(index, example.keys[0].position - 1));
///             answers.push(example.keys[0].correct[0]);
///         }
///         let answers = Tensor::new(answers, batch.tokens.device())?.unsqueeze(1)?;
///         Ok(readout.logits(&rows)?.gather(&answers, 1)?.sum_all()?)
///     }
/// }
///
/// register!(dyn PatchingMetric, FirstLogit, "first_logit", "one logit");
///
/// let plugin = circuit_framework::plugin::registry::find::<dyn PatchingMetric>("first_logit")?;
/// assert!(plugin.build(&Default::default()).is_ok());
/// # Ok::<(), circuit_framework::Error>(())
/// ```
pub trait PatchingMetric: Send + Sync {
    /// The sum of `weight · value` over the batch's examples: a scalar whose gradient reaches the
    /// model through the readout.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn sum(&self, readout: &Readout, batch: &Batch) -> Result<Tensor>;

    /// What an example counts in the mean.
    fn weight(&self, _example: &Example) -> f64 {
        1.0
    }

    /// Refuses an example the metric can't be computed on, saying what it lacks.
    ///
    /// # Errors
    /// If the example doesn't fit.
    fn check(&self, _example: &Example) -> Result<()> {
        Ok(())
    }

    /// The registered name of the task it is made for, where it can't be computed on any other's examples.
    fn task(&self) -> Option<&str> {
        None
    }

    /// Whether this is the training loss itself, whose backward pass then serves for both.
    fn is_loss(&self) -> bool {
        false
    }
}

/// A number that says something of a model but that nothing can be discovered with: it has no useful
/// gradient. An experiment lists such metrics under `measure`; they are measured on the task's test
/// examples before and after tuning.
///
/// ```
/// use circuit_framework::{Evaluation, Example, MeasuringMetric, Result};
/// use circuit_framework::register;
///
/// /// How many tokens the examples have on average.
/// #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
/// #[serde(default, deny_unknown_fields)]
/// struct Length {}
///
/// impl MeasuringMetric for Length {
///     fn measure(&self, evaluation: &Evaluation, examples: &[Example]) -> Result<f64> {
///         let [tokens] = evaluation.sums(examples, |batch, _| {
///             let tokens = batch.examples.iter().map(|example| example.tokens.len());
///             Ok([tokens.sum::<usize>() as f64])
///         })?;
///         Ok(tokens / examples.len() as f64)
///     }
/// }
///
/// register!(dyn MeasuringMetric, Length, "length", "mean number of tokens");
///
/// let plugin = circuit_framework::plugin::registry::find::<dyn MeasuringMetric>("length")?;
/// assert!(plugin.build(&Default::default()).is_ok());
/// # Ok::<(), circuit_framework::Error>(())
/// ```
pub trait MeasuringMetric: Send + Sync {
    /// The number, over all `examples`, of which there is at least one.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn measure(&self, evaluation: &Evaluation, examples: &[Example]) -> Result<f64>;

    /// Refuses an example the number can't be computed on, saying what it lacks.
    ///
    /// # Errors
    /// If the example doesn't fit.
    fn check(&self, _example: &Example) -> Result<()> {
        Ok(())
    }

    /// Whether it compares with the untuned model, whose parameters are then kept.
    fn needs_untuned(&self) -> bool {
        false
    }
}
