//! EAP-IG over activations (EAP-IG's `EAP-IG-activations`): the gradient is averaged over passes in each
//! of which the output of one module, the embedding, a layer's heads together or its MLP, is held at
//! corrupted + k/steps · (clean − corrupted), k = 1 … steps, of `discovery.ig_steps`. All passes count for
//! all edges.

use std::sync::{Arc, Mutex, PoisonError};

use circuit_framework::attribution::{
    AttributionMethod, Needs, Run, Scoring, counterfactual_tokens,
};
use circuit_framework::pass::{Replacement, Written};
use circuit_framework::{Batch, Model, Pass, Result, Tensor, register};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct EapIgActivations {}

impl AttributionMethod for EapIgActivations {
    fn needs(&self) -> Needs {
        Needs { counterfactual: true, ..Needs::default() }
    }

    fn add(&self, scoring: &mut Scoring, batch: &Batch) -> Result<Option<Run>> {
        let observation = scoring.observe(batch, true)?;
        let pass = scoring.watching(&observation, Pass::forward_only());
        let readout = scoring.model.forward(&pass, &batch.tokens)?;
        scoring.count(&scoring.share_of_mean(&readout, batch)?)?;
        let difference = scoring.difference(observation)?;
        let clean = outputs(scoring.model, &batch.tokens)?;
        let corrupted = outputs(scoring.model, &counterfactual_tokens(scoring.model, batch)?)?;
        let steps = scoring.options.ig_steps;
        let fraction = 1.0 / (clean.len() * steps) as f64;
        for ((site, clean), (_, corrupted)) in clean.iter().zip(&corrupted) {
            for step in 1..=steps {
                let share = step as f64 / steps as f64;
                let held = (corrupted.affine(1.0 - share, 0.0)? + clean.affine(share, 0.0)?)?;
                let site = *site;
                let pass = scoring.pass_with_gradients()?.replacing(move |written| {
                    Ok((written.site() == site).then(|| Replacement::Site(held.clone())))
                });
                let readout = scoring.model.forward(&pass, &batch.tokens)?;
                let share = scoring.share_of_mean(&readout, batch)?;
                scoring.add_gradients(&pass, &share, batch, &difference, fraction)?;
            }
        }
        Ok(None)
    }
}

/// What each site writes on tokens [batch, seq]: its index and its output [batch·seq, d_model].
fn outputs(model: &dyn Model, tokens: &Tensor) -> Result<Vec<(usize, Tensor)>> {
    let sites: Arc<Mutex<Vec<(usize, Tensor)>>> = Arc::default();
    let shown = sites.clone();
    let pass = Pass::forward_only().on_write(move |written: Written| {
        let output = (written.site(), written.output()?);
        shown.lock().unwrap_or_else(PoisonError::into_inner).push(output);
        Ok(())
    });
    model.forward(&pass, tokens)?;
    Ok(std::mem::take(&mut *sites.lock().unwrap_or_else(PoisonError::into_inner)))
}

register!(
    dyn AttributionMethod,
    EapIgActivations,
    "eap-ig-activations",
    "EAP, its gradient averaged while one module at a time goes from corrupted to clean"
);
