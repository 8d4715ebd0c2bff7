//! The way back: what a pass noted on its way forward, gone over from last to first. One gradient
//! runs along, that of the residual stream; at a write it goes through the projection and through what
//! lies between to the read before, whose share joins the stream's gradient there.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Tensor, TensorId};

use super::ablated_edges::{Edges, Inputs};
use super::{Captured, Embedding, Reading, Unembedding, Writing, rows};
use crate::lora::{Applied, Training};
use crate::ops::activation::Activation;
use crate::ops::attention::Attention;
use crate::ops::backward::{Backward, Rules};
use crate::ops::head_norms::NormGradient;
use crate::ops::{Kept, differentiable, multiply_blocks_into, weight};
use crate::{Result, refuse};

/// Where gradients are put that candle has brought back.
pub(super) type Arrived = Arc<Mutex<Vec<Tensor>>>;

/// One thing that was done.
pub(super) enum Entry {
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

pub(super) struct Read {
    pub(super) reading: Arc<Reading>,
    /// The stream [batch·seq, d_model].
    pub(super) x: Tensor,
    /// What its readers read instead, where edges into it are ablated.
    pub(super) inputs: Option<Inputs>,
    /// batch and seq.
    pub(super) shape: (usize, usize),
    /// What was returned.
    pub(super) output: TensorId,
    /// Parts of its gradient that candle brought.
    pub(super) arrived: Arrived,
    pub(super) applied: Vec<Applied>,
}

/// What a model does between reading and writing, where the pass knows its way back.
#[derive(Clone)]
pub(super) enum Operation {
    Attention(Attention),
    Activation(Activation),
}

/// Such an operation was done.
pub(super) struct Between {
    pub(super) operation: Operation,
    /// Its input [batch, seq, width].
    pub(super) values: Tensor,
    pub(super) input: TensorId,
    pub(super) output: TensorId,
}

pub(super) struct Write {
    pub(super) writing: Arc<Writing>,
    pub(super) z: Z,
    /// What a norm behind the projection normalised [batch·seq, d_model]; formed again where it isn't kept.
    pub(super) projected: Option<Tensor>,
    pub(super) applied: Vec<Applied>,
    pub(super) replaced: Option<Replaced>,
    /// The pass's ablated edges.
    pub(super) edges: Option<Edges>,
}

/// What of a site's output was replaced: no gradient goes back through it.
#[derive(Clone, Copy)]
pub(super) enum Replaced {
    Site,
    Writer { index: usize, of: usize },
}

/// The gradients that run along on the way back.
struct Back {
    /// At the stream [batch·seq, d_model].
    stream: Tensor,
    /// At the differences [writers, batch·seq, d_model] that ablated edges add to the stream.
    differences: Option<Tensor>,
}

/// The input of a projection that writes, and how it came about.
pub(super) enum Z {
    /// As the model gave it, with candle's own notes, and [batch·seq, width] without them.
    ByCandle { given: Tensor, flat: Tensor },
    /// By an operation on what was read, and nothing else.
    Between { between: Between, flat: Tensor },
    /// The same; the operation's input and z are formed again from the stream that was read.
    Checkpoint { operation: Operation, read: TensorId },
}

/// A gradient [kept rows, width].
struct Partial {
    kept: Kept,
    values: Tensor,
}

/// The notes of a pass, in the order in which things were done.
#[derive(Default)]
pub(super) struct Tape {
    entries: Vec<Entry>,
    /// Whose outputs have not been written yet.
    between: Vec<Between>,
}

impl Tape {
    pub(super) fn push(&mut self, entry: Entry) {
        if let Entry::End { .. } = entry {
            self.between.clear();
        }
        self.entries.push(entry);
    }

    pub(super) fn push_between(&mut self, between: Between) {
        self.between.push(between);
    }

