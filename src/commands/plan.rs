//! `bench --plan`: the memory that discovery and tuning will take, reckoned from a model's shapes without loading
//! or computing anything.

use circuit_framework::Model;
use circuit_framework::attribution::{Ablation, Discovery, Positions};
use circuit_framework::graph::Node;
use circuit_framework::model::Precision;
use circuit_framework::run::experiment::Experiment;
use circuit_framework::tuning::{Algorithm, Tuning};
use circuit_framework::weights::parameters::{Owner, Selection};
use serde::Serialize;

use crate::print::say;

/// Bytes of a float32.
const FLOAT: u64 = 4;

/// Rows of writers' outputs that are expanded at once, and readers whose gradients are, where the graph is read
/// at all positions.
const EXPANDED: (u64, u64) = (64, 200);

/// What takes memory, in bytes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Plan {
    pub(super) parameters: u64,
    /// Those that nodes own.
    pub(super) parameters_of_nodes: u64,
    /// Those that are tuned.
    pub(super) tuned: u64,
    pub(super) weights: u64,
    /// What a pass keeps for the way back.
    pub(super) activations: u64,
    /// The sums behind the scores, and what their products are formed of.
    pub(super) scores: u64,
    pub(super) gradients: u64,
    /// Moments of the rows that are tuned.
    pub(super) optimizer: u64,
    /// The most that is held at once while a circuit is discovered, and while it is tuned, by each process.
    pub(super) discovery: u64,
    pub(super) tuning: u64,
}

impl Plan {
    /// What the experiment's steps, on examples of so many tokens, take of a model of these shapes, where a share
    /// of the nodes' parameters is tuned.
    pub(super) fn of(model: &dyn Model, experiment: &Experiment, seq: u64, share: f64) -> Self {
        let Experiment { discovery, tuning, .. } = experiment;
        let parameters = model.parameters();
        let owned = Selection::blocks(parameters, |_, block| block.owner != Owner::Shared);
        let (all, of_nodes) = (parameters.count() as u64, owned.count(parameters) as u64);
        let tuned = (of_nodes as f64 * share) as u64;
        let is_narrow = experiment.model.dtype == Precision::Bfloat16;
        let width = match experiment.model.dtype {
            Precision::Float64 => 2 * FLOAT,
            _ => FLOAT,
        };
        // Matrices in bfloat16, and float32 masters of the rows that are tuned.
        let weights = if is_narrow { all * 2 + tuned * FLOAT } else { all * width };
        let examples = tuning.micro_batch_size.unwrap_or(tuning.batch_size) as u64;
        let shapes = Shapes::of(model);
        let checkpoints = discovery.activation_checkpointing && tuning.activation_checkpointing;
        let activations = width * examples * seq * shapes.a_token(seq, checkpoints);
        let scores = shapes.scores(discovery, examples, seq) * width;
        let gradients = width * tuned * held_at_once(tuning);
        let optimizer = width * tuned * moments(tuning);
        Self {
            parameters: all,
            parameters_of_nodes: of_nodes,
            tuned,
            weights,
            activations,
            scores,
            gradients,
            optimizer,
            discovery: weights + activations + scores + optimizer,
            tuning: weights + activations + gradients + optimizer,
        }
    }

    pub(super) fn print(&self) {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let millions = |count: u64| count as f64 / 1e6;
        say!(
            "{:.1} million parameters, {:.1} of them nodes', {:.1} tuned",
            millions(self.parameters),
            millions(self.parameters_of_nodes),
            millions(self.tuned)
        );
        say!("{:12}{:>10}", "", "GiB");
        for (name, bytes) in [
            ("weights", self.weights),
            ("activations", self.activations),
            ("scores", self.scores),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("discovery", self.discovery),
            ("tuning", self.tuning),
        ] {
            say!("{name:12}{:>10.2}", gib(bytes));
        }
    }
}

/// Sizes of a model, in numbers.
struct Shapes {
    d_model: u64,
    layers: u64,
    /// Numbers a token that reading projections form, and that writing projections take.
    projected: u64,
    heads: u64,
    writers: u64,
    readers: u64,
    sites: u64,
}

impl Shapes {
    fn of(model: &dyn Model) -> Self {
        let parameters = model.parameters();
        let d_model = super::bench::d_model(model) as u64;
        // A bias has one column.
        let is_projection = |owner: Owner| owner != Owner::Shared;
        let projected = parameters.iter().filter(|(_, parameter)| {
            parameter.width() as u64 == d_model
                && parameter.blocks.iter().any(|block| is_projection(block.owner))
        });
        let projected = projected.map(|(_, parameter)| parameter.rows() as u64).sum();
        let graph = model.graph();
        let is_head = |node: &&Node| matches!(node, Node::Head { .. });
        let layers = graph.writers().iter().filter_map(|node| node.layer()).max();
        Self {
            d_model,
            layers: layers.map_or(1, |last| last as u64 + 1),
            projected,
            heads: graph.writers().iter().filter(is_head).count() as u64,
            writers: graph.writers().len() as u64,
            readers: graph.readers().len() as u64,
            sites: graph.site_count() as u64,
        }
    }

    /// Numbers that are kept of a token of a sequence: what each site reads, what is formed of it, and attention's
    /// weights; with checkpoints what sites read, and one layer's rest at a time.
    fn a_token(&self, seq: u64, checkpoints: bool) -> u64 {
        let stream = self.sites * self.d_model;
        let rest = self.projected + self.heads * seq;
        stream + if checkpoints { rest / self.layers } else { rest }
    }

    /// Numbers behind the scores: sums, in float64, of all batches and of one, and the chunks that are multiplied.
    fn scores(&self, discovery: &Discovery, examples: u64, seq: u64) -> u64 {
        let places = match discovery.ablation {
            Ablation::Mean => 1,
            Ablation::MeanPositional => seq,
            _ => 0,
        };
        let (rows, group) = EXPANDED;
        let rows = match discovery.positions {
            Positions::All => rows,
            Positions::Key => examples,
        };
        let sums = 2 * self.writers * self.readers + places * self.readers * self.d_model;
        let a_site = self.heads / self.layers * 3;
        2 * sums + (self.writers + group.min(self.readers) + a_site) * rows * self.d_model
    }
}

/// How many sums of gradients there are at once: those of a tree's left sides, and the next chunk's.
fn held_at_once(tuning: &Tuning) -> u64 {
    u64::from(tuning.chunks.next_power_of_two().trailing_zeros()) + 1
}

/// The moments that an optimizer keeps of each number.
fn moments(tuning: &Tuning) -> u64 {
    match tuning.optimizer {
        Algorithm::Sgd => u64::from(tuning.momentum > 0.0),
        Algorithm::Adam | Algorithm::AdamW => 2,
    }
}
