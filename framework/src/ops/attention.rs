//! Causal softmax attention from stacked queries, keys and values, with grouped heads; optionally with
//! norms on queries and keys, a rotary embedding, a soft cap on scores and a sliding window. The probabilities are recomputed in the backward pass, so nothing of
//! size [seq, seq] is kept.
//!
//! Training and evaluation pad sequences on the right, so the causal mask alone hides the padding from
//! every token. Generation pads them on the left and goes on from the keys and values of the tokens
//! before ([`Attention::extend`]), without a gradient.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::backward::{Backward, Rules, Running};
use super::cap::{cap_values, times_slopes};
use super::head_norms::{HeadNorms, NormGradient};
use super::product::Product;
use super::rotary::Rotary;
use super::{Real, by_dtype, composed, differentiable, is_fused, lanes, values};

/// The geometry of an attention layer.
#[derive(Clone, Debug)]
pub struct Attention {
    pub heads: usize,
    /// Key/value heads; `heads / kv_heads` query heads share one.
    pub kv_heads: usize,
    pub d_head: usize,
    /// What the products of queries and keys are multiplied with.
    pub scale: f64,
    /// Norms on queries and keys, before they are rotated.
    pub norms: Option<Arc<HeadNorms>>,
    pub rotary: Option<Arc<Rotary>>,
    /// The soft cap on scores.
    pub cap: Option<f64>,
    /// How many tokens a query sees, its own counted; all up to its own where it is none.
    pub window: Option<usize>,
}

/// One key/value head of one sequence with the query heads that share it, gathered and rotated.
struct Group<T> {
    /// [heads a group][seq, d_head], scaled.
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
    #[inline(always)]
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
}

/// Positions that are worked on together.
const TILE: usize = 32;

/// What a few positions have to do with each one up to the last of them: scores, probabilities or their
/// gradients.
struct Tile<T> {
    /// [rows, width], zero in the columns behind a row's own position.
    values: Vec<T>,
    /// The positions of the rows.
    positions: Range<usize>,
    /// The positions up to the last row's, and a few more, so that rows are whole vectors.
    width: usize,
}

impl<T: Real> Tile<T> {
    /// The products of the positions' `vectors`, rows `stride` apart, with those of all others.
    #[inline(always)]
    fn products(
        positions: Range<usize>,
        vectors: &[T],
        stride: usize,
        others: &Transposed<T>,
    ) -> Self {
        let width = positions.end.next_multiple_of(lanes::LANES);
        let mut values = vec![T::zero(); positions.len() * width];
        T::add_product(Product {
            c: &mut values,
            c_stride: width,
            a: vectors,
            a_stride: stride,
            a_is_transposed: false,
            b: &others.columns,
            b_stride: others.stride,
            rows: positions.len(),
            columns: others.columns.len() / others.stride,
            width,
        });
        Self { values, positions, width }
    }

    /// Softmax of each row over the positions up to its own, or the last `window` of them.
    #[inline(always)]
    fn softmax(&mut self, window: Option<usize>) {
        for (row, position) in self.values.chunks_mut(self.width).zip(self.positions.clone()) {
            row[position + 1..].fill(T::neg_infinity());
            if let Some(window) = window {
                row[..(position + 1).saturating_sub(window)].fill(T::neg_infinity());
            }
            let largest = lanes::max(row);
            row.iter_mut().for_each(|score| *score = lanes::exp_or_zero(*score - largest));
            let factor = T::one() / lanes::sum(row, |p| p);
            row.iter_mut().for_each(|p| *p *= factor);
        }
    }

    /// From the gradients at the probabilities to those at the scores:
    /// ∂L/∂scoreⱼ = pⱼ (∂L/∂pⱼ − Σᵢ pᵢ ∂L/∂pᵢ).
    #[inline(always)]
    fn back_through_softmax(&mut self, probabilities: &Self) {
        let rows = self.values.chunks_mut(self.width);
        for (row, p) in rows.zip(probabilities.values.chunks(self.width)) {
            let mean = lanes::dot(p, row);
            row.iter_mut().zip(p).for_each(|(d_score, p)| *d_score = *p * (*d_score - mean));
        }
    }

    /// sums [rows, d] += these · vectors [positions, d].
    #[inline(always)]
    fn add_times(&self, vectors: &[T], d: usize, sums: &mut [T]) {
        T::add_product(Product {
            c: sums,
            c_stride: d,
            a: &self.values,
            a_stride: self.width,
            a_is_transposed: false,
            b: vectors,
            b_stride: d,
            rows: self.positions.len(),
            columns: self.positions.end,
            width: d,
        });
    }

