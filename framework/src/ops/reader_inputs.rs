//! Readers with inputs of their own: x + Σ of some writers' differences, normalised, times each reader's
//! own rows of a projection. A few rows at a time stay in the cache from the sums to the products. On the
//! CPU.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::norm::Norm;
use super::product::Product;
use super::{Real, by_dtype, in_place, lanes, values};

/// Rows of x that are taken from the sums to the projections together.
const TILE: usize = 16;

/// Columns of a projection, and of a row, that are formed together.
const PANEL: usize = 64;

/// Terms of a product that are added together: so many rows of a panel stay in the innermost cache.
const DEPTH: usize = 96;

/// How much longer a difference takes to be added by itself than in a product.
const ONE_BY_ONE: usize = 6;

/// Values a thread subtracts at once.
const CHUNK: usize = 1 << 14;

/// Inputs that are sums.
pub(crate) struct Sums<'a> {
    /// The stream [rows, d_model].
    pub x: &'a Tensor,
    /// [writers, rows, d_model]
    pub differences: &'a Tensor,
    /// The writers before, of which the differences' first are.
    pub before: usize,
    /// The writers whose differences each input has, in order.
    pub writers: &'a [Vec<usize>],
}

/// The inputs and what they are projected with.
pub(crate) struct Apart<'a> {
    pub sums: Sums<'a>,
    pub norm: &'a Norm,
    /// The columns of the projection that read each input.
    pub columns: &'a [Vec<Range<usize>>],
    /// [readers × width, d_model]
    pub weight: &'a Tensor,
    /// [readers × width, 1]
    pub bias: Option<&'a Tensor>,
}

/// An input as it is summed up: from x, or where that is shorter from x with all differences.
struct Recipe {
    from_all: bool,
    /// Those that are added, or where it begins with all taken off.
    writers: Vec<usize>,
}

/// Some columns of the projection, of one input: their rows of the weight, transposed.
struct Panel<T> {
    input: usize,
    columns: Range<usize>,
    /// [d_model, columns]
    weight: Vec<T>,
}

impl Sums<'_> {
    /// The inputs [inputs, rows, d_model].
    pub(crate) fn form(&self) -> Result<Tensor> {
        by_dtype!(self.x, T => self.form_in::<T>())
    }

    fn form_in<T: Real>(&self) -> Result<Tensor> {
        let (rows, d) = self.x.dims2()?;
        let x = self.x.contiguous()?;
        let (x, differences) = (values::<T>(&x)?, values::<T>(self.differences)?);
        let mut own = vec![T::zero(); self.writers.len() * rows * d];
        let of_row = own.par_chunks_mut(d).enumerate();
        of_row.for_each(|(index, own)| {
            let row = index % rows;
            own.copy_from_slice(&x[row * d..][..d]);
            let of = |writer: usize| &differences[(writer * rows + row) * d..][..d];
            lanes::vectorized(
                #[inline(always)]
                || {
                    for &writer in &self.writers[index / rows] {
                        lanes::add_scaled(own, T::one(), of(writer));
                    }
                },
            );
        });
        Tensor::from_vec(own, (self.writers.len(), rows, d), &Device::Cpu)
    }

    /// Which differences each input has [inputs, before], 1 or 0, where the sums are worth a product: it
    /// forms all of them, but a dozen times as fast as one by one.
    fn factors<T: Real>(&self, recipes: &[Recipe]) -> Option<Vec<T>> {
        let summed: usize = recipes.iter().map(|recipe| recipe.writers.len()).sum();
        if summed * ONE_BY_ONE < self.before * self.writers.len() {
            return None;
        }
        let mut factors = vec![T::zero(); self.writers.len() * self.before];
        for (factors, writers) in factors.chunks_mut(self.before).zip(self.writers) {
            writers.iter().for_each(|&writer| factors[writer] = T::one());
        }
        Some(factors)
    }

    fn recipes(&self) -> Vec<Recipe> {
        let inputs = self.writers.len();
        let recipe = |writers: &Vec<usize>| {
            let others = self.before - writers.len();
            let from_all = others + self.before / inputs < writers.len();
            let listed = match from_all {
                true => (0..self.before).filter(|w| writers.binary_search(w).is_err()).collect(),
                false => writers.clone(),
            };
            Recipe { from_all, writers: listed }
        };
        self.writers.iter().map(recipe).collect()
    }
}

