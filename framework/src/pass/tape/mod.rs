//! What a pass has noted on its way forward, and the backward pass over it, from last to first. One gradient
//! runs along, that of the residual stream; at a write it goes through the projection and through what
//! lies between to the read before, whose share joins the stream's gradient there.

mod gradients;
mod operation;
mod read;
mod write;

use std::sync::Arc;

use candle_core::{Tensor, TensorId};

use gradients::{Back, Partial, sum};

pub(super) use gradients::Arrived;
pub(super) use operation::{Between, Operation};
pub(super) use read::Read;
pub(super) use write::{Replaced, Write, Z};

use super::reader_inputs::Inputs;
use super::{Captured, Embedding, Unembedding, rows};
use crate::lora::Training;
use crate::ops::backward::Backward;
use crate::ops::{Kept, differentiable};
use crate::{Result, refuse};

/// One thing that was done.
pub(in crate::pass) enum Entry {
    Embed {
        embedding: Arc<Embedding>,
        tokens: Tensor,
        /// Whether something else stood for its output, so that no gradient reaches it.
        is_replaced: bool,
    },
    Read(Read),
    Write(Write),
    /// x is what the final normalisation reads, `arrived` the gradient at its output.
    End {
        unembedding: Arc<Unembedding>,
        x: Tensor,
        inputs: Option<Inputs>,
        arrived: Arrived,
    },
}

/// The notes of a pass, in the order in which things were done.
#[derive(Default)]
pub(in crate::pass) struct Tape {
    entries: Vec<Entry>,
    /// Whose outputs have not been written yet.
    between: Vec<Between>,
}

impl Tape {
    pub(in crate::pass) fn push(&mut self, entry: Entry) {
        if let Entry::End { .. } = entry {
            self.between.clear();
        }
        self.entries.push(entry);
    }

    pub(in crate::pass) fn push_between(&mut self, between: Between) {
        self.between.push(between);
    }

    /// How z, and `flat` without candle's notes, came about.
    pub(in crate::pass) fn origin(&mut self, given: &Tensor, flat: Tensor, checkpoints: bool) -> Z {
        let made = self.between.iter().position(|between| between.output == given.id());
        match made.map(|index| self.between.swap_remove(index)) {
            Some(between) if self.read(between.input).is_none() => {
                Z::ByCandle { given: given.clone(), flat }
            }
            Some(Between { operation, input, .. }) if checkpoints => {
                Z::Checkpoint { operation, read: input }
            }
            Some(between) => Z::Between { between, flat },
            None => Z::ByCandle { given: given.clone(), flat },
        }
    }

    /// The read that returned a tensor.
    fn read(&self, output: TensorId) -> Option<&Read> {
        self.entries.iter().rev().find_map(|entry| match entry {
            Entry::Read(read) if read.output == output => Some(read),
            _ => None,
        })
    }

    /// Goes back from the gradient that candle has brought to the end, if it has, as `how` says, and
    /// hands on what each operation leaves. Unless the entries are to be retained, each is dropped when it
    /// is done with.
    pub(in crate::pass) fn backward(
        &mut self,
        how: &Backward,
        adapters: Option<&Training>,
        retain: bool,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<()> {
        let Some(Entry::End { unembedding, x, inputs, arrived }) = self.entries.last() else {
            return Ok(());
        };
        let Some(at_hidden) = sum(arrived, Vec::new())? else {
            return Ok(());
        };
        let kept = Kept::of(&at_hidden)?;
        let normed = kept.gather(&at_hidden)?;
        let pulled = unembedding.norm.pull_back(&kept.gather(x)?, &normed, how.rules)?;
        let mut back = Back { stream: kept.scatter(pulled)?, differences: None };
        if let Some(inputs) = inputs {
            back.add_inputs(inputs, &[&back.stream.clone()])?;
        }
        let (unembedding, x) = (unembedding.clone(), x.clone());
        sink(Captured::FinalNorm { unembedding, x, kept, normed })?;
        // Of the reads that an operation between has brought a gradient to.
        let mut at_reads: Vec<(TensorId, Partial)> = Vec::new();
        for index in (0..self.entries.len()).rev() {
            match &self.entries[index] {
                Entry::Write(write) => {
                    at_reads.extend(self.backward_from(write, &back, how, adapters, sink)?);
                }
                Entry::Read(read) => {
                    let own = at_reads.extract_if(.., |(output, _)| *output == read.output);
                    let own: Vec<Partial> = own.map(|(_, partial)| partial).collect();
                    // Nothing may have been made of what was read.
                    if let Some(projected) = read.gradient(own)? {
                        read.backward(&mut back, projected, how.rules, adapters, sink)?;
                    }
                }
                Entry::Embed { is_replaced: true, .. } => {}
                Entry::Embed { embedding, tokens, .. } => sink(Captured::Embedding {
                    embedding: embedding.clone(),
                    tokens: tokens.clone(),
                    gradient: back.at_embedding()?,
                })?,
                Entry::End { .. } => {}
            }
            if !retain {
                self.entries.truncate(index);
            }
        }
        Ok(())
    }

    /// Goes back from a write to what was read: the gradient there, where candle doesn't bring it.
    fn backward_from(
        &self,
        write: &Write,
        back: &Back,
        how: &Backward,
        adapters: Option<&Training>,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<Option<(TensorId, Partial)>> {
        let (operation, input, values, z) = match &write.z {
            Z::ByCandle { given, flat } => {
                let at_z = write.backward(flat.clone(), back, how.rules, adapters, sink)?;
                pull_back_by_candle(given, at_z)?;
                return Ok(None);
            }
            Z::Between { between: Between { operation, input, values, .. }, flat } => {
                (operation, input, values.clone(), flat.clone())
            }
            Z::Checkpoint { operation, read } => {
                let Some(from) = self.read(*read) else {
                    refuse!("the pass has lost what site {} read", write.writing.site);
                };
                let values = from.again()?;
                let z = rows(&operation.apply(&values)?)?;
                (operation, read, values, z)
            }
        };
        let at_z = write.backward(z, back, how.rules, adapters, sink)?;
        Ok(Some((*input, operation.pull_back(&values, &at_z, how, sink)?)))
    }
}

/// Has candle go back from z to the reads it was made of.
fn pull_back_by_candle(z: &Tensor, Partial { kept, values }: Partial) -> Result<()> {
    let gradient = kept.scatter(values)?.reshape(z.shape())?;
    let seed = Tensor::zeros((), z.dtype(), z.device())?;
    differentiable(z, seed, move |_| Ok(gradient.clone()))?.backward()?;
    Ok(())
}
