//! How a circuit is tuned: every setting with its default, and which values are refused.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Algorithm, Objective, TopNSchedule};
use crate::attribution::Smoothing;
use crate::data::example::Example;
use crate::graph::Graph;
use crate::graph::circuit::Circuit;
use crate::model::Model;
use crate::range::Range;
use crate::{Result, memory, refuse};

/// How a circuit is tuned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tuning {
    /// Update steps; without it, `epochs` counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Passes over the training examples, where `steps` is not given.
    pub epochs: usize,
    /// Examples a step.
    pub batch_size: usize,
    /// Examples a forward pass, where a step's are too many for one; their gradients add up to the
    /// step's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch_size: Option<usize>,
    /// Parts of a step's examples whose gradients are added up in pairs, each by one process. With 1 there is a part
    /// for every process, and how many there are shows in the last bits of what is tuned.
    pub chunks: usize,
    /// Form activations again on the way back instead of keeping them: less memory, more time, the
    /// same bits.
    pub activation_checkpointing: bool,
    /// Whether to shuffle the examples every epoch, with the seed.
    pub shuffle: bool,
    /// Which tokens the loss counts, and how much.
    pub objective: Objective,
    /// Objective `weighted` multiplies the key tokens' terms by one over this.
    pub key_weight_p: f64,
    /// The factor of |metric of the step| that is added to the loss; 0 adds nothing.
    pub metric_penalty: f64,
    /// The update rule, as PyTorch's of that name.
    pub optimizer: Algorithm,
    /// The learning rate.
    pub lr: f64,
    /// The momentum of `sgd`.
    pub momentum: f64,
    /// The decay of the first moment, for `adam` and `adamw`.
    pub beta1: f64,
    /// The decay of the second moment, for `adam` and `adamw`.
    pub beta2: f64,
    /// Added to the root of the second moment, for `adam` and `adamw`.
    pub eps: f64,
    /// Weight decay: added to the gradient, or for `adamw` taken off the weight.
    pub weight_decay: f64,
    /// Steps over which the learning rate rises linearly.
    pub warmup_steps: usize,
    /// The learning rate is multiplied by this after each epoch.
    pub lr_decay: f64,
    /// Gradients are scaled down to this joint norm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    /// Steps between discoveries; 0 keeps the first circuit.
    pub rediscover_every: usize,
    /// A circuit file to tune instead of discovering one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit: Option<PathBuf>,
    /// A schedule of the number of edges, from its start to `pruning.top_n`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_n_schedule: Option<TopNSchedule>,
    /// Rank edges by a running average of |score|.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smoothing: Option<Smoothing>,
    /// Steps between evaluations; 0 for none on the way.
    pub evaluate_every: usize,
    /// Steps between checkpoints, each a model saved as `checkpoint-N` and a state to resume from; 0 for none.
    pub checkpoint_every: usize,
    /// Minutes between states that the run can be resumed from, whatever its steps; 0 for none.
    pub checkpoint_minutes: f64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            steps: None,
            epochs: 1,
            batch_size: 16,
            micro_batch_size: None,
            chunks: 1,
            activation_checkpointing: false,
            shuffle: true,
            objective: Objective::default(),
            key_weight_p: 1.0,
            metric_penalty: 0.0,
            optimizer: Algorithm::default(),
            lr: 1e-3,
            momentum: 0.9,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            warmup_steps: 0,
            lr_decay: 1.0,
            max_grad_norm: None,
            rediscover_every: 1,
            circuit: None,
            top_n_schedule: None,
            smoothing: None,
            evaluate_every: 0,
            checkpoint_every: 0,
            checkpoint_minutes: 5.0,
        }
    }
}

impl Tuning {
    /// The number of update steps on this many examples.
    pub fn total_steps(&self, examples: usize) -> usize {
        match self.steps {
            Some(steps) => steps,
            None => self.epochs.saturating_mul(examples).div_ceil(self.batch_size.max(1)),
        }
    }

    /// Refuses settings that can't be followed.
    ///
    /// # Errors
    /// Naming the setting and what would be right.
    pub fn check(&self) -> Result<()> {
        if self.batch_size == 0 || self.micro_batch_size == Some(0) {
            refuse!("batch_size and micro_batch_size must be at least 1");
        }
        if !(1..=self.batch_size).contains(&self.chunks) {
            refuse!(
                "tuning.chunks is {}; give at least 1, and at most tuning.batch_size, {}",
                self.chunks,
                self.batch_size
            );
        }
        for (name, value, range) in [
            ("lr", self.lr, Range::FromZero),
            ("lr_decay", self.lr_decay, Range::AboveZero),
            ("momentum", self.momentum, Range::FromZeroToBelowOne),
            ("beta1", self.beta1, Range::FromZeroToBelowOne),
            ("beta2", self.beta2, Range::FromZeroToBelowOne),
            ("eps", self.eps, Range::FromZero),
            ("weight_decay", self.weight_decay, Range::FromZero),
            ("key_weight_p", self.key_weight_p, Range::AboveZero),
            ("metric_penalty", self.metric_penalty, Range::FromZero),
            ("checkpoint_minutes", self.checkpoint_minutes, Range::FromZero),
        ] {
            range.check(&format!("tuning.{name}"), value)?;
        }
        if let Some(norm) = self.max_grad_norm
            && let Err(error) = Range::AboveZero.check("tuning.max_grad_norm", norm)
        {
            refuse!("{error}; leave it out for no clipping");
        }
        if let Some(smoothing) = self.smoothing {
            smoothing.check()?;
        }
        if self.circuit.is_some() && (self.top_n_schedule.is_some() || self.smoothing.is_some()) {
            refuse!("a circuit from a file is neither scheduled nor smoothed; leave one out");
        }
        Ok(())
    }

    /// Refuses a step of more examples than there is memory for, without what a model makes of them.
    ///
    /// # Errors
    /// With both figures.
    pub fn check_batch(&self, examples: &[Example]) -> Result<()> {
        let longest = examples.iter().map(|example| example.tokens.len()).max().unwrap_or(0);
        let each =
            longest.saturating_mul(size_of::<u32>()).saturating_add(2 * size_of::<&Example>());
        let what = format!("tuning.batch_size is {}, and a step's examples alone", self.batch_size);
        memory::check(&what, memory::product(&[self.batch_size, each]), "give a smaller number")
    }

    /// The circuit of the file that is to be tuned, if one is named.
    ///
    /// # Errors
    /// If the file is malformed, of another model or graph, or has no edges.
    pub fn fixed_circuit(&self, model: &dyn Model, graph: &Graph) -> Result<Option<Circuit>> {
        let Some(path) = &self.circuit else {
            return Ok(None);
        };
        let circuit = Circuit::load(path, model, graph)?;
        if circuit.edges.is_empty() {
            refuse!("{}: the circuit has no edges, so nothing would be tuned", path.display());
        }
        Ok(Some(circuit))
    }

    /// The learning rate at a step, counted from 0.
    pub fn learning_rate(&self, step: usize, examples: usize) -> f64 {
        let warm = match self.warmup_steps {
            0 => 1.0,
            warmup => ((step + 1) as f64 / warmup as f64).min(1.0),
        };
        let epoch = step.saturating_mul(self.batch_size) / examples.max(1);
        self.lr * warm * self.lr_decay.powi(epoch as i32)
    }
}
