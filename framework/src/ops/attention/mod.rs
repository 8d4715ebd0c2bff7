//! Causal softmax attention from stacked queries, keys and values, with grouped heads; optionally with
//! norms on queries and keys, a rotary embedding, a soft cap on scores and a sliding window.
//!
//! Training and evaluation pad sequences on the right, so the causal mask alone hides the padding from
//! every token. Generation pads them on the left and goes on from the keys and values of the tokens
//! before ([`Attention::extend`]), without a gradient.

mod composed;
mod fused;
mod geometry;
mod head_norms;
mod tile;

use candle_core::{Result, Tensor};

pub use geometry::Attention;
pub use head_norms::HeadNorms;

use super::backward::{Backward, Rules, Running};
use super::composed::pull_back;
use super::norm::NormGradient;
use super::{by_dtype, differentiable, is_fused};

impl Attention {
    /// What each query attends to, [batch, heads, queries, keys], of qkv [batch, seq, (heads +
    /// 2·kv_heads)·d_head]. The attention itself never forms this; it is for looking at.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn probabilities(&self, qkv: &Tensor) -> Result<Tensor> {
        composed::all_probabilities(self, &self.normed(&qkv.detach())?)
    }

    /// qkv [batch, seq, (heads + 2·kv_heads)·d_head] → z [batch, seq, heads·d_head].
    pub fn forward(&self, qkv: &Tensor) -> Result<Tensor> {
        self.forward_with(qkv, &Running::default())
    }

    /// [`Attention::forward`], whose backward pass goes as `running` says by then.
    pub(crate) fn forward_with(&self, qkv: &Tensor, running: &Running) -> Result<Tensor> {
        if let Some(rotary) = &self.rotary {
            rotary.check(qkv.dim(1)?)?;
        }
        let input = qkv.detach().contiguous()?;
        let normed = self.normed(&input)?;
        let output = match is_fused(&normed) {
            true => by_dtype!(normed, T => self.forward_in::<T>(&normed))?,
            false => composed::attention(self, &normed, Rules::default())?,
        };
        let (attention, running) = (self.clone(), running.clone());
        differentiable(qkv, output, move |gradient| {
            Ok(attention.pull_back(&input, gradient, &running.get())?.0)
        })
    }

    /// qkv with queries and keys normalised, where they are.
    fn normed(&self, qkv: &Tensor) -> Result<Tensor> {
        match &self.norms {
            Some(norms) => norms.forward(self.sizes(), qkv),
            None => Ok(qkv.clone()),
        }
    }

    /// qkv [batch, new, (heads + 2·kv_heads)·d_head] of the columns from `past` on → z [batch, new,
    /// heads·d_head]. Their keys, rotated, and values are put behind those of the columns before, in
    /// `keys` and `values` [batch, capacity, kv_heads·d_head]. The first `padding[b]` columns of
    /// sequence b are no tokens: nothing attends to them, and what comes out there means nothing.
    pub fn extend(
        &self,
        qkv: &Tensor,
        past: usize,
        padding: &[usize],
        [keys, values]: [&Tensor; 2],
    ) -> Result<Tensor> {
        let qkv = &self.normed(qkv)?;
        if !is_fused(qkv) {
            return composed::extend(self, qkv, past, padding, [keys, values]);
        }
        by_dtype!(qkv, T => self.extend_in::<T>(qkv, past, padding, [keys, values]))
    }

    /// ∂L/∂z [batch, seq, heads·d_head] → ∂L/∂qkv, zero before each sequence's first position that
    /// gradients are needed at, and the gradients of the norms' weights. Attention is where gradients go
    /// back to earlier positions.
    pub(crate) fn pull_back(
        &self,
        qkv: &Tensor,
        gradient: &Tensor,
        how: &Backward,
    ) -> Result<(Tensor, Vec<NormGradient>)> {
        let Some(norms) = &self.norms else {
            return Ok((self.pull_back_to_normed(qkv, gradient, how)?, Vec::new()));
        };
        let qkv = qkv.contiguous()?;
        let at_normed =
            self.pull_back_to_normed(&norms.forward(self.sizes(), &qkv)?, gradient, how)?;
        norms.pull_back(self.sizes(), &qkv, &at_normed, how.rules)
    }

    fn pull_back_to_normed(
        &self,
        qkv: &Tensor,
        gradient: &Tensor,
        how: &Backward,
    ) -> Result<Tensor> {
        if !is_fused(qkv) {
            // Gradients before those needed come out too, and are of no use.
            return pull_back(qkv, gradient, |qkv| composed::attention(self, qkv, how.rules));
        }
        by_dtype!(qkv, T => self.backward::<T>(qkv, gradient, how))
    }
}
