//! The order in which examples come: file order or a new seeded shuffle every epoch, for ever.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

pub(super) struct Order {
    indices: Vec<usize>,
    next: usize,
    /// Shuffles the epochs; ChaCha8, so that a seed means the same on every platform.
    shuffler: Option<ChaCha8Rng>,
}

impl Order {
    pub(super) fn new(examples: usize, shuffle: bool, seed: u64) -> Self {
        let mut order = Self {
            indices: (0..examples).collect(),
            next: 0,
            shuffler: shuffle.then(|| ChaCha8Rng::seed_from_u64(seed)),
        };
        order.start_epoch();
        order
    }

    fn start_epoch(&mut self) {
        self.next = 0;
        if let Some(random) = &mut self.shuffler {
            self.indices.shuffle(random);
        }
    }

    /// Passes over the next `count` indices, epoch by epoch.
    pub(super) fn skip(&mut self, mut count: usize) {
        while count > self.indices.len() - self.next {
            count -= self.indices.len() - self.next;
            self.start_epoch();
        }
        self.next += count;
    }

    /// The next `count` indices.
    pub(super) fn take(&mut self, count: usize) -> impl Iterator<Item = usize> {
        let mut taken = Vec::with_capacity(count);
        for _ in 0..count {
            if self.next == self.indices.len() {
                self.start_epoch();
            }
            taken.push(self.indices[self.next]);
            self.next += 1;
        }
        taken.into_iter()
    }
}
