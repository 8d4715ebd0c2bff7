//! A write to the residual stream, and its backward pass: from the stream's gradient, through the norm
//! behind the projection where there is one, to the gradient at the projection's input.

use std::sync::Arc;

use candle_core::{Tensor, TensorId};

use super::gradients::{Back, Partial};
use super::operation::{Between, Operation};
use crate::Result;
use crate::lora::{Applied, Training};
use crate::ops::backward::Rules;
use crate::ops::norm::NormGradient;
use crate::ops::{Kept, multiply_blocks_into, weight};
use crate::pass::differences::Differences;
use crate::pass::{Captured, Writing};

/// A write that was done.
pub(in crate::pass) struct Write {
    pub(in crate::pass) writing: Arc<Writing>,
    pub(in crate::pass) z: Z,
    /// What a norm behind the projection normalised [batch·seq, d_model]; formed again where it isn't kept.
    pub(in crate::pass) projected: Option<Tensor>,
    pub(in crate::pass) applied: Vec<Applied>,
    pub(in crate::pass) replaced: Option<Replaced>,
    /// The pass's ablated edges.
    pub(in crate::pass) edges: Option<Differences>,
}

/// What of a site's output was replaced: no gradient goes back through it.
#[derive(Clone, Copy)]
pub(in crate::pass) enum Replaced {
    Site,
    Writer { index: usize, of: usize },
}

/// The input of a projection that writes, and how it came about.
pub(in crate::pass) enum Z {
    /// As the model gave it, with candle's own notes, and [batch·seq, width] without them.
    ByCandle { given: Tensor, flat: Tensor },
    /// By an operation on what was read, and nothing else.
    Between { between: Between, flat: Tensor },
    /// By an operation on what was read, of which nothing is kept: its input and z are formed again from
    /// the stream that was read.
    Checkpoint { operation: Operation, read: TensorId },
}

impl Write {
    /// From the gradient of the stream to that of z [batch·seq, width].
    pub(super) fn backward(
        &self,
        z: Tensor,
        back: &Back,
        rules: Rules,
        adapters: Option<&Training>,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<Partial> {
        if let Some(gradients) = self.by_writer(&z, back)? {
            return self.backward_by_part(z, gradients, back, rules, sink);
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

    /// The gradients at the writers' shares of the projection's output, from those at what each added to
    /// the stream [writers, batch·seq, d_model], where these differ. With p_u what writer u
    /// projects, P their sum, s = 1/rms(P) and v_u = γ ⊙ g_u, the gradient at p_u is
    /// s v_u − s³ P/d Σ_w ⟨v_w, p_w⟩, and that of γ Σ_w s p_w ⊙ g_w. With s a constant only s v_u is left.
    fn pull_back_norm_by_writer(
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
    fn backward_by_part(
        &self,
        z: Tensor,
        gradients: Tensor,
        back: &Back,
        rules: Rules,
        sink: &mut dyn FnMut(Captured) -> Result<()>,
    ) -> Result<Partial> {
        let gradients = self.pull_back_norm_by_writer(&z, gradients, rules, sink)?;
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