    /// sums [positions, d] += theseᵀ · vectors [rows, d], whose rows are `stride` apart, from position
    /// `from` on.
    #[inline(always)]
    fn add_transposed_times(
        &self,
        vectors: &[T],
        stride: usize,
        d: usize,
        from: usize,
        sums: &mut [T],
    ) {
        T::add_product(Product {
            c: &mut sums[from * d..],
            c_stride: d,
            a: &self.values[from..],
            a_stride: self.width,
            a_is_transposed: true,
            b: vectors,
            b_stride: stride,
            rows: self.positions.end - from,
            columns: self.positions.len(),
            width: d,
        });
    }
}

/// The positions from `from` on, a few at a time.
#[inline(always)]
fn tiles(from: usize, end: usize) -> impl Iterator<Item = Range<usize>> {
    (from..end).step_by(TILE).map(move |start| start..end.min(start + TILE))
}

impl Attention {
    /// Attention to all tokens up to a query's own, scaled by 1/√d_head, without positions.
    pub fn new(heads: usize, kv_heads: usize, d_head: usize) -> Self {
        let scale = 1.0 / (d_head as f64).sqrt();
        Self { heads, kv_heads, d_head, scale, norms: None, rotary: None, cap: None, window: None }
    }

    /// The width of the stacked projections: all query heads, then key heads, then value heads.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.d_head
    }

    /// What each query attends to, [batch, heads, queries, keys], of qkv [batch, seq, (heads +
    /// 2·kv_heads)·d_head]. The attention itself never forms this; it is for looking at.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn probabilities(&self, qkv: &Tensor) -> Result<Tensor> {
        composed::attention_probabilities(self, &self.normed(&qkv.detach())?)
    }

    /// qkv [batch, seq, (heads + 2·kv_heads)·d_head] → z [batch, seq, heads·d_head].
    pub fn forward(&self, qkv: &Tensor) -> Result<Tensor> {
        self.forward_with(qkv, &Running::default())
    }

    /// The same; how the backward pass goes is asked of `running`.
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
            Some(norms) => norms.forward(self, qkv),
            None => Ok(qkv.clone()),
        }
    }

    fn forward_in<T: Real>(&self, input: &Tensor) -> Result<Tensor> {
        let (batch, seq, _) = input.dims3()?;
        let data = values::<T>(input)?;
        let z = self.for_each_group(batch, |b, g| {
            lanes::vectorized(
                #[inline(always)]
                || self.group_forward(&data, seq, b, g),
            )
        });
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

    #[inline(always)]
    fn gather<T: Real>(&self, qkv: &[T], seq: usize, b: usize, g: usize) -> Group<T> {
        let scale = lanes::real::<T>(self.scale);
        let qkv = &qkv[b * seq * self.width()..][..seq * self.width()];
        // Written out, not mapped: a loop in a function of its own would not have the wide vectors.
        let mut queries = Vec::with_capacity(self.group());
        for part in 0..self.group() {
            queries.push(self.column(qkv, g * self.group() + part, true, scale));
        }
        Group {
            queries,
            keys: self.column(qkv, self.heads + g, true, T::one()),
            values: self.column(qkv, self.heads + self.kv_heads + g, false, T::one()),
        }
    }

    /// One of the stacked heads [seq, d_head] of a sequence, times `scale`.
    #[inline(always)]
    fn column<T: Real>(&self, qkv: &[T], head: usize, rotated: bool, scale: T) -> Vec<T> {
        let d = self.d_head;
        let rotary = self.rotary.as_deref().filter(|_| rotated);
        let mut column = vec![T::zero(); qkv.len() / self.width() * d];
        let rows = column.chunks_mut(d).zip(qkv.chunks(self.width()));
        for (position, (column, row)) in rows.enumerate() {
            for (column, &value) in column.iter_mut().zip(&row[head * d..][..d]) {
                *column = value * scale;
            }
            if let Some(rotary) = rotary {
                rotary.rotate(column, position);
            }
        }
        column
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
        let scale = lanes::real::<T>(self.scale);
        let pieces = self.for_each_group(batch, |b, g| {
            let column = |data: &[T]| -> Vec<T> {
                (padding[b]..past + new)
                    .flat_map(|at| &data[(b * capacity + at) * width + g * d..][..d])
                    .copied()
                    .collect()
            };
            let (keys, values) = (column(&keys_data), column(&values_data));
            let keys = Transposed::of(&keys, d);
            // The columns before these are no tokens.
            let skipped = padding[b].saturating_sub(past).min(new);
            let first = (past + skipped).saturating_sub(padding[b]);
            let attend = |part: usize| {
                let head = g * self.group() + part;
                let mut rotated = Vec::with_capacity((new - skipped) * d);
                for index in skipped..new {
                    let query = &queries[((b * new + index) * self.heads + head) * d..][..d];
                    rotated.extend(query.iter().map(|&value| value * scale));
                    if let Some(rotary) = &self.rotary {
                        let at = rotated.len() - d;
                        rotary.rotate(&mut rotated[at..], first + index - skipped);
                    }
                }
                let mut z = vec![T::zero(); new * d];
                self.attend(&rotated, first, &keys, &values, &mut z[skipped * d..]);
                z
            };
            (0..self.group()).map(attend).collect()
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

    /// Queries [n, d_head], of the positions from `first` on, → z [n, d_head].
    #[inline(always)]
    fn attend<T: Real>(
        &self,
        queries: &[T],
        first: usize,
        keys: &Transposed<T>,
        values: &[T],
        z: &mut [T],
    ) {
        let d = keys.columns.len() / keys.stride;
        for positions in tiles(first, first + queries.len() / d) {
            let start = (positions.start - first) * d;
            let mut tile = Tile::products(positions, &queries[start..], d, keys);
            if let Some(cap) = self.cap {
                cap_values(&mut tile.values, cap);
            }
            tile.softmax(self.window);
            tile.add_times(values, d, &mut z[start..]);
        }
    }

    #[inline(always)]
    fn group_forward<T: Real>(&self, qkv: &[T], seq: usize, b: usize, g: usize) -> Vec<Vec<T>> {
        let group = self.gather(qkv, seq, b, g);
        let keys = Transposed::of(&group.keys, self.d_head);
        let mut pieces = Vec::with_capacity(self.group());
        for queries in &group.queries {
            let mut z = vec![T::zero(); queries.len()];
            self.attend(queries, 0, &keys, &group.values, &mut z);
            pieces.push(z);
        }
        pieces
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
        let at_normed = self.pull_back_to_normed(&norms.forward(self, &qkv)?, gradient, how)?;
        norms.pull_back(self, &qkv, &at_normed, how.rules)
    }

    fn pull_back_to_normed(
        &self,
        qkv: &Tensor,
        gradient: &Tensor,
        how: &Backward,
    ) -> Result<Tensor> {
        if !is_fused(qkv) {
            // Gradients before those needed come out too, and are of no use.
            return composed::pull_back(qkv, gradient, |qkv| {
                composed::attention(self, qkv, how.rules)
            });
        }
        by_dtype!(qkv, T => self.backward::<T>(qkv, gradient, how))
    }

    fn backward<T: Real>(&self, qkv: &Tensor, gradient: &Tensor, how: &Backward) -> Result<Tensor> {
        let (batch, seq, width) = qkv.dims3()?;
        let (qkv_data, dz) = (values::<T>(qkv)?, values::<T>(gradient)?);
        let pieces = self.for_each_group(batch, |b, g| {
            let from = how.from.get(b).copied().unwrap_or(0);
            lanes::vectorized(
                #[inline(always)]
                || self.group_backward(&qkv_data, &dz, (seq, from), (b, g), how.rules),
            )
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
    #[inline(always)]
    fn group_backward<T: Real>(
        &self,
        qkv: &[T],
        dz: &[T],
        (seq, from): (usize, usize),
        (b, g): (usize, usize),
        rules: Rules,
    ) -> Vec<Vec<T>> {
        let d = self.d_head;
        let group = self.gather(qkv, seq, b, g);
        let scale = lanes::real::<T>(self.scale);
        let (mut d_keys, mut d_values) = (vec![T::zero(); seq * d], vec![T::zero(); seq * d]);
        let (keys, values) = (Transposed::of(&group.keys, d), Transposed::of(&group.values, d));
        let mut pieces = Vec::with_capacity(self.group() + 2);
        for (part, queries) in group.queries.iter().enumerate() {
            let head = g * self.group() + part;
            let stride = self.heads * d;
            let mut d_queries = vec![T::zero(); seq * d];
            for positions in tiles(from, seq) {
                let dz = &dz[(b * seq + positions.start) * stride + head * d..];
                if dz.chunks(stride).take(positions.len()).all(|dz| lanes::is_zero(&dz[..d])) {
                    continue;
                }
                let queries = &queries[positions.start * d..];
                let d_queries = &mut d_queries[positions.start * d..positions.end * d];
                let mut probabilities = Tile::products(positions.clone(), queries, d, &keys);
                let capped = self.cap.map(|cap| {
                    cap_values(&mut probabilities.values, cap);
                    (probabilities.values.clone(), cap)
                });
                probabilities.softmax(self.window);
                probabilities.add_transposed_times(dz, stride, d, from, &mut d_values);
                if rules.attention {
                    continue;
                }
                let mut d_scores = Tile::products(positions, dz, stride, &values);
                d_scores.back_through_softmax(&probabilities);
                if let Some((capped, cap)) = capped {
                    times_slopes(&mut d_scores.values, &capped, cap);
                }
                d_scores.add_times(&group.keys, d, d_queries);
                d_queries.iter_mut().for_each(|value| *value *= scale);
                d_scores.add_transposed_times(queries, d, d, from, &mut d_keys);
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
