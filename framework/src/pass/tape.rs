//! The way back: what a pass noted on its way forward, gone over from last to first. One gradient
//! runs along, that of the residual stream; at a write it goes through the projection and through what
//! lies between to the read before, whose share joins the stream's gradient there.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Tensor, TensorId};

use super::{Captured, Embedding, Reading, Unembedding, Writing, rows};
use crate::Result;
use crate::lora::{Applied, Training};
use crate::ops::activation::Activation;
use crate::ops::attention::Attention;
use crate::ops::{Kept, differentiable};

/// Where gradients are put that candle has brought back.
pub(super) type Arrived = Arc<Mutex<Vec<Tensor>>>;

/// One thing that was done.
pub(super) enum Entry {
    Embed {
        embedding: Arc<Embedding>,
        tokens: Tensor,
    },
    Read(Read),
    Between(Between),
    Write(Write),
    /// `arrived` is the gradient at the final normalisation's output.
    End {
        unembedding: Arc<Unembedding>,
        x: Tensor,
        arrived: Arrived,
    },
}

pub(super) struct Read {
    pub(super) reading: Arc<Reading>,
    /// The stream [batch·seq, d_model].
    pub(super) x: Tensor,
    /// What was returned.
    pub(super) output: TensorId,
    /// Parts of its gradient that candle brought.
    pub(super) arrived: Arrived,
    pub(super) applied: Vec<Applied>,
}

/// What a model does between reading and writing, where the pass knows its way back.
pub(super) struct Between {
    pub(super) operation: Operation,
    /// Its input [batch, seq, width].
    pub(super) values: Tensor,
    pub(super) input: TensorId,
    pub(super) output: TensorId,
}

pub(super) enum Operation {
    Attention(Attention),
    Activation(Activation),
}

pub(super) struct Write {
    pub(super) writing: Arc<Writing>,
    /// As the model gave it, with candle's own notes of how it came about.
    pub(super) z: Tensor,
    /// The same [batch·seq, width], without them.
    pub(super) flat: Tensor,
    pub(super) applied: Vec<Applied>,
}

/// A gradient [kept rows, width].
struct Partial {
    kept: Kept,
    values: Tensor,
}

/// The notes of a pass, in the order in which things were done.
#[derive(Default)]
pub(super) struct Tape(Vec<Entry>);

impl Tape {
    pub(super) fn push(&mut self, entry: Entry) {
        self.0.push(entry);
    }

    /// Goes back from the gradient that candle has brought to the end, if it has, no further than
    /// position `from[b]` of sequence b, and notes what each operation leaves.
    pub(super) fn go_back(
        &self,
        from: &[usize],
        adapters: Option<&Training>,
        captured: &mut Vec<Captured>,
    ) -> Result<()> {
        let Some(Entry::End { unembedding, x, arrived }) = self.0.last() else {
            return Ok(());
        };
        let Some(at_hidden) = sum(arrived, Vec::new())? else {
            return Ok(());
        };
        let kept = Kept::of(&at_hidden)?;
        let normed = kept.gather(&at_hidden)?;
        let pulled = unembedding.norm.pull_back(&kept.gather(x)?, &normed)?;
        let mut stream = kept.scatter(pulled)?;
        let (unembedding, x) = (unembedding.clone(), x.clone());
        captured.push(Captured::FinalNorm { unembedding, x, kept, normed });
        // Of the reads that an operation between has brought a gradient to.
        let mut at_reads: Vec<(TensorId, Partial)> = Vec::new();
        for entry in self.0.iter().rev() {
            match entry {
                Entry::Write(write) => {
                    let at_z = write.go_back(&stream, adapters, captured)?;
                    match self.between(&write.z) {
                        Some(between) => {
                            at_reads.push((between.input, between.pull_back(&at_z, from)?));
                        }
                        None => pull_back_by_candle(&write.z, at_z)?,
                    }
                }
                Entry::Between(_) | Entry::End { .. } => {}
                Entry::Read(read) => {
                    let own = at_reads.extract_if(.., |(output, _)| *output == read.output);
                    let own: Vec<Partial> = own.map(|(_, partial)| partial).collect();
                    // Nothing may have been made of what was read.
                    if let Some(projected) = read.gradient(own)? {
                        stream = read.go_back(&stream, projected, adapters, captured)?;
                    }
                }
                Entry::Embed { embedding, tokens } => captured.push(Captured::Embedding {
                    embedding: embedding.clone(),
                    tokens: tokens.clone(),
                    gradient: stream.clone(),
                }),
            }
        }
        Ok(())
    }

