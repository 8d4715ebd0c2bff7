//! Changing files at random: bytes here, what a format has of its own in the modules.

pub mod gguf;
pub mod json;
pub mod safetensors;
pub mod stamp;
pub mod text;

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What an input is drawn with.
pub struct Random(ChaCha8Rng);

/// Numbers at the edges of what integers hold and of what sizes are taken.
pub const EDGES: [i64; 24] = [
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    127,
    128,
    255,
    256,
    32_767,
    65_535,
    65_536,
    1_000_000,
    1 << 30,
    i32::MAX as i64,
    i32::MIN as i64,
    u32::MAX as i64,
    1 << 32,
    1 << 40,
    1 << 53,
    i64::MAX,
    i64::MIN,
];

impl Random {
    /// What the input of this number is drawn with.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(number);
        Self(random)
    }

    /// A number below `end`, 0 where that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { self.0.random_range(0..end) }
    }

    /// Whether one of so many chances came.
    pub fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    /// One of `from`, which has some.
    pub fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// A number as files hold them, at an edge or small or anything.
    pub fn integer(&mut self) -> i64 {
        match self.below(4) {
            0 => self.below(100) as i64,
            1 => self.0.random(),
            _ => *self.choose(&EDGES),
        }
    }

    /// A part of so many bytes, most often a short one.
    pub fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let longest = if self.one_in(4) { length } else { 16 };
        start..(start + self.below(longest + 1)).min(length)
    }
}

/// Changes a file's bytes in one to four places.
pub fn bytes(random: &mut Random, file: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = file.to_vec();
    for _ in 0..1 + random.below(4) {
        change(random, &mut bytes, others);
    }
    bytes
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    let at = random.below(bytes.len());
    let range = random.range(bytes.len());
    match random.below(8) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        1 if !bytes.is_empty() => bytes[at] = random.below(256) as u8,
        2 => {
            let new: Vec<u8> = (0..random.below(9)).map(|_| random.below(256) as u8).collect();
            bytes.splice(at..at, new);
        }
        3 => drop(bytes.drain(range)),
        4 => {
            let part = bytes[range].to_vec();
            bytes.splice(at..at, part);
        }
        5 => bytes.truncate(at),
        6 => {
            let other = random.choose(others);
            let part = other[random.range(other.len())].to_vec();
            bytes.splice(range, part);
        }
        _ => {
            let number = random.integer().to_le_bytes();
            let width = *random.choose(&[1, 2, 4, 8]);
            let end = (at + width).min(bytes.len());
            bytes.splice(at..end, number[..width].iter().copied());
        }
    }
}
