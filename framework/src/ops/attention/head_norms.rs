//! RMS norms between attention's projections and its scores: of each head's queries and keys (Qwen3,
//! Gemma 3), or of all heads' together (OLMo 2).

use candle_core::{Result, Tensor};

use crate::ops::backward::Rules;
use crate::ops::norm::{Norm, NormGradient};

/// The norms of queries and of keys. Its methods take the numbers of heads and of key/value heads, and
/// a head's width.
#[derive(Clone, Debug)]
pub struct HeadNorms {
    /// γ [1, d_head] where each head is normalised by itself, else [1, heads·d_head].
    pub query: Norm,
    /// γ [1, d_head] or [1, kv_heads·d_head].
    pub key: Norm,
    /// Whether each head is normalised by itself.
    pub is_per_head: bool,
}

impl HeadNorms {
    /// Each part of qkv [batch, seq, width] that is normalised, as rows, with its norm; and the values.
    fn parts(
        &self,
        [heads, kv_heads, d_head]: [usize; 3],
        qkv: &Tensor,
    ) -> Result<([(&Norm, Tensor); 2], Tensor)> {
        let part = |start: usize, count: usize, norm| {
            let part = qkv.narrow(2, start * d_head, count * d_head)?.contiguous()?;
            let width = if self.is_per_head { d_head } else { count * d_head };
            Ok::<_, candle_core::Error>((norm, part.reshape(((), width))?))
        };
        let values = qkv.narrow(2, (heads + kv_heads) * d_head, kv_heads * d_head)?;
        Ok(([part(0, heads, &self.query)?, part(heads, kv_heads, &self.key)?], values))
    }

    /// Rows of queries, rows of keys and values side by side, as [`HeadNorms::parts`] took them apart.
    fn join(parts: [Tensor; 2], values: &Tensor) -> Result<Tensor> {
        let (batch, seq, _) = values.dims3()?;
        let [queries, keys] = parts.map(|part| part.reshape((batch, seq, ())));
        Tensor::cat(&[&queries?, &keys?, values], 2)?.contiguous()
    }

    /// Stacked projections [batch, seq, (heads + 2·kv_heads)·d_head] with queries and keys normalised.
    pub(super) fn forward(&self, sizes: [usize; 3], qkv: &Tensor) -> Result<Tensor> {
        let ([(query, queries), (key, keys)], values) = self.parts(sizes, qkv)?;
        Self::join([query.forward(&queries)?, key.forward(&keys)?], &values)
    }

    /// The gradient at the stacked projections, of that behind the norms, and those of the weights.
    pub(super) fn pull_back(
        &self,
        sizes: [usize; 3],
        qkv: &Tensor,
        gradient: &Tensor,
        rules: Rules,
    ) -> Result<(Tensor, Vec<NormGradient>)> {
        let (parts, _) = self.parts(sizes, qkv)?;
        let (gradients, at_values) = self.parts(sizes, gradient)?;
        let mut weights = Vec::new();
        let mut pull_back = |((norm, x), (_, gradient)): (&(&Norm, Tensor), &(&Norm, Tensor))| {
            weights.push(norm.weight_gradient(x, gradient)?);
            norm.pull_back(x, gradient, rules)
        };
        let at_queries = pull_back((&parts[0], &gradients[0]))?;
        let at_keys = pull_back((&parts[1], &gradients[1]))?;
        Ok((Self::join([at_queries, at_keys], &at_values)?, weights))
    }
}
