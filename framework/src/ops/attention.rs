//! Causal softmax attention from stacked queries, keys and values, with grouped heads and an
//! optional rotary embedding. The probabilities are recomputed in the backward pass, so nothing of
//! size [seq, seq] is kept.
//!
//! Training and evaluation pad sequences on the right, so the causal mask alone hides the padding from
//! every token. Generation pads them on the left and goes on from the keys and values of the tokens
//! before ([`Attention::extend`]), without a gradient.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::rotary::Rotary;
use super::{Real, by_dtype, composed, differentiable, is_fused, lanes, values};

/// The geometry of an attention layer.
#[derive(Clone, Debug)]
pub struct Attention {
    pub heads: usize,
    /// Key/value heads; `heads / kv_heads` query heads share one.
    pub kv_heads: usize,
    pub d_head: usize,
    pub rotary: Option<Arc<Rotary>>,
}

/// The first position of each sequence that a backward pass needs gradients at, set while it runs;
/// empty where it needs all. Attention is where gradients go back to earlier positions.
pub(crate) type Since = Arc<Mutex<Vec<usize>>>;

/// One key/value head of one sequence with the query heads that share it, gathered and rotated.
struct Group<T> {
    /// [heads a group][seq, d_head], scaled by 1/√d_head.
    queries: Vec<Vec<T>>,
    /// [seq, d_head]
    keys: Vec<T>,
    /// [seq, d_head]
    values: Vec<T>,
}

/// Vectors of one sequence the other way round, [d_head, seq], so that one vector's products with all
/// of them are sums of whole rows.
struct Transposed<T> {
    /// [d_head][stride], zero behind the sequence's end.
    columns: Vec<T>,
    stride: usize,
}

impl<T: Real> Transposed<T> {
    /// Of vectors [seq, d_head].
    fn of(vectors: &[T], d_head: usize) -> Self {
        let stride = (vectors.len() / d_head).next_multiple_of(lanes::LANES);
        let mut columns = vec![T::zero(); d_head * stride];
        for (position, vector) in vectors.chunks(d_head).enumerate() {
            for (column, value) in vector.iter().enumerate() {
                columns[column * stride + position] = *value;
            }
        }
        Self { columns, stride }
    }

    /// The products of `vector` [d_head] with the first `count` vectors, in `out`.
    fn products(&self, vector: &[T], count: usize, out: &mut Vec<T>) {
        out.clear();
        out.resize(count.next_multiple_of(lanes::LANES), T::zero());
        T::add_weighted(out, vector, &self.columns, self.stride);
        out.truncate(count);
    }
}

/// Positions whose gradients are formed together.
const TILE: usize = 64;

/// The probabilities and the scores' gradients of a few positions, the position running fastest, so that
/// what a key or a value gets is one sum over them.
struct Tile<T> {
    /// Of one position, [seq] at most.
    probabilities: Vec<T>,
    d_scores: Vec<T>,
    /// Of both, [seq, TILE].
    columns: [Vec<T>; 2],
}

impl<T: Real> Tile<T> {
    fn new(seq: usize) -> Self {
        let column = || vec![T::zero(); seq * TILE];
        Self { probabilities: Vec::new(), d_scores: Vec::new(), columns: [column(), column()] }
    }

    /// Takes in what stands in `probabilities` and `d_scores`.
    fn put(&mut self, index: usize) {
        for (columns, values) in self.columns.iter_mut().zip([&self.probabilities, &self.d_scores])
        {
            for (column, value) in columns.chunks_mut(TILE).zip(values) {
                column[index] = *value;
            }
        }
    }

    /// A position whose gradient is zero.
    fn leave_out(&mut self, index: usize, position: usize) {
        for columns in &mut self.columns {
            columns.chunks_mut(TILE).take(position + 1).for_each(|c| c[index] = T::zero());
        }
    }
}

