//! One forward pass, and what it announces. A model's layers read the residual stream and write to
//! it through a [`Pass`]; the pass computes the projections, notes what every writer wrote, and,
//! after a backward pass, holds for every projection its input and its output's gradient.
//!
//! Nothing else is formed on the way: a head's output over all positions, a reader's gradient, a
//! weight's gradient are all made from these later, for the nodes, positions and rows that are
//! wanted ([`crate::discovery`], [`crate::gradients`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Tensor, Var};

use crate::Result;
use crate::cache::Cache;
use crate::lora::{AdapterGradients, Training};
use crate::ops::attention::{self, Attention};
use crate::ops::cross_entropy::{self, Target};
use crate::ops::norm::Norm;
use crate::ops::{Kept, differentiable, differentiable2};
use crate::parameters::Param;

/// Token embedding, and learned position embedding where the model has one.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// [vocabulary, d_model]
    pub tokens: Param,
    /// [positions, d_model]
    pub positions: Option<Param>,
}

/// How a site reads the residual stream: normalise, then project.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The site's index in the model's graph.
    pub site: usize,
    pub norm: Norm,
    /// [readers × width, d_model], one block a reader of the site, in the graph's order.
    pub weight: Param,
    /// [readers × width, 1]
    pub bias: Option<Param>,
}

/// How a site writes to the residual stream: project, then add.
#[derive(Clone, Debug)]
pub struct Writing {
    /// The site's index in the model's graph.
    pub site: usize,
    /// [writers × width, d_model], one block a writer of the site, in the graph's order.
    pub weight: Param,
    /// [1, d_model]
    pub bias: Option<Param>,
    /// Whether the bias is part of what the site's only writer writes.
    pub bias_is_written: bool,
}

/// Final normalisation and projection to the vocabulary.
#[derive(Clone, Debug)]
pub struct Unembedding {
    /// The site's index in the model's graph.
    pub site: usize,
    pub norm: Norm,
    /// [vocabulary, d_model]
    pub weight: Param,
}

/// What one site wrote.
#[derive(Clone, Debug)]
pub enum Written {
    /// The embedding's output [batch·seq, d_model].
    Embedding { site: usize, output: Tensor },
    /// z [batch·seq, writers × width], of which a writer's output is its columns times its rows of
    /// the weight.
    Projected { writing: Arc<Writing>, z: Tensor },
}

/// What one operation leaves of a backward pass. All tensors are [batch·seq or rows, width].
#[derive(Clone, Debug)]
pub enum Captured {
    /// The gradient at the embedding's output.
    Embedding { embedding: Arc<Embedding>, tokens: Tensor, gradient: Tensor },
    /// x is the residual stream that was read, `normed` the gradient at the normalised stream,
    /// `projected` the gradient at the projection's output.
    Reading { reading: Arc<Reading>, x: Tensor, normed: Tensor, projected: Tensor },
    /// z is the projection's input, `gradient` the one at its output.
    Writing { writing: Arc<Writing>, z: Tensor, gradient: Tensor },
    /// The final normalisation: the stream it read and the gradient at its output.
    FinalNorm { unembedding: Arc<Unembedding>, x: Tensor, normed: Tensor },
    /// Logits [rows, vocabulary] that were asked for: the hidden states and the logits' gradient.
    Logits { unembedding: Arc<Unembedding>, hidden: Tensor, gradient: Tensor },
    /// A cross-entropy, scaled by `factor`.
    CrossEntropy {
        unembedding: Arc<Unembedding>,
        hidden: Tensor,
        targets: Arc<Vec<Target>>,
        factor: f64,
    },
    /// The gradients of a low-rank adapter's own parameters.
    Adapter(AdapterGradients),
}

#[derive(Default)]
struct Record {
    written: Vec<Written>,
    captured: Vec<Captured>,
}

