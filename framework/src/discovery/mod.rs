//! Discovery: edge attribution patching (EAP) and its integrated-gradients form (EAP-IG).
//!
//! With a_u what writer u wrote, ã_u its ablated value and g_d the metric's gradient at reader d's
//! input, an edge's worth is ⟨a_u − ã_u, g_d⟩: to first order what the metric, a mean over all examples,
//! loses when the edge is ablated. All edges take one forward and one backward pass. Scores are defined
//! over all examples together; how they are split into batches changes nothing.

mod smoothing;
mod sums;
mod view;

use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

pub use smoothing::{Smoother, Smoothing};
use sums::{Difference, Sums};
use view::{BatchView, Watched};

use crate::example::{Batch, Example, by_length, pad};
use crate::graph::{Graph, Kind};
use crate::metric::PatchingMetric;
use crate::model::Model;
use crate::pass::{Captured, Pass, Readout, Replacement, Written, scalar};
use crate::progress::{Progress, Report};
use crate::scores::Scores;
use crate::{Error, Result, refuse};

/// Where the gradient is taken.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// At the clean input.
    #[default]
    Eap,
    /// Averaged over inputs between the counterfactual's embeddings and the clean ones.
    EapIg,
}

/// What a writer's output is compared with.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Ablation {
    /// Its mean over all tokens of all examples.
    #[default]
    Mean,
    /// At each position its mean over the examples that reach it.
    MeanPositional,
    /// Nothing.
    Zero,
    /// Its output on the counterfactual.
    Corrupt,
}

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

/// How edges are scored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    /// Where the metric's gradient is taken.
    pub method: Method,
    /// Inputs that `eap-ig` averages the gradient over.
    pub ig_steps: usize,
    /// What a writer's output is compared with.
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
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            method: Method::default(),
            ig_steps: 5,
            ablation: Ablation::default(),
            positions: Positions::default(),
            nodes: vec![Kind::Head, Kind::Mlp, Kind::Embed, Kind::Logits],
            batch_size: 16,
            activation_checkpointing: false,
            examples: None,
        }
    }
}