/// Sums up all inputs of one row, of differences [before, d_model]; input i gets its place at
/// own[i · stride..].
#[inline(always)]
fn sum_row<T: Real>(
    recipes: &[Recipe],
    x: &[T],
    differences: &[T],
    own: &mut [T],
    stride: usize,
    all: &mut [T],
) {
    let d = x.len();
    if recipes.iter().any(|recipe| recipe.from_all) {
        all.copy_from_slice(x);
        for difference in differences.chunks(d) {
            lanes::add_scaled(all, T::one(), difference);
        }
    }
    for start in (0..d).step_by(PANEL) {
        let panel = start..d.min(start + PANEL);
        for (input, Recipe { from_all, writers }) in recipes.iter().enumerate() {
            let base = if *from_all { &all[panel.clone()] } else { &x[panel.clone()] };
            // Of a fixed length, so that the sums stay in registers.
            let mut sums = [T::zero(); PANEL];
            sums[..base.len()].copy_from_slice(base);
            let of = |writer: usize| &differences[writer * d..][panel.clone()];
            match from_all {
                false => combine(&mut sums, writers, of, |a, b| a + b),
                true => combine(&mut sums, writers, of, |a, b| a - b),
            }
            own[input * stride..][panel.clone()].copy_from_slice(&sums[..base.len()]);
        }
    }
}

/// A row of every input, as one product of factors [inputs, before] and the differences.
fn sum_row_by_product<T: Real>(
    factors: &[T],
    x: &[T],
    differences: &[T],
    own: &mut [T],
    stride: usize,
) {
    let d = x.len();
    let before = differences.len() / d;
    let inputs = factors.len() / before;
    for input in 0..inputs {
        own[input * stride..][..d].copy_from_slice(x);
    }
    for start in (0..d).step_by(PANEL) {
        for writer in (0..before).step_by(DEPTH) {
            T::add_product(Product {
                c: &mut own[start..],
                c_stride: stride,
                a: &factors[writer..],
                a_stride: before,
                a_is_transposed: false,
                b: &differences[writer * d + start..],
                b_stride: d,
                rows: inputs,
                columns: DEPTH.min(before - writer),
                width: PANEL.min(d - start),
            });
        }
    }
}

/// Takes some writers' differences into sums.
#[inline(always)]
fn combine<'d, T: Real>(
    sums: &mut [T; PANEL],
    writers: &[usize],
    of: impl Fn(usize) -> &'d [T],
    with: impl Fn(T, T) -> T,
) {
    for &writer in writers {
        let difference = of(writer);
        match difference.first_chunk::<PANEL>() {
            Some(difference) => {
                for (sum, difference) in sums.iter_mut().zip(difference) {
                    *sum = with(*sum, *difference);
                }
            }
            None => {
                for (sum, difference) in sums.iter_mut().zip(difference) {
                    *sum = with(*sum, *difference);
                }
            }
        }
    }
}

/// What a thread needs of memory.
struct Room<T> {
    /// The inputs of a tile [inputs, rows, d_model].
    own: Vec<T>,
    /// A row's differences [before, d_model], which lie far apart from one another.
    differences: Vec<T>,
    /// x with all of a row's differences.
    all: Vec<T>,
}

