//! What a patching metric must keep to.

use candle_core::Tensor;

use super::{agrees, central_difference, check_float64};
use crate::data::example::{Batch, Example};
use crate::evaluation::metric::PatchingMetric;
use crate::model::Model;
use crate::pass::{Pass, scalar};
use crate::tuning::gradients::Gradients;
use crate::weights::parameters::Selection;
use crate::{Error, Result, refuse};

/// Checks that a metric's sum over a batch of examples, of unequal lengths if it is to mean much, is
/// the sum over them one by one, that its gradient reaches the model and agrees with central
/// differences, and that its weights are positive numbers.
///
/// # Errors
/// Saying what is broken, or that the model is not float64.
pub fn metric(metric: &dyn PatchingMetric, model: &dyn Model, examples: &[Example]) -> Result<()> {
    check_float64(model)?;
    for example in examples {
        let origin = &example.origin;
        metric.check(example).map_err(|error| Error::input(format!("{origin}: {error}")))?;
        let weight = metric.weight(example);
        if !(weight.is_finite() && weight > 0.0) {
            refuse!("{origin}: its weight is {weight}; it must be a number above 0");
        }
    }
    let value = |examples: &[Example]| -> Result<f64> {
        let (pass, sum) = sum(metric, model, examples, Pass::forward_only())?;
        drop(pass);
        Ok(scalar(&sum)?)
    };
    let together = value(examples)?;
    let mut one_by_one = 0.0;
    for example in examples {
        one_by_one += value(std::slice::from_ref(example))?;
    }
    if (together - one_by_one).abs() > 1e-8 * (1.0 + one_by_one.abs()) {
        refuse!(
            "the sum over a batch is {together}, but over its examples one by one {one_by_one}: it \
             depends on padding or on the batch"
        );
    }
    let (pass, sum) = sum(metric, model, examples, Pass::with_gradients(&model.device())?)?;
    let parameters = model.parameters();
    let mut gradients = Gradients::new(parameters, Selection::blocks(parameters, |_, _| true));
    let mut reached = false;
    pass.backward(&sum, &mut |captured| {
        reached = true;
        gradients.accumulate(&captured)
    })?;
    if !reached {
        refuse!("no gradient reaches the model; compute from the readout without detaching");
    }
    for (index, (id, parameter)) in parameters.iter().enumerate() {
        let entry = (index * 7919 + 13) % parameter.tensor.elem_count();
        let difference = central_difference(&parameter.tensor, entry, || value(examples))?;
        let gradient = match gradients.get(id) {
            Some(gradient) => gradient.flatten_all()?.to_vec1::<f64>()?[entry],
            None => 0.0,
        };
        if !agrees(gradient, difference) {
            refuse!(
                "the gradient at entry {entry} of `{}` is {gradient}, but by central differences \
                 {difference}",
                parameter.name
            );
        }
    }
    Ok(())
}

fn sum(
    metric: &dyn PatchingMetric,
    model: &dyn Model,
    examples: &[Example],
    pass: Pass,
) -> Result<(Pass, Tensor)> {
    let batch = Batch::new(examples.iter().collect(), &model.device())?;
    let readout = model.forward(&pass, &batch.tokens)?;
    let sum = metric.sum(&readout, &batch)?;
    Ok((pass, sum))
}