    /// How z, and `flat` without candle's notes, came about.
    pub(super) fn origin(&mut self, given: &Tensor, flat: Tensor, checkpoints: bool) -> Z {
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
    pub(super) fn go_back(
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
                    at_reads.extend(self.go_back_from(write, &back, how, adapters, sink)?);
                }
                Entry::Read(read) => {
                    let own = at_reads.extract_if(.., |(output, _)| *output == read.output);
                    let own: Vec<Partial> = own.map(|(_, partial)| partial).collect();
                    // Nothing may have been made of what was read.
                    if let Some(projected) = read.gradient(own)? {
                        read.go_back(&mut back, projected, how.rules, adapters, sink)?;
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
    fn go_back_from(
        &self,
        write: &Write,
        back: &Back,
        how: &Backward,
        adapters: Option<&Training>,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<Option<(TensorId, Partial)>> {
        let (operation, input, values, z) = match &write.z {
            Z::ByCandle { given, flat } => {
                let at_z = write.go_back(flat.clone(), back, how.rules, adapters, sink)?;
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
        let at_z = write.go_back(z, back, how.rules, adapters, sink)?;
        Ok(Some((*input, operation.pull_back(&values, &at_z, how, sink)?)))
    }
}

impl Partial {
    fn of(gradient: &Tensor) -> Result<Self> {
        let kept = Kept::of(gradient)?;
        Ok(Self { values: kept.gather(gradient)?, kept })
    }
}

impl Write {
    /// From the gradient of the stream to that of z [batch·seq, width].
    fn go_back(
        &self,
        z: Tensor,
        back: &Back,
        rules: Rules,
        adapters: Option<&Training>,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<Partial> {
        if let Some(gradients) = self.by_writer(&z, back)? {
            return self.go_back_apart(z, gradients, back, rules, sink);
        }
        let stream = &back.stream;
        let kept = if self.applied.is_empty() { Kept::of(stream)? } else { Kept::All };
        let gradient = self.pull_back_norm(&z, &kept, kept.gather(stream)?, rules, sink)?;
        let at_z = weight::times_transposed(&gradient, &self.writing.weight.tensor)?;
        if let Some(adapters) = adapters {
            let gradients = adapters.backward(&self.applied, &gradient, &at_z)?;
            gradients.into_iter().map(Captured::Adapter).try_for_each(&mut *sink)?;
        }
        let writing = self.writing.clone();
        sink(Captured::Writing { writing, z, kept: kept.clone(), gradient })?;
        Ok(Partial { kept, values: at_z })
    }
}

impl Write {
    /// What the norm behind the projection normalised.
    fn projected(&self, z: &Tensor) -> Result<Tensor> {
        match &self.projected {
            Some(projected) => Ok(projected.clone()),
            None => Ok(weight::times(z, &self.writing.weight.tensor)?),
        }
    }

    /// From the gradient [kept rows, d_model] at what was added to the stream to that at the projection's
    /// output.
    fn pull_back_norm(
        &self,
        z: &Tensor,
        kept: &Kept,
        gradient: Tensor,
        rules: Rules,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<Tensor> {
        let Some(norm) = &self.writing.norm else {
            return Ok(gradient);
        };
        let x = kept.gather(&self.projected(z)?)?;
        sink(Captured::NormWeight(norm.weight_gradient(&x, &gradient)?))?;
        Ok(norm.pull_back(&x, &gradient, rules)?)
    }

    /// The same where the writers' gradients [writers, batch·seq, d_model] differ. With p_u what writer u
    /// projects, P their sum, s = 1/rms(P) and v_u = γ ⊙ g_u, the gradient at p_u is
    /// s v_u − s³ P/d Σ_w ⟨v_w, p_w⟩, and that of γ Σ_w s p_w ⊙ g_w. With s a constant only s v_u is left.
    fn pull_back_norm_apart(
        &self,
        z: &Tensor,
        gradients: Tensor,
        rules: Rules,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<Tensor> {
        let Some(norm) = &self.writing.norm else {
            return Ok(gradients);
        };
        let (writers, rows, d_model) = gradients.dims3()?;
        let parts = Tensor::zeros((writers, rows, d_model), z.dtype(), z.device())?;
        multiply_blocks_into(z, &weight::widened(&self.writing.weight.tensor)?, &parts)?;
        let whole = self.projected(z)?;
        let scale = norm.scales(&whole)?;
        let products = (&parts * &gradients)?;
        let of_gain = products.sum(0)?.broadcast_mul(&scale)?.sum_keepdim(0)?;
        sink(Captured::NormWeight(NormGradient {
            weight: norm.weight.clone(),
            gradient: of_gain,
        }))?;
        let gain = norm.gain()?;
        let own = gradients.broadcast_mul(&gain)?.broadcast_mul(&scale.unsqueeze(0)?)?;
        if rules.norm_scales {
            return Ok(own.contiguous()?);
        }
        let along = products.broadcast_mul(&gain)?.sum(0)?.sum_keepdim(1)?;
        let cube = (scale.powf(3.0)? / d_model as f64)?;
        let common = whole.broadcast_mul(&(along * cube)?)?.unsqueeze(0)?;
        Ok(own.broadcast_sub(&common)?.contiguous()?)
    }

    /// The gradients at the writers' outputs [writers, batch·seq, d_model], where they are not all the
    /// stream's.
    fn by_writer(&self, z: &Tensor, back: &Back) -> Result<Option<Tensor>> {
        let site = self.writing.site;
        let edges = self.edges.as_ref().filter(|edges| edges.changes_gradient(site));
        let writers = match (edges, self.replaced) {
            (Some(edges), _) => edges.writers(site),
            (None, Some(Replaced::Writer { of, .. })) => of,
            (None, Some(Replaced::Site)) => 1,
            (None, None) => return Ok(None),
        };
        let (rows, d_model) = back.stream.dims2()?;
        let stream = back.stream.unsqueeze(0)?.broadcast_as((writers, rows, d_model))?;
        let gradients = match (edges, &back.differences) {
            // A difference is what is ablated less what was written.
            (Some(edges), Some(differences)) => (stream - edges.part(differences, site)?)?,
            // Not the stream's gradient itself, of which a part may be cleared below.
            _ => stream.contiguous()?.copy()?,
        };
        match self.replaced {
            Some(Replaced::Site) => {
                return Ok(Some(Tensor::zeros((1, rows, d_model), z.dtype(), z.device())?));
            }
            Some(Replaced::Writer { index, .. }) => {
                let nothing = Tensor::zeros((1, rows, d_model), z.dtype(), z.device())?;
                gradients.slice_set(&nothing, 0, index)?;
            }
            None => {}
        }
        Ok(Some(gradients))
    }

    /// From the gradients at the writers' outputs to that of z.
    fn go_back_apart(
        &self,
        z: Tensor,
        gradients: Tensor,
        back: &Back,
        rules: Rules,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<Partial> {
        let gradients = self.pull_back_norm_apart(&z, gradients, rules, sink)?;
        let (writers, rows, d_model) = gradients.dims3()?;
        let weight = weight::widened(&self.writing.weight.tensor)?;
        let width = weight.dim(0)? / writers;
        let blocks = weight.reshape((writers, width, d_model))?.transpose(1, 2)?.contiguous()?;
        let at_z = gradients.matmul(&blocks)?.transpose(0, 1)?.contiguous()?;
        let values = at_z.reshape((rows, writers * width))?;
        let (writing, stream) = (self.writing.clone(), back.stream.clone());
        sink(Captured::WritingApart { writing, z, gradients, stream })?;
        Ok(Partial { kept: Kept::All, values })
    }
}

impl Back {
    /// Adds the gradients at readers' inputs to those at the differences.
    fn add_inputs(&mut self, inputs: &Inputs, gradients: &[&Tensor]) -> Result<()> {
        let differences = match self.differences.take() {
            Some(differences) => differences,
            None => inputs.zeros()?,
        };
        inputs.add_to(&differences, gradients)?;
        self.differences = Some(differences);
        Ok(())
    }

    /// The gradient at the embedding's output [batch·seq, d_model], the first writer's.
    fn at_embedding(&self) -> Result<Tensor> {
        match &self.differences {
            Some(differences) => Ok((&self.stream - differences.get(0)?)?),
            None => Ok(self.stream.clone()),
        }
    }
}

impl Read {
    /// What was returned, formed again to the same bits.
    fn again(&self) -> Result<Tensor> {
        let output = match &self.inputs {
            Some(inputs) => inputs.project(&self.reading, &self.x)?,
            None => self.reading.project(&self.reading.normalise(&self.x)?)?,
        };
        let (batch, seq) = self.shape;
        Ok(output.reshape((batch, seq, ()))?)
    }

    /// The gradient at what was returned: of every use that was made of it.
    fn gradient(&self, mut own: Vec<Partial>) -> Result<Option<Partial>> {
        let alone = own.len() == 1
            && self.arrived.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if alone {
            return Ok(own.pop());
        }
        sum(&self.arrived, own)?.map(|sum| Partial::of(&sum)).transpose()
    }

    /// Adds this read's share to the gradient of the stream, and of what stands beside it.
    fn go_back(
        &self,
        back: &mut Back,
        projected: Partial,
        rules: Rules,
        adapters: Option<&Training>,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<()> {
        if let Some(inputs) = &self.inputs {
            return self.go_back_apart(inputs, back, projected, rules, sink);
        }
        let Partial { kept, values: projected } = match self.applied.is_empty() {
            true => projected,
            false => Partial { values: projected.kept.scatter(projected.values)?, kept: Kept::All },
        };
        let normed = weight::times(&projected, &self.reading.weight.tensor)?;
        if let Some(adapters) = adapters {
            let gradients = adapters.backward(&self.applied, &projected, &normed)?;
            gradients.into_iter().map(Captured::Adapter).try_for_each(&mut *sink)?;
        }
        let pulled = self.reading.pull_back(&kept.gather(&self.x)?, &normed, rules)?;
        back.stream = kept.add(&back.stream, pulled)?;
        let (reading, x) = (self.reading.clone(), self.x.clone());
        sink(Captured::Reading { reading, x, kept, normed, projected })
    }

    /// The way back where readers have inputs of their own.
    fn go_back_apart(
        &self,
        inputs: &Inputs,
        back: &mut Back,
        Partial { kept, values }: Partial,
        rules: Rules,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<()> {
        let projected = kept.scatter(values)?;
        let shared = inputs.pull_back(&self.reading, &self.x, &projected, rules)?;
        let gradients: Vec<&Tensor> = shared.iter().map(|input| &input.gradient).collect();
        for gradient in &gradients {
            back.stream = (&back.stream + *gradient)?;
        }
        back.add_inputs(inputs, &gradients)?;
        let (reading, x) = (self.reading.clone(), self.x.clone());
        sink(Captured::ReadingApart { reading, x, inputs: shared, projected })
    }
}

impl Operation {
    fn apply(&self, values: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Activation(activation) => activation.apply(values),
            Self::Attention(attention) => attention.forward(values),
        }
    }

    fn pull_back(
        &self,
        values: &Tensor,
        at_z: &Partial,
        how: &Backward,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<Partial> {
        let Partial { kept, values: gradient } = at_z;
        match self {
            Self::Activation(activation) => {
                let input = kept.gather(&rows(values)?)?;
                let values = activation.pull_back(&input, gradient, how.rules)?;
                Ok(Partial { kept: kept.clone(), values })
            }
            Self::Attention(attention) => {
                let (batch, seq, _) = values.dims3()?;
                let at_z = kept.scatter(gradient.clone())?.reshape((batch, seq, ()))?;
                let (at_values, of_norms) = attention.pull_back(values, &at_z, how)?;
                of_norms.into_iter().map(Captured::NormWeight).try_for_each(sink)?;
                Partial::of(&rows(&at_values)?)
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
