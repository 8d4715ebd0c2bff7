//! What a circuit does, looked at node by node: direct effects on the logits, where heads look, which paths
//! move a metric, and a table of roles. Each analysis is hooks of the pass over batches of examples, and
//! works on every model and task; command `analyze` and `analyses` in an experiment run them.
//!
//! A number of an example is the mean over its keys, and what is returned the mean over examples.

mod attention;
mod examples;
mod findings;
mod heat_map;
mod lens;
mod logits;
mod paths;
mod request;
mod roles;

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

pub use attention::{Attention, HeadLooks, Look, Pattern};
pub use examples::{Caps, Observed, ObservedKey};
pub use findings::{Findings, Table};
pub use heat_map::{HeatMap, Panel};
pub use lens::{Answer, Lens};
pub use logits::Logits;
pub use paths::{PathEffect, Paths};
pub use request::{Name, Request, strongest};
pub use roles::{Between, Role, Roles};

use crate::data::example::{Batch, Example};
use crate::evaluation::ablation::Ablation;
use crate::evaluation::answers::KeyRow;
use crate::evaluation::metric::PatchingMetric;
use crate::graph::Node;
use crate::model::Model;
use crate::peers::Peers;
use crate::progress::Report;

/// Shares of attention below this are next to nothing in a heat map.
const LEAST_SHARE: f64 = 0.01;

/// What is looked at, and how.
pub struct Analysis<'a> {
    pub model: &'a dyn Model,
    pub metric: &'a dyn PatchingMetric,
    /// At least one.
    pub examples: &'a [Example],
    /// What is read along a path that is patched.
    pub ablation: Ablation,
    pub batch_size: usize,
    pub report: &'a Report<'a>,
    /// The processes that share the batches.
    pub peers: &'a dyn Peers,
}

/// A node and a number of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeEffect {
    pub node: Node,
    pub effect: f64,
}

/// What hooks of a pass have shown so far.
struct Shown<T>(Arc<Mutex<Vec<T>>>);

impl<T> Shown<T> {
    fn new() -> Self {
        Self(Arc::default())
    }

    /// A handle on this collection, for a hook to hold.
    fn handle(&self) -> Self {
        Self(self.0.clone())
    }

    fn push(&self, value: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(value);
    }

    fn take(&self) -> Vec<T> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What each of a batch's keys counts in a mean over `examples` examples.
fn weights(batch: &Batch, keys: &[KeyRow], examples: usize) -> Vec<f64> {
    let of = |&(example, ..): &KeyRow| {
        1.0 / (batch.examples[example].keys.len() as f64 * examples as f64)
    };
    keys.iter().map(of).collect()
}

/// The rows that predict a batch's keys.
fn rows(keys: &[KeyRow]) -> Vec<u32> {
    keys.iter().map(|&(.., row)| row).collect()
}
