//! One step of tuning: discover (or keep) the circuit, select what it owns, take the gradients, clip
//! their joint norm, update. The gradients' forward and backward passes are `backward.rs`'s.

use std::time::Instant;

use super::chunks::Chunks;
use super::gradients::Gradients;
use super::state::State;
use super::{Event, Step, Tuner};
use crate::attribution::{Run, Scoring};
use crate::data::example::{Batch, Example};
use crate::graph::Graph;
use crate::graph::circuit::Circuit;
use crate::graph::scores::NodeScores;
use crate::weights::parameters::Selection;
use crate::{Error, Result, refuse};

/// What a step's discovery hands on.
#[derive(Default)]
struct Found {
    /// The metric, where a circuit was discovered.
    metric: Option<f64>,
    /// What every node scores, where a circuit was discovered.
    nodes: Option<NodeScores>,
    /// Jaccard overlap with the circuit before.
    overlap: f64,
    prune_seconds: f64,
    /// The passes over this process's chunks, where each is one, for the loss to go on with.
    runs: Vec<Run>,
}

impl Tuner<'_> {
    /// Whether the circuit is discovered at this step.
    fn discovers(&self, step: usize, state: &State) -> bool {
        let every = self.tuning.rediscover_every;
        let due = state.circuit.is_none() || (every > 0 && step.is_multiple_of(every));
        let needed = self.selector.needs_circuit() && self.matched.is_none();
        due && needed && self.tuning.circuit.is_none()
    }

    pub(super) fn step(
        &self,
        step: usize,
        graph: &Graph,
        examples: &[&Example],
        all_examples: usize,
        state: &mut State,
        event: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<Step> {
        let start = Instant::now();
        let chunks = self.chunks(examples);
        let top_n = self.top_n(step, graph)?;
        let found = match self.discovers(step, state) {
            true => self.rediscover(step, top_n, examples, &chunks, state)?,
            false => Found { overlap: 1.0, ..Found::default() },
        };
        if let (Some(nodes), Some(circuit)) = (&found.nodes, &state.circuit) {
            event(Event::Circuit { step, circuit, nodes })?;
        }
        let discovery_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let (circuit, selection) = self.select(step, state)?;
        let gradients = Gradients::new(state.trained(self.model), selection);
        let adapters = state.adapters.as_ref();
        let (loss, metric, mut gradients) =
            self.gradients(gradients, adapters, examples, &chunks, found.runs, found.metric)?;
        let gradient_norm = gradients.norm()?;
        let diverged = |what: String| Error::Diverged { step, what };
        for (name, number) in [("loss", loss), ("gradient's norm", gradient_norm)] {
            if !number.is_finite() {
                return Err(diverged(format!("the {name} is {number}")));
            }
        }
        let mut clipped_norm = gradient_norm;
        if let Some(limit) = self.tuning.max_grad_norm
            && gradient_norm > limit
        {
            gradients.scale(limit / (gradient_norm + 1e-6))?;
            clipped_norm = limit;
        }
        let learning_rate = self.tuning.learning_rate(step, all_examples);
        let parameters = match &state.adapters {
            Some(training) => training.adapters.parameters(),
            None => self.model.parameters(),
        };
        if !state.optimizer.update(parameters, &gradients, clipped_norm, learning_rate)? {
            return Err(diverged("a weight is no finite number after the update".to_owned()));
        }
        state.tuned.extend(gradients.selection());
        let tuned_parameters = gradients.selection().count(parameters);
        // A GPU may still be at it.
        self.model.device().synchronize()?;
        Ok(Step {
            step,
            loss,
            metric,
            learning_rate,
            gradient_norm,
            top_n,
            tuned_parameters,
            tuned_share: tuned_parameters as f64 / self.model.parameters().count() as f64,
            nodes: circuit.writers().len() + circuit.readers().len(),
            edges: circuit.edges.len(),
            overlap: found.overlap,
            discovery_seconds,
            prune_seconds: found.prune_seconds,
            tuning_seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// The circuit of the step, and the rows to train.
    fn select(&self, step: usize, state: &State) -> Result<(Circuit, Selection)> {
        let circuit = state.circuit.clone().unwrap_or_default();
        let selection = match (&state.adapters, self.matched) {
            (Some(training), _) => Selection::blocks(training.adapters.parameters(), |_, _| true),
            (None, Some(run)) => return run.select(step, self.selector, self.model, self.seed),
            (None, None) => self.selector.select(&circuit, self.model, self.seed)?,
        };
        Ok((circuit, selection))
    }

    /// Discovers the circuit on the step's examples and puts it in place of the one before.
    fn rediscover(
        &self,
        step: usize,
        top_n: usize,
        examples: &[&Example],
        chunks: &Chunks,
        state: &mut State,
    ) -> Result<Found> {
        let method = self.discovery.method.build()?;
        let mut scoring = Scoring::new(self.model, examples, self.metric, self.discovery)?
            .shared(self.peers, chunks.batches().len())
            .with_rules(method.rules());
        let (batches, device) = (self.own_batches(chunks), self.model.device());
        let mut runs = Vec::new();
        for batch in &batches {
            let run = method.add(&mut scoring, &Batch::new(batch.clone(), &device)?)?;
            // Kept, they take what one pass over all chunks would.
            runs.extend(run.filter(|_| chunks.are_whole()));
        }
        let found = method.finish(scoring, &batches)?;
        if let Err(Error::NotFinite(what)) = found.check() {
            return Err(Error::Diverged { step, what });
        }
        let start = Instant::now();
        let magnitudes = found.scores.magnitudes();
        let importance = match &mut state.smoother {
            Some(smoother) => smoother.update(&magnitudes),
            None => magnitudes,
        };
        let graph = &found.scores.graph;
        let circuit = self.pruning.prune(&found.scores, &importance, top_n);
        if circuit.edges.is_empty() {
            refuse!(
                "the circuit of step {step} has no edges: none is left by pruning.threshold = {} and \
                 pruning.same_layer = {}; lower the threshold",
                self.pruning.threshold,
                self.pruning.same_layer
            );
        }
        let overlap = state.circuit.as_ref().map_or(1.0, |before| before.jaccard(&circuit));
        state.circuit = Some(circuit);
        let nodes = Some(NodeScores::of(graph, &importance));
        let prune_seconds = start.elapsed().as_secs_f64();
        Ok(Found { metric: Some(found.metric), nodes, overlap, prune_seconds, runs })
    }

    fn top_n(&self, step: usize, graph: &Graph) -> Result<usize> {
        let last = self.pruning.top_n(graph)?;
        Ok(self.tuning.top_n_schedule.map_or(last, |schedule| schedule.at(step, last)))
    }
}
