//! Tuning: at every step discover (or keep) the circuit, select what it owns, and update only that. Here
//! is the loop over steps; a step is `step.rs`'s, what lasts from one to the next [`State`]'s.

mod backward;
mod bounds;
mod chunks;
pub mod gradients;
mod matched;
mod moments;
mod objective;
mod optimizer;
mod order;
mod rule;
mod schedule;
pub mod selector;
mod settings;
mod state;
mod step;

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

pub use matched::{CIRCUITS, DiscoveredAt, Matched};
pub use objective::Objective;
pub use optimizer::Optimizer;
pub use rule::Algorithm;
pub use schedule::{Shape, TopNSchedule};
pub use settings::Tuning;
pub use state::State;

use crate::attribution::Discovery;
use crate::data::example::Example;
use crate::evaluation::figures;
use crate::evaluation::metric::PatchingMetric;
use crate::graph::circuit::Circuit;
use crate::graph::pruning::Pruning;
use crate::graph::scores::NodeScores;
use crate::lora::{Adapters, Training};
use crate::model::Model;
use crate::peers::Peers;
use crate::tuning::selector::ParamSelector;
use crate::weights::parameters::Selection;
use crate::{Result, refuse};
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
    /// `tuned_parameters` divided by the number of all parameters.
    pub tuned_share: f64,
    /// The number of nodes in the circuit.
    pub nodes: usize,
    /// The number of edges in the circuit.
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
    Circuit { step: usize, circuit: &'e Circuit, nodes: &'e NodeScores },
    /// A step was made, and left this state.
    Step { step: &'e Step, total: usize, state: &'e State },
}

/// What is tuned, and with what.
pub struct Tuner<'a> {
    pub model: &'a dyn Model,
    pub metric: &'a dyn PatchingMetric,
    pub selector: &'a dyn ParamSelector,
    pub discovery: &'a Discovery,
    pub pruning: &'a Pruning,
    pub tuning: &'a Tuning,
    /// Of a control that is matched to a circuit's own run: that run. Then nothing is discovered.
    pub matched: Option<&'a Matched<'a>>,
    pub seed: u64,
    /// The processes that share each step's examples.
    pub peers: &'a dyn Peers,
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
        self.resume(examples, None, event)
    }

    /// Goes on from the state in a file, the model being as it was before the first step; without a file,
    /// from that step.
    ///
    /// # Errors
    /// As [`Tuner::run`]'s, and if the state is of another run.
    pub fn resume(
        &self,
        examples: &[Example],
        from: Option<&Path>,
        event: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<Tuned> {
        self.tuning.check()?;
        if examples.is_empty() {
            refuse!("there are no examples to tune on; give the task some");
        }
        self.tuning.check_batch(examples)?;
        let graph = self.model.graph().subset(&self.discovery.nodes);
        self.pruning.check(&graph)?;
        if let Some(schedule) = &self.tuning.top_n_schedule {
            schedule.check(&graph)?;
        }
        let mut state = State::new(self, &graph)?;
        if let Some(path) = from {
            state.read(path, self.model)?;
        }
        if let Some(Training { adapters, .. }) = &state.adapters {
            event(Event::Adapters { adapters })?;
        }
        let mut order = Order::new(examples.len(), self.tuning.shuffle, self.seed);
        order.skip(state.step.saturating_mul(self.tuning.batch_size));
        let total = self.tuning.total_steps(examples.len());
        while state.step < total {
            let batch: Vec<&Example> =
                (order.take(self.tuning.batch_size)).map(|index| &examples[index]).collect();
            let step = self.step(state.step, &graph, &batch, examples.len(), &mut state, event)?;
            state.step += 1;
            state.discovery_seconds += step.discovery_seconds;
            state.tuning_seconds += step.tuning_seconds;
            event(Event::Step { step: &step, total, state: &state })?;
        }
        Ok(Tuned {
            tuned_parameters: state.tuned.count(state.trained(self.model)),
            tuned: state.tuned,
            circuit: state.circuit,
            adapters: state.adapters.map(|training| training.adapters),
            discovery_seconds: state.discovery_seconds,
            tuning_seconds: state.tuning_seconds,
        })
    }
}
