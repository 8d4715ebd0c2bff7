//! Rotary position embedding as Hugging Face's Llama applies it: the two halves of a head's width
//! form the pairs that are rotated, or those of its first part where only that is rotated (GPT-NeoX).

use candle_core::{Result, bail};

use super::{Real, lanes};

/// cos and sin for every position, each [positions, half of the rotated width].
#[derive(Clone, Debug)]
pub struct Rotary {
    cos: Vec<f64>,
    sin: Vec<f64>,
    half: usize,
}

impl Rotary {
    /// Tables for `positions` positions; `frequencies` [half of the rotated width], in radians
    /// a position.
    pub fn new(frequencies: &[f64], positions: usize) -> Self {
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        let (cos, sin) = angles.map(|a| (a.cos(), a.sin())).unzip();
        Self { cos, sin, half: frequencies.len() }
    }

    /// The positions the tables reach.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    /// How many of a head's numbers are rotated.
    pub fn width(&self) -> usize {
        2 * self.half
    }

    /// cos and sin [positions, half of the rotated width] at these positions.
    pub(super) fn rows(&self, positions: &[usize]) -> (Vec<f64>, Vec<f64>) {
        let of = |table: &[f64]| {
            let row = |position: &usize| &table[position * self.half..][..self.half];
            positions.iter().flat_map(row).copied().collect()
        };
        (of(&self.cos), of(&self.sin))
    }

    pub(super) fn check(&self, seq: usize) -> Result<()> {
        if seq > self.positions() {
            bail!("a sequence of {seq} tokens is longer than the context of {}", self.positions());
        }
        Ok(())
    }

    /// Rotates one head's vector at `position` in place.
    #[inline(always)]
    pub(super) fn rotate<T: Real>(&self, vector: &mut [T], position: usize) {
        self.turn(vector, position, 1.0);
    }

    /// The inverse rotation, which is also its pull-back.
    #[inline(always)]
    pub(super) fn rotate_back<T: Real>(&self, vector: &mut [T], position: usize) {
        self.turn(vector, position, -1.0);
    }

    #[inline(always)]
    fn turn<T: Real>(&self, vector: &mut [T], position: usize, sign: f64) {
        let row = position * self.half..(position + 1) * self.half;
        let (cos, sin) = (&self.cos[row.clone()], &self.sin[row]);
        let (first, second) = vector[..2 * self.half].split_at_mut(self.half);
        let pairs = first.iter_mut().zip(second);
        for ((first, second), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
            let (a, b) = (*first, *second);
            let (cos, sin) = (lanes::real::<T>(*cos), lanes::real::<T>(sign * sin));
            *first = a * cos - b * sin;
            *second = b * cos + a * sin;
        }
    }
}
