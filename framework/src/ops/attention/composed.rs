//! Attention composed of candle's operations.

use candle_core::{D, Device, Result, Tensor};

use super::geometry::Attention;
use crate::ops::backward::Rules;
use crate::ops::cap;
use crate::ops::composed::held;
use crate::ops::rotary::Rotary;

/// What is added to a score that is masked: so little that its probability is 0, and finite, so that
/// where everything is masked nothing turns to NaN.
const MASKED: f64 = -1e30;

/// What is added to scores of `new` queries at columns `past`, `past` + 1, … over all columns, made where
/// the scores are [1, 1, 1, new, columns], or [batch, 1, 1, new, columns] with padding. Columns a window
/// or more before a query are masked too.
fn mask(
    scores: &Tensor,
    new: usize,
    past: usize,
    padding: &[usize],
    window: Option<usize>,
) -> Result<Tensor> {
    let (columns, device) = (scores.dim(D::Minus1)?, scores.device());
    let column = Tensor::arange(0u32, columns as u32, device)?;
    let query = Tensor::arange(past as u32, (past + new) as u32, device)?.unsqueeze(1)?;
    let mut hidden = column.broadcast_gt(&query)?;
    if let Some(window) = window {
        let end = column.affine(1.0, window as f64)?;
        hidden = hidden.broadcast_maximum(&end.broadcast_le(&query)?)?;
    }
    let mut hidden = hidden.reshape((1, 1, 1, new, columns))?;
    if padding.iter().any(|&padding| padding > 0) {
        let first: Vec<u32> = padding.iter().map(|&padding| padding as u32).collect();
        let first = Tensor::new(first, device)?.reshape((padding.len(), 1, 1, 1, 1))?;
        let before = column.reshape((1, 1, 1, 1, columns))?.broadcast_lt(&first)?;
        hidden = hidden.broadcast_maximum(&before)?;
    }
    hidden.to_dtype(scores.dtype())? * MASKED
}

/// Causal attention of queries at columns `past`, `past` + 1, … of every sequence, whose first
/// `padding[b]` columns are no tokens, over keys and values [batch, columns, kv_heads·d_head]. Queries
/// [batch, new, heads·d_head], and keys, are rotated already.
fn attend(
    attention: &Attention,
    [queries, keys, values]: [&Tensor; 3],
    past: usize,
    padding: &[usize],
    rules: Rules,
) -> Result<Tensor> {
    let Attention { heads, kv_heads, d_head, .. } = *attention;
    let (batch, new, _) = queries.dims3()?;
    let group = heads / kv_heads;
    let p = probabilities(attention, queries, keys, past, padding)?;
    let p = held(p, rules.attention);
    let z = p.matmul(&by_head(values, kv_heads)?)?;
    let z = z.reshape((batch, kv_heads, group, new, d_head))?;
    z.permute((0, 3, 1, 2, 4))?.contiguous()?.reshape((batch, new, heads * d_head))
}

/// [batch, columns, kv_heads·d_head] → [batch, kv_heads, columns, d_head].
fn by_head(x: &Tensor, kv_heads: usize) -> Result<Tensor> {
    let (batch, columns, width) = x.dims3()?;
    x.reshape((batch, columns, kv_heads, width / kv_heads))?.transpose(1, 2)?.contiguous()
}

/// What each query attends to: [batch, kv_heads, group·new, columns], one query head of a group behind
/// the other.
fn probabilities(
    attention: &Attention,
    queries: &Tensor,
    keys: &Tensor,
    past: usize,
    padding: &[usize],
) -> Result<Tensor> {
    let Attention { heads, kv_heads, d_head, .. } = *attention;
    let (batch, new, _) = queries.dims3()?;
    let (columns, group) = (keys.dim(1)?, heads / kv_heads);
    let queries =
        queries.reshape((batch, new, kv_heads, group, d_head))?.permute((0, 2, 3, 1, 4))?;
    let queries = queries.contiguous()?.reshape((batch, kv_heads, group * new, d_head))?;
    let keys = by_head(keys, kv_heads)?;
    let scores = queries.matmul(&keys.transpose(2, 3)?.contiguous()?)?;
    let scores = (scores * attention.scale)?;
    let scores = match attention.cap {
        Some(cap) => cap::composed(&scores, cap)?,
        None => scores,
    };
    let by_query = scores.reshape((batch, kv_heads, group, new, columns))?;
    let mask = mask(&scores, new, past, padding, attention.window)?;
    let scores = by_query.broadcast_add(&mask)?.reshape(scores.shape())?;
    let p = scores.broadcast_sub(&scores.detach().max_keepdim(3)?)?.exp()?;
    p.broadcast_div(&p.sum_keepdim(3)?)
}

