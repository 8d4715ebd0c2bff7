//! How edges are scored: every setting with its default, and which examples can't be scored so.

use serde::{Deserialize, Serialize};

use super::{MethodChoice, Needs};
use crate::data::example::Example;
use crate::evaluation::ablation::Ablation;
use crate::evaluation::metric::PatchingMetric;
use crate::graph::Kind;
use crate::model::Model;
use crate::{Error, Result, refuse};

/// At which positions the graph is read.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// Where a key token is predicted.
    #[default]
    Key,
    /// Everywhere.
    All,
}

impl Positions {
    /// Its name, as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Positions::Key => "key",
            Positions::All => "all",
        }
    }
}

/// How edges are scored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    /// The attribution method by which edges are scored: its name, or a table of its name and options.
    #[schemars(with = "String")]
    pub method: MethodChoice,
    /// Points that the methods `eap-ig` and `eap-ig-activations` average the gradient over.
    pub ig_steps: usize,
    /// What replaces a writer's output along an ablated edge.
    pub ablation: Ablation,
    /// At which positions the graph is read.
    pub positions: Positions,
    /// The kinds of nodes in the graph.
    pub nodes: Vec<Kind>,
    /// Sequences a forward pass; the scores do not depend on it.
    pub batch_size: usize,
    /// Form activations again on the way back instead of keeping them: less memory, more time, the
    /// same bits.
    pub activation_checkpointing: bool,
    /// Score on the first so many examples; without it, on all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<usize>,
    /// Resamples of the examples, which give each edge a standard error and the share of resamples in whose
    /// circuit it is; 0 for none.
    pub bootstrap: usize,
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            method: MethodChoice::named("eap"),
            ig_steps: 5,
            ablation: Ablation::default(),
            positions: Positions::default(),
            nodes: vec![Kind::Head, Kind::Mlp, Kind::Embed, Kind::Logits],
            batch_size: 16,
            activation_checkpointing: false,
            examples: None,
            bootstrap: 200,
        }
    }
}

/// The most memory that resamples' sums may take, in bytes.
const MOST_RESAMPLED: u64 = 16 << 30;

impl Discovery {
    /// Whether every example must have a counterfactual. An unknown method needs none: starting it
    /// names it.
    pub fn needs_counterfactuals(&self) -> bool {
        let method = self.method.build();
        self.ablation == Ablation::Corrupt
            || method.is_ok_and(|method| method.needs().counterfactual)
    }

    /// Refuses examples that can't be scored this way, naming the first. `why` is a task's reason
    /// for having no counterfactuals.
    ///
    /// # Errors
    /// If an example is out of the model's range, or lacks keys, answers or a counterfactual.
    pub fn check(
        &self,
        model: &dyn Model,
        examples: &[Example],
        metric: &dyn PatchingMetric,
        why: Option<&str>,
    ) -> Result<()> {
        if examples.is_empty() {
            refuse!("there are no examples to discover a circuit on; give the task some");
        }
        if self.examples == Some(0) {
            refuse!("discovery.examples is 0; score on at least one");
        }
        self.check_bootstrap(model)?;
        let needs = self.method.build()?.needs();
        if needs.all_positions && self.positions != Positions::All {
            refuse!(
                "method `{}` scores at all positions: set positions = \"all\"",
                self.method.name
            );
        }
        if self.batch_size == 0 || self.ig_steps == 0 {
            refuse!("batch_size and ig_steps must be at least 1");
        }
        for example in examples {
            let origin = &example.origin;
            example.check(model.vocabulary(), model.context())?;
            metric.check(example).map_err(|error| Error::input(format!("{origin}: {error}")))?;
            if self.positions == Positions::Key && example.keys.is_empty() {
                refuse!("{origin}: no key positions; discover with positions = \"all\"");
            }
            if self.needs_counterfactuals() {
                self.check_counterfactual(example, needs, why)?;
            }
        }
        Ok(())
    }

    fn check_bootstrap(&self, model: &dyn Model) -> Result<()> {
        if self.bootstrap == 1 {
            refuse!(
                "discovery.bootstrap is 1, and one resample has no spread; give 2 or more, or 0"
            );
        }
        let edges = model.graph().subset(&self.nodes).edge_count();
        let bytes = (self.bootstrap as u64).saturating_mul(8 * edges as u64);
        if bytes > MOST_RESAMPLED {
            refuse!(
                "discovery.bootstrap is {}, and so many resamples of {edges} edges take {} GiB; give at \
                 most {}",
                self.bootstrap,
                bytes >> 30,
                MOST_RESAMPLED / (8 * edges as u64)
            );
        }
        Ok(())
    }

    fn check_counterfactual(
        &self,
        example: &Example,
        needs: Needs,
        why: Option<&str>,
    ) -> Result<()> {
        let origin = &example.origin;
        let Some(counterfactual) = &example.counterfactual else {
            let reason = why.map_or(String::new(), |why| format!(" ({why})"));
            refuse!(
                "{origin}: no counterfactual, which ablation `{}` with method `{}` needs{reason}; use \
                 method `eap` with ablation `mean`, `mean-positional` or `zero`",
                name(&self.ablation),
                self.method.name
            );
        };
        let same_length = counterfactual.tokens.len() == example.tokens.len();
        if (self.positions == Positions::All || needs.counterfactual) && !same_length {
            refuse!(
                "{origin}: {} tokens, but {} in its counterfactual; method `{}` at these positions \
                 needs equal lengths",
                example.tokens.len(),
                counterfactual.tokens.len(),
                self.method.name
            );
        }
        if self.positions == Positions::Key
            && self.ablation == Ablation::Corrupt
            && counterfactual.key_positions.is_empty()
        {
            refuse!("{origin}: the counterfactual has no key positions");
        }
        Ok(())
    }
}

/// A setting's value as it is written.
fn name(value: &impl Serialize) -> String {
    let json = serde_json::to_value(value).unwrap_or_default();
    json.as_str().unwrap_or_default().to_owned()
}
