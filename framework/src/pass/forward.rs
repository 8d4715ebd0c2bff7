//! The forward pass: what a model asks of a [`Pass`] layer by layer. Each step shows the hooks what is read
//! or written, puts what replaces it in its place, and notes on the tape what the backward pass needs.

use std::sync::Arc;

use candle_core::{DType, Tensor, Var};

use super::differences::Differences;
use super::reader_inputs::Inputs;
use super::readout::Readout;
use super::sites::{Embedding, Reading, Replacement, Unembedding, Writing, Written, like};
use super::tape::{Arrived, Between, Entry, Operation, Read, Replaced, Write};
use super::{Pass, check_room, lock, rows};
use crate::lora::Applied;
use crate::ops::activation::Activation;
use crate::ops::attention::Attention;
use crate::ops::{add_rows, differentiable, weight};
use crate::weights::parameters::Param;
use crate::{Result, refuse};

impl Pass {
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
    fn leaf(&self, anchor: &Var, value: Tensor, arrived: &Arrived) -> Result<Tensor> {
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
        let table = &embedding.tokens.tensor;
        check_room(batch * seq, table.dim(1)?, table)?;
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
                let edges = Differences::new(edges.clone(), positions, &output)?;
                edges.embedded(0, &output)?;
                Some(edges)
            }
        };
        self.keep_embedded(&output);
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
    pub(super) fn row_positions(&self, batch: usize, seq: usize) -> Vec<u32> {
        match &self.cache {
            Some(cache) => lock(cache).positions(seq),
            None => (0..batch).flat_map(|_| 0..seq as u32).collect(),
        }
    }

    /// The inputs of a site's readers, where edges into it are ablated.
    fn inputs(&self, site: usize) -> Result<Option<Inputs>> {
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
        let weight = &reading.weight.tensor;
        check_room(batch * seq, weight.dim(0)?, weight)?;
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
        let arrived = Arrived::default();
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
        self.keep_written(writing, &flat);
        let projected = weight::times(&flat, &writing.weight.tensor)?;
        let applied = match &self.adapters {
            Some(adapters) => adapters.write(writing.weight.id, &flat, &projected)?,
            None => Vec::new(),
        };
        let (output, scale) = writing.normalise(&projected)?;
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
                let arrived = Arrived::default();
                let hidden = self.leaf(anchor, normed, &arrived)?;
                let unembedding = unembedding.clone();
                self.record().tape.push(Entry::End { unembedding, x: flat, inputs, arrived });
                hidden
            }
        };
        Ok(Readout { hidden, unembedding: unembedding.clone(), record: self.record.clone() })
    }
}
