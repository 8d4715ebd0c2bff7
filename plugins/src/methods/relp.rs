//! Relevance patching (RelP: Jafari et al., 2025, arXiv 2508.21258): EAP with the coefficients of layer-wise
//! relevance propagation in the gradient's place. They come from another backward pass over the same clean
//! run, in which every norm's scale and every activation's f(x)/x is a constant, each factor of a gated
//! product gets half its gradient and, unless asked otherwise, attention probabilities are constants, so
//! that query and key readers score 0. Tuning goes on with the clean run.
//!
//! The authors' code puts x + 10⁻⁶ sign(x) under f(x), and leaves attention's gradient in by default. A
//! model's own operations, those it doesn't leave to the pass, have their true gradient.

use circuit_framework::attribution::{AttributionMethod, Run, Scoring};
use circuit_framework::pass::Rules;
use circuit_framework::{Batch, Result, register};
use serde::{Deserialize, Serialize};

/// How relevance goes through attention.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
enum ThroughAttention {
    /// Through the values alone: attention probabilities are constants.
    #[default]
    Constant,
    /// Through queries and keys too, by the gradient.
    Gradient,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Relp {
    /// What attention probabilities are: `constant`, or differentiated as for the `gradient`.
    attention: ThroughAttention,
}

impl AttributionMethod for Relp {
    fn rules(&self) -> Rules {
        let attention = self.attention == ThroughAttention::Constant;
        Rules { norm_scales: true, activation_factors: true, attention }
    }

    fn add(&self, scoring: &mut Scoring, batch: &Batch) -> Result<Option<Run>> {
        let observation = scoring.observe(batch, false)?;
        let pass = scoring.watching(&observation, scoring.pass_with_gradients()?);
        let readout = scoring.model.forward(&pass, &batch.tokens)?;
        let difference = scoring.difference(observation)?;
        let share = scoring.share_of_mean(&readout, batch)?;
        scoring.count(&share)?;
        let captured = scoring.add_gradients(&pass, &share, batch, &difference, 1.0)?;
        Ok(Some(Run { pass, readout, share, captured }))
    }
}

register!(
    dyn AttributionMethod,
    Relp,
    "relp",
    "relevance patching: EAP by relevance propagation instead of the gradient"
);
