//! What attribution methods are made of: writes that are observed on clean and counterfactual passes,
//! their differences, and the sums of products with the gradients that a backward pass leaves.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::Tensor;

use super::by_example::{ExampleScores, TakeScores};
use super::method::Discovered;
use super::observation::{BatchView, Observation, Watched};
use super::products::Difference;
use super::site_values::Sites;
use super::sums::Sums;
use super::{Discovery, Positions};
use crate::data::example::{Batch, Example};
use crate::evaluation::ablation::{AblatedValues, Ablation, counterfactual_tokens};
use crate::evaluation::metric::PatchingMetric;
use crate::graph::scores::Scores;
use crate::graph::{Graph, Reader, Writer};
use crate::model::Model;
use crate::pass::{Backward, Captured, Pass, Readout, Rules, scalar};
use crate::peers::{self, Alone, Peers, Rounds};
use crate::{Result, refuse};

/// The running scores of a method, and the tools to add to them.
pub struct Scoring<'a> {
    pub model: &'a dyn Model,
    pub metric: &'a dyn PatchingMetric,
    pub options: &'a Discovery,
    graph: Graph,
    /// Of backward passes.
    rules: Rules,
    sums: Sums<'a>,
    /// Σ weight over all examples, those not yet added included.
    total_weight: f64,
    /// The tokens of the longest example.
    longest: usize,
    /// Where scores are asked for by example.
    by_example: Option<ExampleScores<'a>>,
    /// Where only some edges' scores are asked for.
    wanted: Option<&'a BTreeSet<(Writer, Reader)>>,
}