impl Discovery {
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
        if self.batch_size == 0 || (self.method == Method::EapIg && self.ig_steps == 0) {
            refuse!("batch_size and ig_steps must be at least 1");
        }
        let needs_counterfactual =
            self.method == Method::EapIg || self.ablation == Ablation::Corrupt;
        for example in examples {
            let origin = &example.origin;
            example.check(model.vocabulary(), model.context())?;
            metric.check(example).map_err(|error| Error::input(format!("{origin}: {error}")))?;
            if self.positions == Positions::Key && example.keys.is_empty() {
                refuse!("{origin}: no key positions; discover with positions = \"all\"");
            }
            if needs_counterfactual {
                self.check_counterfactual(example, why)?;
            }
        }
        Ok(())
    }

    fn check_counterfactual(&self, example: &Example, why: Option<&str>) -> Result<()> {
        let origin = &example.origin;
        let Some(counterfactual) = &example.counterfactual else {
            let reason = why.map_or(String::new(), |why| format!(" ({why})"));
            refuse!(
                "{origin}: no counterfactual, which ablation `corrupt` and method `eap-ig` \
                 need{reason}; use method `eap` with ablation `mean`, `mean-positional` or `zero`"
            );
        };
        let same_length = counterfactual.tokens.len() == example.tokens.len();
        if (self.positions == Positions::All || self.method == Method::EapIg) && !same_length {
            refuse!(
                "{origin}: {} tokens, but {} in its counterfactual; positions `all` and \
                 `eap-ig` need equal lengths",
                example.tokens.len(),
                counterfactual.tokens.len()
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

/// What discovery found.
#[derive(Clone, Debug)]
pub struct Discovered {
    pub scores: Scores,
    /// The metric over all examples.
    pub metric: f64,
}

impl Discovered {
    /// Refuses a metric or a score that isn't a finite number.
    ///
    /// # Errors
    /// Saying which.
    pub fn check(&self) -> Result<()> {
        if !self.metric.is_finite() {
            return Err(Error::NotFinite(format!("the metric is {}", self.metric)));
        }
        let Scores { graph, values } = &self.scores;
        if let Some(index) = values.iter().position(|score| !score.is_finite()) {
            let readers = graph.readers().len();
            let (writer, reader) =
                (graph.writers()[index / readers], graph.readers()[index % readers]);
            let what = format!("the score of {writer} → {reader} is {}", values[index]);
            return Err(Error::NotFinite(what));
        }
        Ok(())
    }
}

/// Scores every edge over all `examples`.
///
/// # Errors
/// As for [`Discovery::check`], and if a tensor operation fails.
pub fn discover(
    model: &dyn Model,
    examples: &[&Example],
    metric: &dyn PatchingMetric,
    options: &Discovery,
    report: &Report,
) -> Result<Discovered> {
    let mut attribution = Attribution::new(model, examples, metric, options)?;
    let mut done = 0;
    let order = by_length(examples, |example| example.tokens.len());
    for chunk in order.chunks(options.batch_size) {
        let batch = chunk.iter().map(|&index| examples[index]).collect();
        attribution.add(&Batch::new(batch, &model.device())?)?;
        done += chunk.len();
        report(Progress {
            stage: "discover",
            done,
            total: examples.len(),
            figure: Some(("metric", attribution.metric())),
        });
    }
    attribution.finish()
}

/// A scoring under way: batches are added one by one.
pub struct Attribution<'a> {
    model: &'a dyn Model,
    metric: &'a dyn PatchingMetric,
    options: &'a Discovery,
    graph: Graph,
    sums: Sums,
    metric_sum: f64,
    /// Σ weight over all examples, those not yet added included.
    total_weight: f64,
    added_weight: f64,
}

/// A forward pass with the backward pass of the metric behind it, for whoever goes on with it.
pub struct Run {
    pub pass: Pass,
    pub readout: Readout,
    /// The metric's share of the whole mean, differentiable.
    pub share: Tensor,
    /// What its backward pass left, where the metric is the loss and nothing forbids to keep it.
    pub captured: Option<Vec<Captured>>,
}

impl<'a> Attribution<'a> {
    /// `examples` are all that will be added.
    ///
    /// # Errors
    /// If a tensor can't be allocated.
    pub fn new(
        model: &'a dyn Model,
        examples: &[&Example],
        metric: &'a dyn PatchingMetric,
        options: &'a Discovery,
    ) -> Result<Self> {
        let graph = model.graph().subset(&options.nodes);
        if graph.edge_count() == 0 {
            refuse!(
                "no edges between nodes of the kinds {:?}; take `head` and `mlp` in",
                options.nodes
            );
        }
        let longest = examples.iter().map(|example| example.tokens.len()).max().unwrap_or(0);
        Ok(Self {
            model,
            metric,
            options,
            sums: Sums::new(&graph, options, longest),
            graph,
            metric_sum: 0.0,
            total_weight: examples.iter().map(|example| metric.weight(example)).sum(),
            added_weight: 0.0,
        })
    }

    /// The metric over the examples added so far.
    pub fn metric(&self) -> f64 {
        self.metric_sum / self.added_weight
    }

    /// Adds a batch. With method `eap` the forward pass is handed on.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn add(&mut self, batch: &Batch) -> Result<Option<Run>> {
        let view = Arc::new(BatchView::new(batch, self.options));
        let corrupt = self.corrupt_run(batch, &view)?;
        let weights = batch.examples.iter().map(|example| self.metric.weight(example));
        self.added_weight += weights.sum::<f64>();
        let (clean, watch) =
            view.watch(&self.graph, |view| &view.clean, self.sums.places_of_means());
        if self.options.method == Method::Eap {
            let pass = Pass::with_gradients(&self.model.device())?
                .with_checkpoints(self.options.activation_checkpointing)
                .on_write(watch);
            let readout = self.model.forward(&pass, &batch.tokens)?;
            let difference = self.sums.add_writes(&view, &clean, corrupt.as_ref())?;
            let share = self.share(&readout, batch, true)?;
            let captured = self.go_back(&pass, &share, batch, &view, &difference, 1.0)?;
            return Ok(Some(Run { pass, readout, share, captured }));
        }
        let readout = self.model.forward(&Pass::forward_only().on_write(watch), &batch.tokens)?;
        self.metric_sum += scalar(&self.metric.sum(&readout, batch)?)?;
        let corrupt = corrupt.ok_or_else(|| Error::input("no counterfactual run"))?;
        let (from, to) = (corrupt.embedding()?, clean.embedding()?);
        let ablated = Some(&corrupt).filter(|_| self.options.ablation == Ablation::Corrupt);
        let difference = self.sums.add_writes(&view, &clean, ablated)?;
        let steps = self.options.ig_steps;
        for step in 0..steps {
            let share = step as f64 / steps as f64;
            let input = (from.affine(1.0 - share, 0.0)? + to.affine(share, 0.0)?)?;
            let pass = Pass::with_gradients(&self.model.device())?
                .with_checkpoints(self.options.activation_checkpointing)
                .replacing(move |written| {
                    let is_embedding = matches!(written, Written::Embedding { .. });
                    Ok(is_embedding.then(|| Replacement::Site(input.clone())))
                });
            let readout = self.model.forward(&pass, &batch.tokens)?;
            let share = self.share(&readout, batch, false)?;
            self.go_back(&pass, &share, batch, &view, &difference, 1.0 / steps as f64)?;
        }
        Ok(None)
    }

    /// The metric's share of the whole mean.
    fn share(&mut self, readout: &Readout, batch: &Batch, counts: bool) -> Result<Tensor> {
        let sum = self.metric.sum(readout, batch)?;
        if counts {
            self.metric_sum += scalar(&sum)?;
        }
        Ok(sum.affine(1.0 / self.total_weight, 0.0)?)
    }

    /// Goes back from the metric, adding `fraction` of what comes of it to the scores.
    fn go_back(
        &mut self,
        pass: &Pass,
        share: &Tensor,
        batch: &Batch,
        view: &BatchView,
        difference: &Difference,
        fraction: f64,
    ) -> Result<Option<Vec<Captured>>> {
        let keeps = self.metric.is_loss() && !self.options.activation_checkpointing;
        let (mut gradients, mut kept) = (Vec::new(), Vec::new());
        pass.backward_retaining(share, &self.first_read(batch), &mut |captured| {
            gradients.extend(view.gradients(&self.graph, &captured)?);
            if keeps {
                kept.push(captured);
            }
            Ok(())
        })?;
        self.sums.add_gradients(&self.graph, view, difference, gradients, fraction)?;
        Ok(keeps.then_some(kept))
    }

    /// The first position of each example at which the graph is read. Where the metric is the loss,
    /// tuning goes on with the same gradients and wants them all.
    fn first_read(&self, batch: &Batch) -> Vec<usize> {
        if self.options.positions == Positions::All || self.metric.is_loss() {
            return Vec::new();
        }
        let first =
            |example: &&Example| example.keys.iter().map(|key| key.position - 1).min().unwrap_or(0);
        batch.examples.iter().map(first).collect()
    }

    /// What is written on the counterfactuals, where they are needed.
    fn corrupt_run(&self, batch: &Batch, view: &Arc<BatchView>) -> Result<Option<Watched>> {
        if self.options.ablation != Ablation::Corrupt && self.options.method != Method::EapIg {
            return Ok(None);
        }
        let counterfactuals: Vec<&[u32]> = (batch.examples.iter())
            .filter_map(|example| example.counterfactual.as_ref())
            .map(|counterfactual| &counterfactual.tokens[..])
            .collect();
        let (tokens, _) = pad(counterfactuals.into_iter(), &self.model.device())?;
        let (corrupt, watch) = view.watch(&self.graph, |view| &view.corrupt, None);
        self.model.forward(&Pass::forward_only().on_write(watch), &tokens)?;
        Ok(Some(corrupt))
    }

    /// The scores of all that was added.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn finish(self) -> Result<Discovered> {
        let metric = self.metric();
        let values = self.sums.finish(&self.graph)?;
        Ok(Discovered { scores: Scores { graph: self.graph, values }, metric })
    }
}
