//! Attention on the CPU, in one go a key/value head of a sequence. The probabilities are recomputed in the
//! backward pass, so nothing of size [seq, seq] is kept.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::geometry::Attention;
use super::tile::{Tile, Transposed, tiles};
use crate::ops::backward::{Backward, Rules};
use crate::ops::cap::{cap_values, times_slopes};
use crate::ops::{Real, lanes, values};

/// One key/value head of one sequence with the query heads that share it, gathered and rotated.
struct Group<T> {
    /// [heads a group][seq, d_head], scaled.
    queries: Vec<Vec<T>>,
    /// [seq, d_head]
    keys: Vec<T>,
    /// [seq, d_head]
    values: Vec<T>,
}

impl Attention {
    pub(super) fn forward_in<T: Real>(&self, input: &Tensor) -> Result<Tensor> {
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

    pub(super) fn extend_in<T: Real>(
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

    pub(super) fn backward<T: Real>(
        &self,
        qkv: &Tensor,
        gradient: &Tensor,
        how: &Backward,
    ) -> Result<Tensor> {
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
