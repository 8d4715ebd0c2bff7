//! Tuning: at every step discover (or keep) the circuit, select what it owns, and update only that.
//!
//! A step: score the edges on the step's examples, prune, select rows, take the loss's gradients of
//! those rows, clip their joint norm, update. Where one micro-batch is the whole step, discovery's
//! forward pass serves the loss too; where the metric is the loss, so does its backward pass.

mod bounds;
pub mod gradients;
mod objective;
mod optimizer;
mod order;
mod schedule;
pub mod selector;
mod settings;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

pub use objective::Objective;
pub use optimizer::{Algorithm, Optimizer};
pub use schedule::{Shape, TopNSchedule};
pub use settings::Tuning;

use crate::attribution::{Discovery, Run, Smoother};
use crate::data::example::{Batch, Example};
use crate::evaluation::figures;
use crate::evaluation::metric::PatchingMetric;
use crate::graph::Graph;
use crate::graph::circuit::{Circuit, Pruning};
use crate::lora::{Adapters, Training};
use crate::model::Model;
use crate::pass::{Pass, scalar};
use crate::tuning::gradients::Gradients;
use crate::tuning::selector::ParamSelector;
use crate::weights::parameters::{Parameters, Selection};
use crate::{Error, Result, refuse};
use objective::Terms;
use order::Order;

/// What a step did: a line of `log.jsonl`.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Counted from 0.
    pub step: usize,
    /// The objective over the step's examples, before the update, without the metric's penalty.
    pub loss: f64,
    /// The metric over the step's examples, before the update.
    #[serde(serialize_with = "figures::number")]
    pub metric: f64,
    pub learning_rate: f64,
    /// Before clipping.
    pub gradient_norm: f64,
    /// The number of edges asked for.
    pub top_n: usize,
    pub tuned_parameters: usize,
    /// Of all parameters.
    pub tuned_share: f64,
    /// Of the circuit.
    pub nodes: usize,
    /// Of the circuit.
    pub edges: usize,
    /// Jaccard overlap of the circuit's edges with the step's before; 1 at the first.
    pub overlap: f64,
    /// Pruning included.
    pub discovery_seconds: f64,
    pub prune_seconds: f64,
    pub tuning_seconds: f64,
}