impl Apart<'_> {
    /// Puts the projections in their columns of a place [rows, readers × width].
    pub(crate) fn project_into(&self, place: &Tensor) -> Result<()> {
        by_dtype!(self.sums.x, T => self.project_in::<T>(place))
    }

    fn project_in<T: Real>(&self, place: &Tensor) -> Result<()> {
        let Sums { x, differences, before, writers } = self.sums;
        let (total, inputs) = (place.dim(1)?, writers.len());
        let (rows, d) = x.dims2()?;
        let x = x.contiguous()?;
        let (x, differences) = (values::<T>(&x)?, values::<T>(differences)?);
        let weight = values::<T>(self.weight)?;
        let bias = self.bias.map(|bias| values::<T>(bias)).transpose()?;
        let norm = self.norm.row::<T>()?;
        let (panels, recipes) = (self.panels(&weight, d), self.sums.recipes());
        let factors = self.sums.factors::<T>(&recipes);
        let sum = |first: usize, n: usize, room: &mut Room<T>| {
            room.own.resize(inputs * n * d, T::zero());
            room.differences.resize(before * d, T::zero());
            room.all.resize(d, T::zero());
            for row in 0..n {
                for (writer, place) in room.differences.chunks_mut(d).enumerate() {
                    let at = (writer * rows + first + row) * d;
                    place.copy_from_slice(&differences[at..][..d]);
                }
                let Room { own, differences, all } = room;
                let (x, own) = (&x[(first + row) * d..][..d], &mut own[row * d..]);
                match &factors {
                    Some(factors) => sum_row_by_product(factors, x, differences, own, n * d),
                    None => lanes::vectorized(
                        #[inline(always)]
                        || sum_row(&recipes, x, differences, own, n * d, all),
                    ),
                }
            }
            room.own.chunks_mut(d).for_each(|row| norm.forward(row));
        };
        let project = |tile: usize, room: &mut Room<T>, output: &mut [T]| {
            let n = output.len() / total;
            sum(tile * TILE, n, room);
            for Panel { input, columns, weight } in &panels {
                for row in output.chunks_mut(total) {
                    match &bias {
                        Some(bias) => row[columns.clone()].copy_from_slice(&bias[columns.clone()]),
                        None => row[columns.clone()].fill(T::zero()),
                    }
                }
                for start in (0..d).step_by(DEPTH) {
                    T::add_product(Product {
                        c: &mut output[columns.start..],
                        c_stride: total,
                        a: &room.own[input * n * d + start..],
                        a_stride: d,
                        a_is_transposed: false,
                        b: &weight[start * columns.len()..],
                        b_stride: columns.len(),
                        rows: n,
                        columns: DEPTH.min(d - start),
                        width: columns.len(),
                    });
                }
            }
        };
        in_place(place, |output: &mut [T]| {
            let tiles = output.par_chunks_mut(TILE * total).enumerate();
            let room = || Room { own: Vec::new(), differences: Vec::new(), all: Vec::new() };
            tiles.for_each_init(room, |room, (tile, output)| project(tile, room, output));
            Ok(())
        })
    }

    /// The weight's rows that are read with, transposed panel by panel.
    fn panels<T: Real>(&self, weight: &[T], d: usize) -> Vec<Panel<T>> {
        let mut places = Vec::new();
        for (input, columns) in self.columns.iter().enumerate() {
            for columns in columns {
                let starts = columns.clone().step_by(PANEL);
                places.extend(starts.map(|start| (input, start..columns.end.min(start + PANEL))));
            }
        }
        let panel = |(input, columns): (usize, Range<usize>)| {
            let width = columns.len();
            let mut transposed = vec![T::zero(); d * width];
            for (column, row) in columns.clone().enumerate() {
                for (at, value) in weight[row * d..][..d].iter().enumerate() {
                    transposed[at * width + column] = *value;
                }
            }
            Panel { input, columns, weight: transposed }
        };
        places.into_par_iter().map(panel).collect()
    }
}

/// Puts other − place, or where there is no other −place, in the place, both contiguous.
pub(crate) fn subtract_from(other: Option<&Tensor>, place: &Tensor) -> Result<()> {
    by_dtype!(place, T => subtract_from_in::<T>(other, place))
}

fn subtract_from_in<T: Real>(other: Option<&Tensor>, place: &Tensor) -> Result<()> {
    let other = other.map(|other| values::<T>(other)).transpose()?;
    in_place(place, |place: &mut [T]| {
        let chunks = place.par_chunks_mut(CHUNK).enumerate();
        chunks.for_each(|(index, place)| match &other {
            Some(other) => {
                let other = &other[index * CHUNK..][..place.len()];
                place.iter_mut().zip(other).for_each(|(place, other)| *place = *other - *place);
            }
            None => place.iter_mut().for_each(|place| *place = -*place),
        });
        Ok(())
    })
}