impl<'a> Scoring<'a> {
    /// Scores of the `options`' graph, zero so far. `examples` are all that will be added.
    ///
    /// # Errors
    /// If there are no edges between nodes of the chosen kinds.
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
            sums: Sums::new(&graph, options, longest, model.device(), Rounds::new(&Alone, 0)),
            graph,
            longest,
            rules: Rules::default(),
            total_weight: examples.iter().map(|example| metric.weight(example)).sum(),
            by_example: None,
            wanted: None,
        })
    }

    /// This scoring of so many batches, of which this process adds its own ([`peers::does`]) and its peers the
    /// others. The scores and the metric are those of all batches, on every process.
    pub(crate) fn shared(self, peers: &'a dyn Peers, batches: usize) -> Self {
        Self { sums: self.sums.by(Rounds::new(peers, batches)), ..self }
    }

    /// The processes that share the batches.
    pub fn peers(&self) -> &'a dyn Peers {
        self.sums.rounds().peers
    }

    /// This scoring, of which only these edges' scores are wanted. What a method gives others is unsaid: one
    /// that pays for each edge leaves them out.
    pub(super) fn wanting(self, edges: &'a BTreeSet<(Writer, Reader)>) -> Self {
        Self { wanted: Some(edges), ..self }
    }

    /// Whether an edge's score is wanted.
    pub fn wants(&self, edge: (Writer, Reader)) -> bool {
        self.wanted.is_none_or(|edges| edges.contains(&edge))
    }

    /// This scoring, which also gives `take` each example's own scores. Where the ablation is a mean, this
    /// process's `batches` are run once before, since an example's score is against the mean of all.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub(super) fn by_example<'b>(
        self,
        batches: impl Iterator<Item = Result<Batch<'b>>>,
        take: &'a TakeScores<'a>,
    ) -> Result<Self> {
        let means = match self.sums.places_of_means() {
            Some(places) => Some(self.means(batches, places)?),
            None => None,
        };
        let rounds = self.sums.rounds().anew();
        let by_example = Some(ExampleScores::new(&self.graph, means, take, rounds));
        Ok(Self { by_example, ..self })
    }

    /// The means of what is written on batches, by site.
    fn means<'b>(
        &self,
        batches: impl Iterator<Item = Result<Batch<'b>>>,
        places: usize,
    ) -> Result<Sites> {
        let (device, rounds) = (self.model.device(), self.sums.rounds().anew());
        let mut sums = Sums::new(&self.graph, self.options, places, device, rounds);
        for batch in batches {
            let batch = batch?;
            let view = Arc::new(BatchView::new(&batch, self.options));
            let clean = Watched::default();
            let observation =
                Observation { view: view.clone(), clean: clean.clone(), corrupt: None };
            let pass = self.watching(&observation, Pass::forward_only());
            self.model.forward(&pass, &batch.tokens)?;
            sums.begin(0.0)?;
            sums.add_writes(view, &clean, None)?;
        }
        sums.end()?;
        sums.means()
    }

    /// This scoring with backward passes by other rules than the gradient's.
    pub(crate) fn with_rules(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// The graph whose edges are scored.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The metric over the examples that were counted.
    pub fn metric(&self) -> f64 {
        self.sums.metric()
    }

    /// A pass with gradients, as the options want it.
    ///
    /// # Errors
    /// If candle can't allocate.
    pub fn pass_with_gradients(&self) -> Result<Pass> {
        Ok(Pass::with_gradients(&self.model.device())?
            .with_checkpoints(self.options.activation_checkpointing))
    }

    /// Begins a batch: runs its counterfactuals where the ablation or the method needs them.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn observe(&mut self, batch: &Batch, counterfactual: bool) -> Result<Observation> {
        let view = Arc::new(BatchView::new(batch, self.options));
        let corrupt = match counterfactual || self.options.ablation == Ablation::Corrupt {
            true => Some(self.corrupt_run(batch, &view)?),
            false => None,
        };
        self.weigh(batch)?;
        self.begin_examples(batch)?;
        Ok(Observation { view, clean: Watched::default(), corrupt })
    }

    /// Begins the scores of a batch's examples, where they are asked for, which [`Scoring::observe`] does by
    /// itself. Batches come in the order in which they were added.
    ///
    /// # Errors
    /// If what takes the scores of the batch before can't.
    pub fn begin_examples(&mut self, batch: &Batch) -> Result<()> {
        match &mut self.by_example {
            Some(scores) => scores.begin(batch.examples.len()),
            None => Ok(()),
        }
    }

    /// Whether scores are asked for by example, as for a bootstrap.
    pub fn scores_examples(&self) -> bool {
        self.by_example.is_some()
    }

    /// Adds to the score of an edge for one example of the batch that was begun, which
    /// [`Scoring::add_gradients`] does by itself.
    pub fn add_of_example(&mut self, example: usize, writer: Writer, reader: Reader, score: f64) {
        if let Some(scores) = &mut self.by_example {
            scores.add(example, writer, reader, score);
        }
    }

    /// Counts a batch's examples as added, which [`Scoring::observe`] does by itself, before anything of it is.
    ///
    /// # Errors
    /// If another process can't be reached.
    pub fn weigh(&mut self, batch: &Batch) -> Result<()> {
        let weights = batch.examples.iter().map(|example| self.metric.weight(example));
        self.sums.begin(weights.sum())
    }

    /// The pass with a hook that takes in what is written: of the clean tokens.
    pub fn watching(&self, observation: &Observation, pass: Pass) -> Pass {
        let Observation { view, clean, .. } = observation;
        let means = self.sums.places_of_means();
        pass.on_write(view.watch(&self.graph, |view| &view.clean, means, clean))
    }

    /// What is written on the counterfactuals.
    fn corrupt_run(&self, batch: &Batch, view: &Arc<BatchView>) -> Result<Watched> {
        let tokens = counterfactual_tokens(self.model, batch)?;
        let corrupt = Watched::default();
        let watch = view.watch(&self.graph, |view| &view.corrupt, None, &corrupt);
        self.model.forward(&Pass::forward_only().on_write(watch), &tokens)?;
        Ok(corrupt)
    }

    /// What gradients are multiplied with, of an observation whose clean pass has run: what was written
    /// less its ablated value. Means are taken off when the scoring is finished.
    ///
    /// # Errors
    /// If the clean pass has not run, or a tensor operation fails.
    pub fn difference(&mut self, observation: Observation) -> Result<Difference> {
        let Observation { view, clean, corrupt } = observation;
        let ablated = corrupt.as_ref().filter(|_| self.options.ablation == Ablation::Corrupt);
        let mut difference = self.sums.add_writes(view, &clean, ablated)?;
        if let Some(scores) = &self.by_example {
            difference.centred = scores.centred(&difference)?;
        }
        Ok(difference)
    }

    /// A batch's share of the mean metric, a differentiable scalar.
    ///
    /// # Errors
    /// As the metric.
    pub fn share_of_mean(&self, readout: &Readout, batch: &Batch) -> Result<Tensor> {
        Ok(self.metric.sum(readout, batch)?.affine(1.0 / self.total_weight, 0.0)?)
    }

    /// Each example's share of the mean metric.
    ///
    /// # Errors
    /// As the metric.
    pub fn shares_of_mean(&self, readout: &Readout, batch: &Batch) -> Result<Vec<f64>> {
        let share = |index: usize| -> Result<f64> {
            let readout = readout.of_example(index, batch.seq)?;
            Ok(scalar(&self.share_of_mean(&readout, &batch.only(index)?)?)?)
        };
        (0..batch.examples.len()).map(share).collect()
    }

    /// Counts a clean pass' share of the mean into [`Scoring::metric`].
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn count(&mut self, share: &Tensor) -> Result<()> {
        self.sums.count(scalar(share)? * self.total_weight);
        Ok(())
    }

    /// Goes back from a share of the metric, and adds `fraction` of the products with the gradients to
    /// the scores. Where the metric is the loss, and its gradient what was formed, what the backward pass
    /// left is handed on.
    ///
    /// # Errors
    /// If a reader of the graph gets no gradient, or a tensor operation fails.
    pub fn add_gradients(
        &mut self,
        pass: &Pass,
        share: &Tensor,
        batch: &Batch,
        difference: &Difference,
        fraction: f64,
    ) -> Result<Option<Vec<Captured>>> {
        let keeps = self.leaves_the_losses_gradient() && !self.options.activation_checkpointing;
        let (mut gradients, mut kept) = (Vec::new(), Vec::new());
        let how = Backward { from: self.first_read(batch), rules: self.rules };
        pass.backward_retaining(share, how, &mut |captured| {
            gradients.extend(difference.view.gradients(&self.graph, &captured, self.rules)?);
            if keeps {
                kept.push(captured);
            }
            Ok(())
        })?;
        let examples = self.by_example.as_mut();
        self.sums.add_gradients(&self.graph, difference, gradients, fraction, examples)?;
        Ok(keeps.then_some(kept))
    }

    /// Whether tuning can go on with what a backward pass of the metric left: its objective's gradient.
    fn leaves_the_losses_gradient(&self) -> bool {
        self.metric.is_loss() && self.rules.form_the_gradient()
    }

    /// The first position of each example at which the graph is read. Where tuning goes on with the same
    /// gradients, it wants them all.
    fn first_read(&self, batch: &Batch) -> Vec<usize> {
        if self.options.positions == Positions::All || self.leaves_the_losses_gradient() {
            return Vec::new();
        }
        let first =
            |example: &&Example| example.keys.iter().map(|key| key.position - 1).min().unwrap_or(0);
        batch.examples.iter().map(first).collect()
    }

    /// The ablated values of all examples, for a method that runs passes of its own: `own` are the batches that
    /// were added. Values of a process that was given none are of no use to it.
    ///
    /// # Errors
    /// If a tensor operation fails, or another process can't be reached.
    pub fn ablated_values<'b>(
        &mut self,
        own: impl Iterator<Item = Result<Batch<'b>>>,
    ) -> Result<AblatedValues> {
        self.sums.end()?;
        let mut values = AblatedValues::new(self.model, self.options.ablation, self.longest);
        if values.is_mean() {
            let Rounds { peers, batches, .. } = *self.sums.rounds();
            values.add_shared(self.model, own, (peers, batches), || Ok(None))?;
        }
        Ok(values)
    }

    /// The scores of all that was added.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn finish(mut self) -> Result<Discovered> {
        self.end_rounds()?;
        let values = self.sums.finish(&self.graph)?;
        self.discovered(values)
    }

    /// Adds the last batches. A process that had fewer makes the rounds in the order in which the others did.
    fn end_rounds(&mut self) -> Result<()> {
        loop {
            let (sums, mut scores) = (self.sums.are_left(), self.by_example.as_mut());
            if sums {
                self.sums.make_round()?;
            }
            let scores = scores.take_if(|scores| scores.are_left());
            if let Some(scores) = scores {
                scores.hand_on()?;
            } else if !sums {
                return Ok(());
            }
        }
    }

    /// The scores of a method that formed them itself: `of_batches` are what each batch that was added gave,
    /// [writers, readers]; their sums are the scores.
    ///
    /// # Errors
    /// If what takes the last examples' scores can't, or another process can't be reached.
    pub fn finish_with(mut self, of_batches: Vec<Vec<f64>>) -> Result<Discovered> {
        self.end_rounds()?;
        let Rounds { peers, batches, .. } = *self.sums.rounds();
        let batches = if peers.size() == 1 { of_batches.len() } else { batches };
        let mut sums = vec![0f64; self.graph.writers().len() * self.graph.readers().len()];
        for scores in peers::exchange(peers, batches, of_batches)? {
            sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score);
        }
        self.discovered(sums.into_iter().map(|score| score as f32).collect())
    }

    fn discovered(self, values: Vec<f32>) -> Result<Discovered> {
        let metric = self.metric();
        Ok(Discovered { scores: Scores { graph: self.graph, values }, metric })
    }
}