/// What happens on the way, for whoever writes it down.
pub enum Event<'e> {
    /// Adapters were made, before the first step. They are updated in place at every step, and not
    /// merged into the model.
    Adapters { adapters: &'e Arc<Adapters> },
    /// A circuit was discovered, before the step's update.
    Circuit { step: usize, circuit: &'e Circuit },
    /// A step was made.
    Step { step: &'e Step, total: usize },
}

/// What is tuned, and with what.
pub struct Tuner<'a> {
    pub model: &'a dyn Model,
    pub metric: &'a dyn PatchingMetric,
    pub selector: &'a dyn ParamSelector,
    pub discovery: &'a Discovery,
    pub pruning: &'a Pruning,
    pub tuning: &'a Tuning,
    pub seed: u64,
}

/// What tuning left behind.
pub struct Tuned {
    /// The last circuit; none where the selector needs none.
    pub circuit: Option<Circuit>,
    /// Trained adapters, not merged into the model.
    pub adapters: Option<Arc<Adapters>>,
    /// Every row that any step tuned, of the model or of its adapters.
    pub tuned: Selection,
    /// How many parameters they have.
    pub tuned_parameters: usize,
    pub discovery_seconds: f64,
    pub tuning_seconds: f64,
}

/// What a step's discovery hands on.
struct Found {
    /// The metric, where a circuit was discovered.
    metric: Option<f64>,
    /// Jaccard overlap with the circuit before.
    overlap: f64,
    prune_seconds: f64,
    /// The pass over the step's one micro-batch, for the loss to go on with.
    run: Option<Run>,
}

/// The state of a run between steps.
struct State {
    circuit: Option<Circuit>,
    smoother: Option<Smoother>,
    optimizer: Optimizer,
    /// Every row that any step tuned, of the model or of its adapters.
    tuned: Selection,
    adapters: Option<Training>,
}

impl State {
    /// What is trained: the model's parameters, or those of its adapters.
    fn trained<'a>(&'a self, model: &'a dyn Model) -> &'a Parameters {
        match &self.adapters {
            Some(training) => training.adapters.parameters(),
            None => model.parameters(),
        }
    }
}

impl Tuner<'_> {
    /// Tunes the model in place on `examples`.
    ///
    /// # Errors
    /// If settings or examples don't fit, if `event` fails, or if the loss or a weight stops being a
    /// finite number: then the model is as the failing step found it.
    pub fn run(
        &self,
        examples: &[Example],
        event: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<Tuned> {
        self.tuning.check()?;
        if examples.is_empty() {
            refuse!("there are no examples to tune on; give the task some");
        }
        let graph = self.model.graph().subset(&self.discovery.nodes);
        self.pruning.check(&graph)?;
        if let Some(schedule) = &self.tuning.top_n_schedule {
            schedule.check(&graph)?;
        }
        let circuit = self.tuning.fixed_circuit(self.model, &graph)?;
        let adapters = self.adapters()?;
        if let Some(Training { adapters, .. }) = &adapters {
            event(Event::Adapters { adapters })?;
        }
        let optimizer = match &adapters {
            Some(training) => Optimizer::new(self.tuning, training.adapters.parameters())?,
            None => Optimizer::new(self.tuning, self.model.parameters())?,
        };
        let mut state = State {
            circuit,
            smoother: self.tuning.smoothing.map(Smoother::new),
            optimizer,
            tuned: Selection::default(),
            adapters,
        };
        let mut order = Order::new(examples.len(), self.tuning.shuffle, self.seed);
        let total = self.tuning.total_steps(examples.len());
        let (mut discovery_seconds, mut tuning_seconds) = (0.0, 0.0);
        for step in 0..total {
            let batch: Vec<&Example> =
                (order.take(self.tuning.batch_size)).map(|index| &examples[index]).collect();
            let made = self.step(step, &graph, &batch, examples.len(), &mut state, event)?;
            discovery_seconds += made.discovery_seconds;
            tuning_seconds += made.tuning_seconds;
            event(Event::Step { step: &made, total })?;
        }
        Ok(Tuned {
            tuned_parameters: state.tuned.count(state.trained(self.model)),
            tuned: state.tuned,
            circuit: state.circuit,
            adapters: state.adapters.map(|training| training.adapters),
            discovery_seconds,
            tuning_seconds,
        })
    }

    /// New adapters, where the selector wants them beside what it selects.
    fn adapters(&self) -> Result<Option<Training>> {
        let Some(lora) = self.selector.lora() else {
            return Ok(None);
        };
        let selection = self.selector.select(&Circuit::default(), self.model, self.seed)?;
        let adapters = Adapters::new(self.model, &selection, lora, self.seed)?;
        let random = ChaCha8Rng::seed_from_u64(self.seed.wrapping_add(1));
        Ok(Some(Training { adapters: Arc::new(adapters), random: Arc::new(Mutex::new(random)) }))
    }

    /// Whether the circuit is discovered at this step.
    fn discovers(&self, step: usize, state: &State) -> bool {
        let every = self.tuning.rediscover_every;
        let due = state.circuit.is_none() || (every > 0 && step.is_multiple_of(every));
        due && self.selector.needs_circuit() && self.tuning.circuit.is_none()
    }

    fn step(
        &self,
        step: usize,
        graph: &Graph,
        examples: &[&Example],
        all_examples: usize,
        state: &mut State,
        event: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<Step> {
        let start = Instant::now();
        let size = self.tuning.micro_batch_size.unwrap_or(examples.len());
        let mut examples = examples.to_vec();
        if size < examples.len() {
            examples.sort_by_key(|example| example.tokens.len());
        }
        let examples = &examples[..];
        let batches = (examples.chunks(size))
            .map(|examples| Batch::new(examples.to_vec(), &self.model.device()))
            .collect::<Result<Vec<_>>>()?;
        let top_n = self.top_n(step, graph)?;
        let found = match self.discovers(step, state) {
            true => self.rediscover(step, top_n, examples, &batches, state)?,
            false => Found { metric: None, overlap: 1.0, prune_seconds: 0.0, run: None },
        };
        if let (Some(_), Some(circuit)) = (found.metric, &state.circuit) {
            event(Event::Circuit { step, circuit })?;
        }
        let discovery_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let circuit = state.circuit.clone().unwrap_or_default();
        let selection = match &state.adapters {
            Some(training) => Selection::blocks(training.adapters.parameters(), |_, _| true),
            None => self.selector.select(&circuit, self.model, self.seed)?,
        };
        let gradients = Gradients::new(state.trained(self.model), selection);
        let adapters = state.adapters.as_ref();
        let (loss, metric, mut gradients) =
            self.gradients(gradients, adapters, examples, &batches, found.run, found.metric)?;
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

    /// Discovers the circuit on the step's examples and puts it in place of the one before.
    fn rediscover(
        &self,
        step: usize,
        top_n: usize,
        examples: &[&Example],
        batches: &[Batch],
        state: &mut State,
    ) -> Result<Found> {
        let mut attribution = self.discovery.start(self.model, examples, self.metric)?;
        let mut run = None;
        for batch in batches {
            run = attribution.add(batch)?.filter(|_| batches.len() == 1);
        }
        let found = attribution.finish()?;
        if let Err(Error::NotFinite(what)) = found.check() {
            return Err(Error::Diverged { step, what });
        }
        let start = Instant::now();
        let magnitudes = found.scores.magnitudes();
        let importance = match &mut state.smoother {
            Some(smoother) => smoother.update(&magnitudes),
            None => magnitudes,
        };
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
        let prune_seconds = start.elapsed().as_secs_f64();
        Ok(Found { metric: Some(found.metric), overlap, prune_seconds, run })
    }

    fn top_n(&self, step: usize, graph: &Graph) -> Result<usize> {
        let last = self.pruning.top_n(graph)?;
        Ok(self.tuning.top_n_schedule.map_or(last, |schedule| schedule.at(step, last)))
    }

    /// The step's loss, metric, and gradients of the selected rows. `kept` is discovery's pass over
    /// the step's one micro-batch, `metric` the value it found.
    fn gradients(
        &self,
        mut gradients: Gradients,
        adapters: Option<&Training>,
        examples: &[&Example],
        batches: &[Batch],
        kept: Option<Run>,
        metric: Option<f64>,
    ) -> Result<(f64, f64, Gradients)> {
        let terms = Terms::of(self.tuning, examples)?;
        let metric_is_objective =
            self.metric.is_loss() && self.tuning.objective == Objective::Standard;
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