/// One forward pass and, where gradients are wanted, the backward passes that follow it.
#[derive(Clone)]
pub struct Pass {
    /// What gradients flow back to; nothing is tracked without it.
    anchor: Option<Var>,
    /// Stands in for the embedding's output: EAP-IG's interpolated inputs.
    input: Option<Tensor>,
    /// The tokens before: generation goes on from them.
    cache: Option<Arc<Mutex<Cache>>>,
    /// Low-rank adapters in training.
    adapters: Option<Training>,
    /// How far back the backward pass that is running goes.
    since: attention::Since,
    record: Arc<Mutex<Record>>,
}

impl Pass {
    /// A pass without gradients.
    pub fn forward_only() -> Self {
        Self {
            anchor: None,
            input: None,
            cache: None,
            adapters: None,
            since: Arc::default(),
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

    /// The same, with `input` [batch·seq, d_model] in place of the embedding's output.
    pub fn with_input(self, input: Tensor) -> Self {
        Self { input: Some(input), ..self }
    }

    /// The same, with adapters beside the projections; [`Pass::backward`] leaves their gradients too.
    pub fn with_adapters(self, adapters: Option<Training>) -> Self {
        Self { adapters, ..self }
    }

    /// A pass without gradients over the tokens that follow those in the cache, which they join.
    pub fn continuing(cache: Arc<Mutex<Cache>>) -> Self {
        Self { cache: Some(cache), ..Self::forward_only() }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }

    /// What was written, in computation order.
    pub fn written(&self) -> Vec<Written> {
        self.record().written.clone()
    }

    /// Runs backward from a scalar and returns what each operation left.
    ///
    /// # Errors
    /// If an operation on the way has no gradient.
    pub fn backward(&self, scalar: &Tensor) -> Result<Vec<Captured>> {
        self.backward_from(scalar, Vec::new())
    }

    /// The same, but only at and behind a position of each sequence, given for all or for none;
    /// before it gradients come out zero. No gradient behind depends on one before, so those wanted
    /// are whole.
    ///
    /// # Errors
    /// As [`Pass::backward`]'s.
    pub fn backward_from(&self, scalar: &Tensor, from: Vec<usize>) -> Result<Vec<Captured>> {
        self.record().captured.clear();
        *lock(&self.since) = from;
        scalar.backward()?;
        Ok(std::mem::take(&mut self.record().captured))
    }

    /// tokens u32 [batch, seq] → the residual stream [batch, seq, d_model].
    pub fn embed(&self, embedding: &Arc<Embedding>, tokens: &Tensor) -> Result<Tensor> {
        let (batch, seq) = tokens.dims2()?;
        let flat = tokens.flatten_all()?;
        let output = match &self.input {
            Some(input) => input.clone(),
            None => {
                let embedded = embedding.tokens.tensor.index_select(&flat, 0)?;
                match &embedding.positions {
                    None => embedded,
                    Some(positions) => (embedded + self.positions(positions, batch, seq)?)?,
                }
            }
        };
        let d_model = output.dim(1)?;
        self.record().written.push(Written::Embedding { site: 0, output: output.clone() });
        let shape = (batch, seq, d_model);
        let Some(anchor) = &self.anchor else {
            return Ok(output.reshape(shape)?);
        };
        let (record, embedding, tokens) = (self.record.clone(), embedding.clone(), tokens.clone());
        let output = output.copy()?.reshape(shape)?;
        Ok(differentiable(anchor.as_tensor(), output, move |gradient| {
            capture(
                &record,
                Captured::Embedding {
                    embedding: embedding.clone(),
                    tokens: tokens.clone(),
                    gradient: rows(gradient)?,
                },
            );
            Tensor::zeros((), DType::F32, gradient.device())
        })?)
    }

    /// The position embeddings [batch·seq, d_model] of the pass's tokens.
    fn positions(&self, positions: &Param, batch: usize, seq: usize) -> Result<Tensor> {
        let table = &positions.tensor;
        if let Some(cache) = &self.cache {
            let index = lock(cache).positions(seq);
            return Ok(table.index_select(&Tensor::new(index, table.device())?, 0)?);
        }
        let d_model = table.dim(1)?;
        let rows = table.narrow(0, 0, seq)?.unsqueeze(0)?;
        Ok(rows.broadcast_as((batch, seq, d_model))?.reshape((batch * seq, d_model))?)
    }

    /// Causal attention of the `layer`-th attention layer, from 0, over stacked queries, keys and
    /// values [batch, seq, (heads + 2·kv_heads)·d_head] → z [batch, seq, heads·d_head].
    pub fn attend(&self, layer: usize, attention: &Attention, qkv: &Tensor) -> Result<Tensor> {
        match &self.cache {
            None => Ok(attention.forward_since(qkv, &self.since)?),
            Some(cache) => lock(cache).attend(layer, attention, qkv),
        }
    }

    /// Reads the stream x [batch, seq, d_model] → projections [batch, seq, readers × width].
    pub fn read(&self, reading: &Arc<Reading>, x: &Tensor) -> Result<Tensor> {
        let (batch, seq, _) = x.dims3()?;
        let flat = rows(&x.detach())?;
        let normed = reading.norm.forward(&flat)?;
        let mut output = normed.matmul(&reading.weight.tensor.t()?)?;
        if let Some(bias) = &reading.bias {
            output = output.broadcast_add(&bias.tensor.t()?)?;
        }
        let adapted = match &self.adapters {
            Some(adapters) => adapters.read(reading.weight.id, &normed, &output)?,
            None => Vec::new(),
        };
        let output = output.reshape((batch, seq, reading.weight.tensor.dim(0)?))?;
        let (record, adapters) = (self.record.clone(), self.adapters.clone());
        let reading = reading.clone();
        Ok(differentiable(x, output, move |gradient| {
            let projected = rows(gradient)?;
            let kept = Kept::of(&projected)?;
            let normed = kept.gather(&projected)?.matmul(&reading.weight.tensor)?;
            let normed = kept.scatter(normed)?;
            if let Some(adapters) = &adapters {
                let gradients = adapters.backward(&adapted, &projected, &normed)?;
                gradients.into_iter().for_each(|g| capture(&record, Captured::Adapter(g)));
            }
            let pulled = kept.gather(&normed)?;
            let pulled = kept.scatter(reading.norm.pull_back(&kept.gather(&flat)?, &pulled)?)?;
            capture(
                &record,
                Captured::Reading { reading: reading.clone(), x: flat.clone(), normed, projected },
            );
            pulled.reshape((batch, seq, pulled.dim(1)?))
        })?)
    }

    /// Writes z [batch, seq, writers × width] to the stream x: x + z·W (+ bias).
    pub fn write(&self, writing: &Arc<Writing>, x: &Tensor, z: &Tensor) -> Result<Tensor> {
        let (batch, seq, d_model) = x.dims3()?;
        let flat = rows(&z.detach())?;
        let mut output = flat.matmul(&writing.weight.tensor)?;
        if let Some(bias) = &writing.bias {
            output = output.broadcast_add(&bias.tensor)?;
        }
        let adapted = match &self.adapters {
            Some(adapters) => adapters.write(writing.weight.id, &flat, &output)?,
            None => Vec::new(),
        };
        let output = (output + rows(&x.detach())?)?.reshape((batch, seq, d_model))?;
        self.record()
            .written
            .push(Written::Projected { writing: writing.clone(), z: flat.clone() });
        let (record, adapters) = (self.record.clone(), self.adapters.clone());
        let writing = writing.clone();
        Ok(differentiable2([x, z], output, move |gradient| {
            let at_output = rows(gradient)?;
            let kept = Kept::of(&at_output)?;
            let at_z = kept.gather(&at_output)?.matmul(&writing.weight.tensor.t()?)?;
            let at_z = kept.scatter(at_z)?;
            if let Some(adapters) = &adapters {
                let gradients = adapters.backward(&adapted, &at_output, &at_z)?;
                gradients.into_iter().for_each(|g| capture(&record, Captured::Adapter(g)));
            }
            capture(
                &record,
                Captured::Writing {
                    writing: writing.clone(),
                    z: flat.clone(),
                    gradient: at_output,
                },
            );
            let at_z = at_z.reshape((batch, seq, at_z.dim(1)?))?;
            Ok([gradient.clone(), at_z])
        })?)
    }

    /// Ends the pass: normalises the stream x [batch, seq, d_model] for reading logits.
    pub fn finish(&self, unembedding: &Arc<Unembedding>, x: &Tensor) -> Result<Readout> {
        if let Some(cache) = &self.cache {
            lock(cache).advance(x.dim(1)?);
        }
        let stream = x.flatten(0, 1)?;
        let flat = stream.detach();
        let normed = unembedding.norm.forward(&flat)?;
        let (record, captured) = (self.record.clone(), unembedding.clone());
        let hidden = differentiable(&stream, normed, move |gradient| {
            capture(
                &record,
                Captured::FinalNorm {
                    unembedding: captured.clone(),
                    x: flat.clone(),
                    normed: gradient.clone(),
                },
            );
            let kept = Kept::of(gradient)?;
            kept.scatter(captured.norm.pull_back(&kept.gather(&flat)?, &kept.gather(gradient)?)?)
        })?;
        Ok(Readout { hidden, unembedding: unembedding.clone(), record: self.record.clone() })
    }
}

/// A scalar's value, whatever it was computed in.
///
/// # Errors
/// If the tensor is no scalar.
pub fn scalar(tensor: &Tensor) -> candle_core::Result<f64> {
    tensor.to_dtype(DType::F64)?.to_scalar()
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

/// The end of a forward pass: logits and losses, computed only for the rows that are asked for. A
/// row is `example · seq + position` in the batch.
pub struct Readout {
    /// [batch·seq, d_model]
    hidden: Tensor,
    unembedding: Arc<Unembedding>,
    record: Arc<Mutex<Record>>,
}

impl Readout {
    fn select(&self, rows: &[u32]) -> Result<Tensor> {
        let index = Tensor::new(rows, self.hidden.device())?;
        Ok(self.hidden.index_select(&index, 0)?)
    }

    /// Differentiable logits [rows, vocabulary].
    pub fn logits(&self, rows: &[u32]) -> Result<Tensor> {
        let selected = self.select(rows)?;
        let hidden = selected.detach();
        let weight = self.unembedding.weight.tensor.clone();
        let output = hidden.matmul(&weight.t()?)?;
        let (record, unembedding) = (self.record.clone(), self.unembedding.clone());
        Ok(differentiable(&selected, output, move |gradient| {
            capture(
                &record,
                Captured::Logits {
                    unembedding: unembedding.clone(),
                    hidden: hidden.clone(),
                    gradient: gradient.clone(),
                },
            );
            gradient.matmul(&weight)
        })?)
    }

    /// The differentiable scalar Σ weight · (−log p(token)), a target a row.
    pub fn cross_entropy(&self, rows: &[u32], targets: Vec<Target>) -> Result<Tensor> {
        let selected = self.select(rows)?;
        let hidden = selected.detach();
        let tracked = selected.track_op();
        let weight = &self.unembedding.weight.tensor;
        let result = cross_entropy::weighted(&hidden, weight, &targets, tracked)?;
        let loss = Tensor::new(result.loss, hidden.device())?.to_dtype(hidden.dtype())?;
        let Some(at_hidden) = result.gradient else {
            return Ok(loss);
        };
        let (record, unembedding) = (self.record.clone(), self.unembedding.clone());
        let targets = Arc::new(targets);
        Ok(differentiable(&selected, loss, move |gradient| {
            let factor = scalar(gradient)?;
            capture(
                &record,
                Captured::CrossEntropy {
                    unembedding: unembedding.clone(),
                    hidden: hidden.clone(),
                    targets: targets.clone(),
                    factor,
                },
            );
            at_hidden.affine(factor, 0.0)
        })?)
    }
}
