//! One forward pass, and what it announces. A model's layers read the residual stream and write to
//! it through a [`Pass`]; the pass computes the projections, notes what every writer wrote, and,
//! after a backward pass, holds for every projection its input and its output's gradient.
//!
//! The stream itself tracks no gradient: the pass knows what became of it, and goes back over its own
//! notes. candle differentiates what stands before and behind: the metric, and whatever a
//! model does between reading and writing other than attention and the activations of
//! [`crate::ops::activation`].
//!
//! Nothing else is formed on the way: a head's output over all positions, a reader's gradient, a
//! weight's gradient are all made from these later, for the nodes, positions and rows that are
//! wanted ([`crate::attribution`], [`crate::tuning::gradients`]).

pub mod ablated_edges;
pub mod cache;
mod differences;
mod forward;
pub mod hooks;
mod prefix;
mod reader_inputs;
mod readout;
mod sites;
mod tape;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Tensor, TensorId, Var};

pub use ablated_edges::{Ablated, AblatedEdges};
pub use prefix::Prefix;
pub use readout::Readout;
pub use sites::{
    Captured, Embedding, Reading, Replacement, SharedInput, Unembedding, Writing, Written,
};

use crate::lora::Training;
use crate::ops::backward::Running;
pub use crate::ops::backward::{Backward, Rules};
use crate::ops::weight;
use crate::pass::cache::Cache;
use crate::{Result, memory, refuse};
use differences::Differences;
use hooks::Hooks;
use tape::Tape;

#[derive(Default)]
struct Record {
    /// What the metric or loss has captured, while candle goes back through it.
    captured: Vec<Captured>,
    tape: Tape,
    /// Whether a backward pass has used the tape up.
    used_up: bool,
    /// The residual stream as the pass last returned it.
    stream: Option<TensorId>,
    /// The edges that are ablated, once the embedding has said how many rows there are.
    edges: Option<Differences>,
}

/// One forward pass and, where gradients are wanted, the backward passes that follow it.
#[derive(Clone)]
pub struct Pass {
    /// What gradients flow back to; nothing is tracked without it.
    anchor: Option<Var>,
    /// The tokens before: generation goes on from them.
    cache: Option<Arc<Mutex<Cache>>>,
    /// Low-rank adapters in training.
    adapters: Option<Training>,
    /// Whether what lies between reading and writing is formed again on the way back.
    checkpoints: bool,
    hooks: Hooks,
    /// Where others' beginnings are kept.
    kept: Option<Prefix>,
    /// A plain pass over the same tokens that this one may begin from.
    begins_from: Option<Prefix>,
    /// How the backward pass that is running goes.
    running: Running,
    record: Arc<Mutex<Record>>,
}

impl Pass {
    /// A pass without gradients.
    pub fn forward_only() -> Self {
        Self {
            anchor: None,
            cache: None,
            adapters: None,
            checkpoints: false,
            hooks: Hooks::default(),
            kept: None,
            begins_from: None,
            running: Running::default(),
            record: Arc::default(),
        }
    }

    /// A pass that [`Pass::backward`] can follow.
    ///
    /// # Errors
    /// If candle can't allocate.
    pub fn with_gradients(device: &candle_core::Device) -> Result<Self> {
        Ok(Self { anchor: Some(Var::zeros((), DType::F32, device)?), ..Self::forward_only() })
    }

    /// This pass with adapters beside the projections; [`Pass::backward`] leaves their gradients too.
    pub fn with_adapters(self, adapters: Option<Training>) -> Self {
        Self { adapters, ..self }
    }

    /// This pass with activation checkpointing or without: of a site whose attention or activation the
    /// pass knows, nothing is kept but the stream it read, from which the rest is formed again, to
    /// the same bits, in every backward pass.
    pub fn with_checkpoints(self, checkpoints: bool) -> Self {
        Self { checkpoints, ..self }
    }

    /// A pass without gradients over the tokens that follow those in the cache, which they join.
    pub fn continuing(cache: Arc<Mutex<Cache>>) -> Self {
        Self { cache: Some(cache), ..Self::forward_only() }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }

    /// Runs backward from a scalar and hands `sink` what each operation leaves, from last to first.
    /// What the pass has noted is used up on the way.
    ///
    /// # Errors
    /// If an operation on the way has no gradient, if `sink` fails, or if the pass is used up.
    pub fn backward(
        &self,
        scalar: &Tensor,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<()> {
        self.go_back(scalar, Backward::default(), false, sink)
    }

    /// [`Pass::backward`], as far back and by the rules that `how` says. Another backward pass can follow.
    ///
    /// # Errors
    /// As [`Pass::backward`]'s.
    pub fn backward_retaining(
        &self,
        scalar: &Tensor,
        how: Backward,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<()> {
        self.go_back(scalar, how, true, sink)
    }

    fn go_back(
        &self,
        scalar: &Tensor,
        how: Backward,
        retain: bool,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<()> {
        if self.record().used_up {
            refuse!("a backward pass has used this pass up; let it retain what a second one needs");
        }
        self.record().captured.clear();
        self.running.set(how.clone());
        scalar.backward()?;
        let captured = std::mem::take(&mut self.record().captured);
        captured.into_iter().try_for_each(&mut *sink)?;
        let mut tape = std::mem::take(&mut self.record().tape);
        let went = tape.backward(&how, self.adapters.as_ref(), retain, sink);
        let mut record = self.record();
        record.tape = tape;
        record.used_up = !retain;
        went
    }
}

/// A scalar's value, whatever it was computed in.
///
/// # Errors
/// If the tensor is no scalar.
pub fn scalar(tensor: &Tensor) -> candle_core::Result<f64> {
    tensor.to_dtype(DType::F64)?.to_scalar()
}

/// A vector's values, whatever it was computed in.
///
/// # Errors
/// If the tensor is no vector.
pub fn values(tensor: &Tensor) -> candle_core::Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.to_vec1()
}

/// A lock whose holder may have panicked: what it guards is a list of whole entries.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn capture(record: &Mutex<Record>, captured: Captured) {
    lock(record).captured.push(captured);
}

/// Refuses to form so many numbers in each of so many rows where a CPU has no memory for them and as many
/// again: their activation or their gradient. What a pass has kept so far is taken by then, so that every
/// operation asks for itself.
fn check_room(rows: usize, width: usize, like: &Tensor) -> Result<()> {
    if !like.device().is_cpu() {
        return Ok(());
    }
    let bytes = memory::product(&[2, rows, width, weight::computing(like.dtype()).size_in_bytes()]);
    memory::check(
        &format!("a pass over {rows} tokens"),
        bytes,
        "smaller batches (tuning.micro_batch_size, discovery.batch_size, evaluation_batch_size), shorter examples or \
         activation_checkpointing take less",
    )
}

/// [..., width] → [rows, width], contiguous.
fn rows(tensor: &Tensor) -> candle_core::Result<Tensor> {
    let width = tensor.dim(candle_core::D::Minus1)?;
    tensor.reshape(((), width))?.contiguous()
}
