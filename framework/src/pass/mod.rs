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
pub mod hooks;
mod readout;
mod sites;
mod tape;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Tensor, TensorId, Var};

pub use ablated_edges::{Ablated, AblatedEdges, SharedInput};
pub use hooks::Replacement;
pub use readout::Readout;
pub use sites::{Captured, Embedding, Reading, Unembedding, Writing, Written};

use crate::lora::{Applied, Training};
use crate::ops::activation::Activation;
use crate::ops::attention::Attention;
use crate::ops::backward::Running;
pub use crate::ops::backward::{Backward, Rules};
use crate::ops::{add_rows, differentiable, weight};
use crate::pass::cache::Cache;
use crate::weights::parameters::Param;
use crate::{Result, refuse};
use ablated_edges::Edges;
use hooks::Hooks;
use tape::{Between, Entry, Operation, Read, Replaced, Tape, Write};

#[derive(Default)]
struct Record {
    /// Of the metric or loss, while candle goes back through it.
    captured: Vec<Captured>,
    tape: Tape,
    /// Whether a backward pass has used the tape up.
    used_up: bool,
    /// The residual stream as the pass last returned it.
    stream: Option<TensorId>,
    /// The edges that are ablated, once the embedding has said how many rows there are.
    edges: Option<Edges>,
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

    /// The same, with adapters beside the projections; [`Pass::backward`] leaves their gradients too.
    pub fn with_adapters(self, adapters: Option<Training>) -> Self {
        Self { adapters, ..self }
    }

    /// The same, with activation checkpointing or without: of a site whose attention or activation the
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