impl Attention {
    /// The width of the stacked projections: all query heads, then key heads, then value heads.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.d_head
    }

    /// qkv [batch, seq, (heads + 2·kv_heads)·d_head] → z [batch, seq, heads·d_head].
    pub fn forward(&self, qkv: &Tensor) -> Result<Tensor> {
        self.forward_since(qkv, &Since::default())
    }

    /// The same, with a say in how far back gradients go.
    pub(crate) fn forward_since(&self, qkv: &Tensor, since: &Since) -> Result<Tensor> {
        if let Some(rotary) = &self.rotary {
            rotary.check(qkv.dim(1)?)?;
        }
        let input = qkv.detach().contiguous()?;
        let output = match is_fused(&input) {
            true => by_dtype!(input, T => self.forward_in::<T>(&input))?,
            false => composed::attention(self, &input)?,
        };
        let (attention, since) = (self.clone(), since.clone());
        differentiable(qkv, output, move |gradient| {
            let from = since.lock().unwrap_or_else(PoisonError::into_inner).clone();
            attention.pull_back(&input, gradient, &from)
        })
    }

    fn forward_in<T: Real>(&self, input: &Tensor) -> Result<Tensor> {
        let (batch, seq, _) = input.dims3()?;
        let data = values::<T>(input)?;
        let z = self.for_each_group(batch, |b, g| self.group_forward(&data, seq, b, g));
        let mut output = vec![T::zero(); batch * seq * self.heads * self.d_head];
        self.scatter(&mut output, self.heads, batch, seq, &z, |g, part| g * self.group() + part);
        Tensor::from_vec(output, (batch, seq, self.heads * self.d_head), input.device())
    }

    /// Query heads a key/value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// One call for each key/value head of each sequence, in parallel; results in that order.
    fn for_each_group<R: Send>(
        &self,
        batch: usize,
        f: impl Fn(usize, usize) -> R + Sync,
    ) -> Vec<R> {
        (0..batch * self.kv_heads)
            .into_par_iter()
            .map(|index| f(index / self.kv_heads, index % self.kv_heads))
            .collect()
    }

    /// Copies per-group pieces, each [seq, d_head], to their heads in [batch, seq, heads·d_head].
    fn scatter<T: Real>(
        &self,
        output: &mut [T],
        heads: usize,
        batch: usize,
        seq: usize,
        pieces: &[Vec<Vec<T>>],
        head_of: impl Fn(usize, usize) -> usize + Sync,
    ) {
        let width = heads * self.d_head;
        debug_assert_eq!(output.len(), batch * seq * width);
        output.par_chunks_mut(seq * width).enumerate().for_each(|(b, output)| {
            for g in 0..self.kv_heads {
                for (part, piece) in pieces[b * self.kv_heads + g].iter().enumerate() {
                    let offset = head_of(g, part) * self.d_head;
                    for (position, row) in piece.chunks(self.d_head).enumerate() {
                        output[position * width + offset..][..self.d_head].copy_from_slice(row);
                    }
                }
            }
        });
    }

    fn gather<T: Real>(&self, qkv: &[T], seq: usize, b: usize, g: usize) -> Group<T> {
        let (width, d) = (self.width(), self.d_head);
        let column = |head: usize, rotated: bool, scale: T| {
            let mut rows = Vec::with_capacity(seq * d);
            for position in 0..seq {
                let row = &qkv[(b * seq + position) * width + head * d..][..d];
                rows.extend(row.iter().map(|&value| value * scale));
                if let (true, Some(rotary)) = (rotated, &self.rotary) {
                    rotary.rotate(&mut rows[position * d..], position);
                }
            }
            rows
        };
        let scale = lanes::real::<T>(1.0 / (d as f64).sqrt());
        Group {
            queries: (0..self.group())
                .map(|part| column(g * self.group() + part, true, scale))
                .collect(),
            keys: column(self.heads + g, true, T::one()),
            values: column(self.heads + self.kv_heads + g, false, T::one()),
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
        if !is_fused(qkv) {
            return composed::extend(self, qkv, past, padding, [keys, values]);
        }
        by_dtype!(qkv, T => self.extend_in::<T>(qkv, past, padding, [keys, values]))
    }

    fn extend_in<T: Real>(
        &self,
        qkv: &Tensor,
        past: usize,
        padding: &[usize],
        [keys, values_]: [&Tensor; 2],
    ) -> Result<Tensor> {
        let (batch, new, _) = qkv.dims3()?;
        let width = self.kv_heads * self.d_head;
        let start = self.heads * self.d_head;
        let rotated = self.rotated_keys::<T>(qkv, past, padding)?;
        keys.slice_set(&rotated, 1, past)?;
        values_.slice_set(&qkv.narrow(2, start + width, width)?.contiguous()?, 1, past)?;
        let queries = qkv.narrow(2, 0, start)?.contiguous()?;
        let (queries, keys_data, values_data) =
            (values::<T>(&queries)?, values::<T>(keys)?, values::<T>(values_)?);
        let capacity = keys.dim(1)?;
        let d = self.d_head;
        let scale = lanes::real::<T>(1.0 / (d as f64).sqrt());
        let pieces = self.for_each_group(batch, |b, g| {
            let column = |data: &[T]| -> Vec<T> {
                (padding[b]..past + new)
                    .flat_map(|at| &data[(b * capacity + at) * width + g * d..][..d])
                    .copied()
                    .collect()
            };
            let (keys, values) = (column(&keys_data), column(&values_data));
            let keys = Transposed::of(&keys, d);
            let mut probabilities = Vec::with_capacity(past + new);
            let mut attend = |part: usize| {
                let head = g * self.group() + part;
                let mut z = vec![T::zero(); new * d];
                for (index, z) in z.chunks_mut(d).enumerate() {
                    let Some(position) = (past + index).checked_sub(padding[b]) else { continue };
                    let query = &queries[((b * new + index) * self.heads + head) * d..][..d];
                    let mut query: Vec<T> = query.iter().map(|&value| value * scale).collect();
                    if let Some(rotary) = &self.rotary {
                        rotary.rotate(&mut query, position);
                    }
                    Self::probabilities(&query, &keys, position, &mut probabilities);
                    T::add_weighted(z, &probabilities, &values, d);
                }
                z
            };
            (0..self.group()).map(&mut attend).collect()
        });
        let mut output = vec![T::zero(); batch * new * start];
        self.scatter(&mut output, self.heads, batch, new, &pieces, |g, part| {
            g * self.group() + part
        });
        Tensor::from_vec(output, (batch, new, start), qkv.device())
    }

    /// The keys of the columns from `past` on [batch, new, kv_heads·d_head], rotated.
    fn rotated_keys<T: Real>(
        &self,
        qkv: &Tensor,
        past: usize,
        padding: &[usize],
    ) -> Result<Tensor> {
        let (batch, new, _) = qkv.dims3()?;
        let width = self.kv_heads * self.d_head;
        let keys = qkv.narrow(2, self.heads * self.d_head, width)?.contiguous()?;
        let Some(rotary) = &self.rotary else {
            return Ok(keys);
        };
        let longest = padding.iter().map(|padding| (past + new).saturating_sub(*padding)).max();
        rotary.check(longest.unwrap_or(0))?;
        let mut rotated = values::<T>(&keys)?.to_vec();
        for (row, keys) in rotated.chunks_mut(width).enumerate() {
            let position = (past + row % new).saturating_sub(padding[row / new]);
            keys.chunks_mut(self.d_head).for_each(|key| rotary.rotate(key, position));
        }
        Tensor::from_vec(rotated, (batch, new, width), qkv.device())
    }

    /// softmax(q · kⱼ) over j ≤ position.
    fn probabilities<T: Real>(
        query: &[T],
        keys: &Transposed<T>,
        position: usize,
        out: &mut Vec<T>,
    ) {
        keys.products(query, position + 1, out);
        let largest = lanes::max(out);
        out.iter_mut().for_each(|score| *score = lanes::exp_or_zero(*score - largest));
        let factor = T::one() / lanes::sum(out, |p| p);
        out.iter_mut().for_each(|p| *p *= factor);
    }

    fn group_forward<T: Real>(&self, qkv: &[T], seq: usize, b: usize, g: usize) -> Vec<Vec<T>> {
        let d = self.d_head;
        let group = self.gather(qkv, seq, b, g);
        let keys = Transposed::of(&group.keys, d);
        let mut probabilities = Vec::new();
        let mut attend = |queries: &Vec<T>| {
            let mut z = vec![T::zero(); seq * d];
            for (position, (query, z)) in queries.chunks(d).zip(z.chunks_mut(d)).enumerate() {
                Self::probabilities(query, &keys, position, &mut probabilities);
                T::add_weighted(z, &probabilities, &group.values, d);
            }
            z
        };
        group.queries.iter().map(&mut attend).collect()
    }

    /// ∂L/∂z [batch, seq, heads·d_head] → ∂L/∂qkv, zero before each sequence's position in `from`,
    /// which is empty where all are wanted.
    pub(crate) fn pull_back(
        &self,
        qkv: &Tensor,
        gradient: &Tensor,
        from: &[usize],
    ) -> Result<Tensor> {
        if !is_fused(qkv) {
            // Gradients before `from` come out too, and are of no use.
            return composed::pull_back(qkv, gradient, |qkv| composed::attention(self, qkv));
        }
        by_dtype!(qkv, T => self.backward::<T>(qkv, gradient, from))
    }

    fn backward<T: Real>(&self, qkv: &Tensor, gradient: &Tensor, from: &[usize]) -> Result<Tensor> {
        let (batch, seq, width) = qkv.dims3()?;
        let (qkv_data, dz) = (values::<T>(qkv)?, values::<T>(gradient)?);
        let pieces = self.for_each_group(batch, |b, g| {
            let from = from.get(b).copied().unwrap_or(0);
            self.group_backward(&qkv_data, &dz, (seq, from), b, g)
        });
        let mut output = vec![T::zero(); batch * seq * width];
        let stacked = self.heads + 2 * self.kv_heads;
        self.scatter(&mut output, stacked, batch, seq, &pieces, |g, part| {
            match part.checked_sub(self.group()) {
                None => g * self.group() + part,
                Some(kind) => self.heads + kind * self.kv_heads + g,
            }
        });
        Tensor::from_vec(output, (batch, seq, width), qkv.device())
    }

    /// The gradients of the group's query heads, then of its key head, then of its value head, from
    /// position `from` on.
    fn group_backward<T: Real>(
        &self,
        qkv: &[T],
        dz: &[T],
        (seq, from): (usize, usize),
        b: usize,
        g: usize,
    ) -> Vec<Vec<T>> {
        let d = self.d_head;
        let group = self.gather(qkv, seq, b, g);
        let scale = lanes::real::<T>(1.0 / (d as f64).sqrt());
        let (mut d_keys, mut d_values) = (vec![T::zero(); seq * d], vec![T::zero(); seq * d]);
        let (keys, values) = (Transposed::of(&group.keys, d), Transposed::of(&group.values, d));
        let mut tile = Tile::new(seq);
        let mut pieces = Vec::with_capacity(self.group() + 2);
        for (part, queries) in group.queries.iter().enumerate() {
            let head = g * self.group() + part;
            let dz = &dz[(b * seq * self.heads + head) * d..];
            let dz_stride = self.heads * d;
            let mut d_queries = vec![T::zero(); seq * d];
            for start in (from..seq).step_by(TILE) {
                let end = seq.min(start + TILE);
                for position in start..end {
                    let dz = &dz[position * dz_stride..][..d];
                    let query = &queries[position * d..][..d];
                    let d_query = &mut d_queries[position * d..][..d];
                    if lanes::is_zero(dz) {
                        tile.leave_out(position - start, position);
                        continue;
                    }
                    Self::probabilities(query, &keys, position, &mut tile.probabilities);
                    // ∂L/∂scoreⱼ = pⱼ (∂L/∂pⱼ − Σᵢ pᵢ ∂L/∂pᵢ), with ∂L/∂pⱼ = dz · vⱼ.
                    values.products(dz, position + 1, &mut tile.d_scores);
                    let mean = lanes::dot(&tile.probabilities, &tile.d_scores);
                    for (d_score, p) in tile.d_scores.iter_mut().zip(&tile.probabilities) {
                        *d_score = *p * (*d_score - mean);
                    }
                    T::add_weighted(d_query, &tile.d_scores, &group.keys, d);
                    d_query.iter_mut().for_each(|value| *value *= scale);
                    tile.put(position - start);
                }
                for j in from..end {
                    let first = start.max(j);
                    let of = j * TILE + first - start..j * TILE + end - start;
                    let (d_value, d_key) = (&mut d_values[j * d..][..d], &mut d_keys[j * d..][..d]);
                    let (dz, queries) = (&dz[first * dz_stride..], &queries[first * d..]);
                    T::add_weighted(d_value, &tile.columns[0][of.clone()], dz, dz_stride);
                    T::add_weighted(d_key, &tile.columns[1][of], queries, d);
                }
            }
            pieces.push(d_queries);
        }
        pieces.push(d_keys);
        if let Some(rotary) = &self.rotary {
            for piece in &mut pieces {
                for (position, vector) in piece.chunks_mut(d).enumerate() {
                    rotary.rotate_back(vector, position);
                }
            }
        }
        pieces.push(d_values);
        pieces
    }
}