/// Heads [batch, seq, n·d_head], each turned, or the first part of it, by its sequence's positions
/// [batch·seq].
fn rotate(rotary: &Rotary, x: &Tensor, positions: &[usize], d_head: usize) -> Result<Tensor> {
    let (batch, seq, width) = x.dims3()?;
    let (cos, sin) = rotary.rows(positions);
    let half = cos.len() / positions.len();
    let table = |values: Vec<f64>| {
        let table = Tensor::from_vec(values, (batch, seq, 1, half), &Device::Cpu)?;
        table.to_dtype(x.dtype())?.to_device(x.device())
    };
    let (cos, sin) = (table(cos)?, table(sin)?);
    let x = x.reshape((batch, seq, width / d_head, d_head))?;
    let (a, b) = (x.narrow(3, 0, half)?.contiguous()?, x.narrow(3, half, half)?.contiguous()?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let rest = x.narrow(3, 2 * half, d_head - 2 * half)?;
    Tensor::cat(&[first, second, rest], 3)?.reshape((batch, seq, width))
}

/// The parts of stacked projections [batch, seq, width]: queries and keys, rotated, and values.
fn parts(attention: &Attention, qkv: &Tensor, positions: &[usize]) -> Result<[Tensor; 3]> {
    let Attention { heads, kv_heads, d_head: d, .. } = *attention;
    let part = |start: usize, len: usize| qkv.narrow(2, start * d, len * d)?.contiguous();
    let [queries, keys] = [part(0, heads)?, part(heads, kv_heads)?];
    let values = part(heads + kv_heads, kv_heads)?;
    match &attention.rotary {
        None => Ok([queries, keys, values]),
        Some(rotary) => {
            let turned = |x| rotate(rotary, x, positions, d);
            Ok([turned(&queries)?, turned(&keys)?, values])
        }
    }
}

/// [`Attention::forward`].
pub(super) fn attention(attention: &Attention, qkv: &Tensor, rules: Rules) -> Result<Tensor> {
    let (batch, seq, _) = qkv.dims3()?;
    let positions: Vec<usize> = (0..batch * seq).map(|index| index % seq).collect();
    let [queries, keys, values] = parts(attention, qkv, &positions)?;
    attend(attention, [&queries, &keys, &values], 0, &[], rules)
}

/// [`Attention::probabilities`].
pub(super) fn all_probabilities(attention: &Attention, qkv: &Tensor) -> Result<Tensor> {
    let (batch, seq, _) = qkv.dims3()?;
    let positions: Vec<usize> = (0..batch * seq).map(|index| index % seq).collect();
    let [queries, keys, _] = parts(attention, qkv, &positions)?;
    probabilities(attention, &queries, &keys, 0, &[])?.reshape((batch, attention.heads, seq, seq))
}

/// [`Attention::extend`].
pub(super) fn extend(
    attention: &Attention,
    qkv: &Tensor,
    past: usize,
    padding: &[usize],
    [keys, values]: [&Tensor; 2],
) -> Result<Tensor> {
    let (batch, new, _) = qkv.dims3()?;
    let positions: Vec<usize> = (0..batch * new)
        .map(|index| (past + index % new).saturating_sub(padding[index / new]))
        .collect();
    let [queries, new_keys, new_values] = parts(attention, qkv, &positions)?;
    keys.slice_set(&new_keys, 1, past)?;
    values.slice_set(&new_values, 1, past)?;
    let so_far = |x: &Tensor| x.narrow(1, 0, past + new)?.contiguous();
    let parts = [&queries, &so_far(keys)?, &so_far(values)?];
    attend(attention, parts, past, padding, Rules::default())
}