    /// The same, as far back and by the rules that `how` says. Another backward pass can follow.
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
        let went = tape.go_back(&how, self.adapters.as_ref(), retain, sink);
        let mut record = self.record();
        record.tape = tape;
        record.used_up = !retain;
        went
    }

    /// Refuses a stream other than the one the pass returned last: the way back would miss what was
    /// done to it.
    fn check_stream(&self, x: &Tensor) -> Result<()> {
        if self.record().stream != Some(x.id()) {
            refuse!(
                "this is not the residual stream that the pass returned last; a model changes it \
                 only by pass.write"
            );
        }
        Ok(())
    }

    /// A tensor that gradients come back to, of a value that tracks none.
    fn leaf(&self, anchor: &Var, value: Tensor, arrived: &tape::Arrived) -> Result<Tensor> {
        let arrived = arrived.clone();
        Ok(differentiable(anchor.as_tensor(), value, move |gradient| {
            lock(&arrived).push(gradient.clone());
            Tensor::zeros((), DType::F32, gradient.device())
        })?)
    }

    /// tokens u32 [batch, seq] → the residual stream [batch, seq, d_model].
    pub fn embed(&self, embedding: &Arc<Embedding>, tokens: &Tensor) -> Result<Tensor> {
        let (batch, seq) = tokens.dims2()?;
        let flat = tokens.flatten_all()?;
        let embedded = weight::rows_of(&embedding.tokens.tensor, &flat)?;
        let embedded = match embedding.scale == 1.0 {
            true => embedded,
            false => embedded.affine(embedding.scale, 0.0)?,
        };
        let output = match &embedding.positions {
            None => embedded,
            Some(positions) => (embedded + self.positions(positions, batch, seq)?)?,
        };
        let written = || Written::Embedding { site: 0, output: output.clone() };
        let replaced = self.hooks.show_written(written)?;
        let is_replaced = replaced.is_some();
        let output = match replaced {
            Some(Replacement::Site(new) | Replacement::Writer { output: new, .. }) => {
                like(&new, &output)?
            }
            None => output,
        };
        let edges = match &self.hooks.edges {
            None => None,
            Some(_) if self.adapters.is_some() => refuse!(
                "edges are ablated in a model whose adapters are merged, not while they are trained"
            ),
            Some(edges) => {
                let positions = self.row_positions(batch, seq);
                let edges = Edges::new(edges.clone(), positions, &output)?;
                edges.embedded(0, &output)?;
                Some(edges)
            }
        };
        let stream = output.reshape((batch, seq, ()))?;
        let mut record = self.record();
        record.stream = Some(stream.id());
        record.edges = edges;
        if self.anchor.is_some() {
            let (embedding, tokens) = (embedding.clone(), tokens.clone());
            record.tape.push(Entry::Embed { embedding, tokens, is_replaced });
        }
        Ok(stream)
    }

    /// The position of each row of the pass's tokens.
    fn row_positions(&self, batch: usize, seq: usize) -> Vec<u32> {
        match &self.cache {
            Some(cache) => lock(cache).positions(seq),
            None => (0..batch).flat_map(|_| 0..seq as u32).collect(),
        }
    }

    /// The inputs of a site's readers, where edges into it are ablated.
    fn inputs(&self, site: usize) -> Result<Option<ablated_edges::Inputs>> {
        let edges = self.record().edges.clone();
        edges.map_or(Ok(None), |edges| edges.inputs(site))
    }

    /// The position embeddings [batch·seq, d_model] of the pass's tokens.
    fn positions(&self, positions: &Param, batch: usize, seq: usize) -> Result<Tensor> {
        let table = &positions.tensor;
        if let Some(cache) = &self.cache {
            let index = lock(cache).positions(seq);
            return Ok(weight::rows_of(table, &Tensor::new(index, table.device())?)?);
        }
        let d_model = table.dim(1)?;
        let rows = weight::widened(&table.narrow(0, 0, seq)?)?.unsqueeze(0)?;
        Ok(rows.broadcast_as((batch, seq, d_model))?.reshape((batch * seq, d_model))?)
    }

    /// Causal attention of the `layer`-th attention layer, from 0, over stacked queries, keys and
    /// values [batch, seq, (heads + 2·kv_heads)·d_head] → z [batch, seq, heads·d_head].
    pub fn attend(&self, layer: usize, attention: &Attention, qkv: &Tensor) -> Result<Tensor> {
        if let Some(cache) = &self.cache {
            return lock(cache).attend(layer, attention, qkv);
        }
        self.hooks.show_attention(layer, || Ok(attention.probabilities(qkv)?))?;
        let z = attention.forward_with(qkv, &self.running)?;
        self.note_between(Operation::Attention(attention.clone()), qkv, &z);
        Ok(z)
    }

    /// An MLP's activation, of what it read.
    pub fn activate(&self, activation: Activation, hidden: &Tensor) -> Result<Tensor> {
        let z = activation.apply_with(hidden, &self.running)?;
        self.note_between(Operation::Activation(activation), hidden, &z);
        Ok(z)
    }

    fn note_between(&self, operation: Operation, input: &Tensor, output: &Tensor) {
        if self.anchor.is_some() {
            let (input, values, output) = (input.id(), input.detach(), output.id());
            self.record().tape.push_between(Between { operation, values, input, output });
        }
    }

    /// Reads the stream x [batch, seq, d_model] → projections [batch, seq, readers × width].
    pub fn read(&self, reading: &Arc<Reading>, x: &Tensor) -> Result<Tensor> {
        self.check_stream(x)?;
        let (batch, seq, _) = x.dims3()?;
        let flat = rows(x)?;
        self.hooks.show_read(reading.site, &flat)?;
        let inputs = self.inputs(reading.site)?;
        let (output, applied) = match &inputs {
            Some(inputs) => (inputs.project(reading, &flat)?, Vec::new()),
            None => self.read_stream(reading, &flat)?,
        };
        let output = output.reshape((batch, seq, reading.weight.tensor.dim(0)?))?;
        let Some(anchor) = &self.anchor else {
            return Ok(output);
        };
        let arrived = tape::Arrived::default();
        let output = self.leaf(anchor, output, &arrived)?;
        let (reading, id) = (reading.clone(), output.id());
        let shape = (batch, seq);
        let read = Read { reading, x: flat, inputs, shape, output: id, arrived, applied };
        self.record().tape.push(Entry::Read(read));
        Ok(output)
    }

    /// The projections [rows, readers × width] of the stream [rows, d_model], and what adapters did.
    fn read_stream(&self, reading: &Reading, flat: &Tensor) -> Result<(Tensor, Vec<Applied>)> {
        let normed = reading.normalise(flat)?;
        let output = reading.project(&normed)?;
        let applied = match &self.adapters {
            Some(_) if self.checkpoints => refuse!(
                "activation checkpointing forms again what was read without the adapters beside it; \
                 leave it out where LoRA is trained"
            ),
            Some(adapters) => adapters.read(reading.weight.id, &normed, &output)?,
            None => Vec::new(),
        };
        Ok((output, applied))
    }

    /// Writes z [batch, seq, writers × width] to the stream x: x + z·W (+ bias), or x + norm(z·W).
    pub fn write(&self, writing: &Arc<Writing>, x: &Tensor, z: &Tensor) -> Result<Tensor> {
        self.check_stream(x)?;
        let (batch, seq, d_model) = x.dims3()?;
        let flat = rows(&z.detach())?;
        let projected = weight::times(&flat, &writing.weight.tensor)?;
        let applied = match &self.adapters {
            Some(adapters) => adapters.write(writing.weight.id, &flat, &projected)?,
            None => Vec::new(),
        };
        let (output, scale) = match &writing.norm {
            None => (projected.clone(), None),
            Some(_) if writing.bias.is_some() => {
                refuse!("site {} has a bias before a norm, which has no owner", writing.site)
            }
            Some(norm) => (norm.forward(&projected)?, Some(norm.scales(&projected)?)),
        };
        let written = || Written::Projected {
            writing: writing.clone(),
            z: flat.clone(),
            scale: scale.clone(),
            output: output.clone(),
        };
        let replacement = self.hooks.show_written(written)?;
        let edges = self.record().edges.clone();
        if let Some(edges) = &edges {
            edges.written(writing, &output, || written().values(), replacement.as_ref())?;
        }
        let values = || written().values();
        let mut bias = writing.bias.as_ref().map(|bias| &bias.tensor);
        let (output, replaced) = match replacement {
            None => (output, None),
            Some(_) if self.adapters.is_some() => refuse!(
                "what a site writes is replaced in a model whose adapters are merged, not while they \
                 are trained"
            ),
            Some(Replacement::Site(new)) => {
                bias = bias.filter(|_| !writing.bias_is_written);
                (like(&new, &output)?, Some(Replaced::Site))
            }
            Some(Replacement::Writer { index, of, output: new }) => {
                bias = bias.filter(|_| !writing.bias_is_written);
                let exchanged = writing.exchange((index, of), &values()?, &output, &new)?;
                (exchanged, Some(Replaced::Writer { index, of }))
            }
        };
        let output = add_rows(output, Some(&rows(x)?), bias)?;
        let stream = output.reshape((batch, seq, d_model))?;
        let mut record = self.record();
        record.stream = Some(stream.id());
        if self.anchor.is_some() {
            let projected = (scale.is_some() && !self.checkpoints).then_some(projected);
            let (writing, z) = (writing.clone(), record.tape.origin(z, flat, self.checkpoints));
            let write = Write { writing, z, projected, applied, replaced, edges };
            record.tape.push(Entry::Write(write));
        }
        Ok(stream)
    }

    /// Ends the pass: normalises the stream x [batch, seq, d_model] for reading logits.
    pub fn finish(&self, unembedding: &Arc<Unembedding>, x: &Tensor) -> Result<Readout> {
        self.check_stream(x)?;
        if let Some(cache) = &self.cache {
            lock(cache).advance(x.dim(1)?);
        }
        let flat = rows(x)?;
        self.hooks.show_read(unembedding.site, &flat)?;
        let inputs = self.inputs(unembedding.site)?;
        // Its only reader's own input.
        let flat = match &inputs {
            Some(inputs) => inputs.own(&flat)?.squeeze(0)?,
            None => flat,
        };
        let normed = unembedding.norm.forward(&flat)?;
        let hidden = match &self.anchor {
            None => normed,
            Some(anchor) => {
                let arrived = tape::Arrived::default();
                let hidden = self.leaf(anchor, normed, &arrived)?;
                let unembedding = unembedding.clone();
                self.record().tape.push(Entry::End { unembedding, x: flat, inputs, arrived });
                hidden
            }
        };
        Ok(Readout { hidden, unembedding: unembedding.clone(), record: self.record.clone() })
    }
}

/// A copy of `tensor` in the type and on the device of `other`, whose shape it must have: the stream is
/// added to it in its place, and whoever gave it may give it again.
fn like(tensor: &Tensor, other: &Tensor) -> Result<Tensor> {
    if tensor.dims() != other.dims() {
        refuse!(
            "what replaces a write is {:?}; it must be {:?}, as what it replaces",
            tensor.dims(),
            other.dims()
        );
    }
    Ok(tensor.detach().to_dtype(other.dtype())?.to_device(other.device())?.copy()?)
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

/// [..., width] → [rows, width], contiguous.
fn rows(tensor: &Tensor) -> candle_core::Result<Tensor> {
    let width = tensor.dim(candle_core::D::Minus1)?;
    tensor.reshape(((), width))?.contiguous()
}