    /// The operation that made `z` of nothing but what was read.
    fn between(&self, z: &Tensor) -> Option<&Between> {
        let between = self.0.iter().rev().find_map(|entry| match entry {
            Entry::Between(between) if between.output == z.id() => Some(between),
            _ => None,
        })?;
        let is_read =
            |entry: &Entry| matches!(entry, Entry::Read(read) if read.output == between.input);
        self.0.iter().any(is_read).then_some(between)
    }
}

impl Partial {
    fn of(gradient: &Tensor) -> Result<Self> {
        let kept = Kept::of(gradient)?;
        Ok(Self { values: kept.gather(gradient)?, kept })
    }
}

impl Write {
    /// From the gradient of the stream to that of z.
    fn go_back(
        &self,
        stream: &Tensor,
        adapters: Option<&Training>,
        captured: &mut Vec<Captured>,
    ) -> Result<Partial> {
        let kept = if self.applied.is_empty() { Kept::of(stream)? } else { Kept::All };
        let gradient = kept.gather(stream)?;
        let at_z = gradient.matmul(&self.writing.weight.tensor.t()?)?;
        if let Some(adapters) = adapters {
            let gradients = adapters.backward(&self.applied, &gradient, &at_z)?;
            captured.extend(gradients.into_iter().map(Captured::Adapter));
        }
        captured.push(Captured::Writing {
            writing: self.writing.clone(),
            z: self.flat.clone(),
            kept: kept.clone(),
            gradient,
        });
        Ok(Partial { kept, values: at_z })
    }
}

impl Read {
    /// The gradient at what was returned: of every use that was made of it.
    fn gradient(&self, mut own: Vec<Partial>) -> Result<Option<Partial>> {
        let alone = own.len() == 1
            && self.arrived.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if alone {
            return Ok(own.pop());
        }
        sum(&self.arrived, own)?.map(|sum| Partial::of(&sum)).transpose()
    }

    /// Adds this read's share to the gradient of the stream.
    fn go_back(
        &self,
        stream: &Tensor,
        projected: Partial,
        adapters: Option<&Training>,
        captured: &mut Vec<Captured>,
    ) -> Result<Tensor> {
        let Partial { kept, values: projected } = match self.applied.is_empty() {
            true => projected,
            false => Partial { values: projected.kept.scatter(projected.values)?, kept: Kept::All },
        };
        let normed = projected.matmul(&self.reading.weight.tensor)?;
        if let Some(adapters) = adapters {
            let gradients = adapters.backward(&self.applied, &projected, &normed)?;
            captured.extend(gradients.into_iter().map(Captured::Adapter));
        }
        let pulled = self.reading.norm.pull_back(&kept.gather(&self.x)?, &normed)?;
        let stream = kept.add(stream, &pulled)?;
        let (reading, x) = (self.reading.clone(), self.x.clone());
        captured.push(Captured::Reading { reading, x, kept, normed, projected });
        Ok(stream)
    }
}

impl Between {
    fn pull_back(&self, at_z: &Partial, from: &[usize]) -> Result<Partial> {
        let Partial { kept, values } = at_z;
        match &self.operation {
            Operation::Activation(activation) => {
                let input = kept.gather(&rows(&self.values)?)?;
                Ok(Partial { kept: kept.clone(), values: activation.pull_back(&input, values)? })
            }
            Operation::Attention(attention) => {
                let (batch, seq, _) = self.values.dims3()?;
                let at_z = kept.scatter(values.clone())?.reshape((batch, seq, ()))?;
                Partial::of(&rows(&attention.pull_back(&self.values, &at_z, from)?)?)
            }
        }
    }
}

/// The sum [batch·seq, width] of gradients that candle has brought, taken away, and of others.
fn sum(arrived: &Arrived, own: Vec<Partial>) -> Result<Option<Tensor>> {
    let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
    let scattered = own.into_iter().map(|Partial { kept, values }| kept.scatter(values));
    let mut sum: Option<Tensor> = None;
    for gradient in scattered.chain(arrived.drain(..).map(Ok)) {
        let gradient = rows(&gradient?)?;
        sum = Some(match sum {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        });
    }
    Ok(sum)
}

/// Has candle go back from z to the reads it was made of.
fn pull_back_by_candle(z: &Tensor, Partial { kept, values }: Partial) -> Result<()> {
    let gradient = kept.scatter(values)?.reshape(z.shape())?;
    let seed = Tensor::zeros((), z.dtype(), z.device())?;
    differentiable(z, seed, move |_| Ok(gradient.clone()))?.backward()?;
    Ok(())
}
