//! How a step's examples are divided: into chunks, whose gradients are added up in pairs and which processes
//! share, and these into micro-batches, a forward pass each.

use super::Tuner;
use crate::data::example::Example;
use crate::peers;

/// A step's chunks, each in micro-batches.
pub(super) struct Chunks<'e> {
    pub(super) chunks: Vec<Vec<Vec<&'e Example>>>,
}

impl<'e> Chunks<'e> {
    /// Divides a step's examples into so many chunks, or as many as there are examples.
    pub(super) fn new(
        examples: &[&'e Example],
        count: usize,
        micro_batch_size: Option<usize>,
    ) -> Self {
        let chunks = match count {
            0 | 1 => vec![examples.to_vec()],
            count => evenly(examples, count),
        };
        let micro_batches = |mut chunk: Vec<&'e Example>| {
            let size = micro_batch_size.unwrap_or(chunk.len());
            if size < chunk.len() {
                chunk.sort_by_key(|example| example.tokens.len());
            }
            chunk.chunks(size).map(<[_]>::to_vec).collect()
        };
        Self { chunks: chunks.into_iter().map(micro_batches).collect() }
    }

    /// Whether each chunk goes through the model at once.
    pub(super) fn are_whole(&self) -> bool {
        self.chunks.iter().all(|batches| batches.len() == 1)
    }

    /// All micro-batches.
    pub(super) fn batches(&self) -> impl ExactSizeIterator<Item = &Vec<&'e Example>> {
        let all: Vec<_> = self.chunks.iter().flatten().collect();
        all.into_iter()
    }
}

impl Tuner<'_> {
    pub(super) fn chunks<'e>(&self, examples: &[&'e Example]) -> Chunks<'e> {
        let count = match self.tuning.chunks {
            1 => self.peers.size(),
            count => count,
        };
        Chunks::new(examples, count, self.tuning.micro_batch_size)
    }

    /// The micro-batches that this process runs where any process may run any.
    pub(super) fn own_batches<'e>(&self, chunks: &Chunks<'e>) -> Vec<Vec<&'e Example>> {
        peers::own(self.peers, chunks.batches()).cloned().collect()
    }
}

/// Examples by length, cut where each chunk has about as many tokens, and at least one example.
fn evenly<'e>(examples: &[&'e Example], count: usize) -> Vec<Vec<&'e Example>> {
    let mut examples = examples.to_vec();
    examples.sort_by_key(|example| example.tokens.len());
    let count = count.min(examples.len());
    let all: usize = examples.iter().map(|example| example.tokens.len()).sum();
    let mut chunks: Vec<Vec<&Example>> = vec![Vec::new()];
    let (mut tokens, left) = (0, examples.len());
    for (index, example) in examples.into_iter().enumerate() {
        let (begun, last) = (chunks.len(), chunks.len() - 1);
        // Half of this example beyond the chunk's end: it is nearer to the next.
        let is_full = (2 * tokens + example.tokens.len()) * count > 2 * all * begun;
        let must = left - index == count - begun;
        if begun < count && !chunks[last].is_empty() && (is_full || must) {
            chunks.push(Vec::new());
        }
        tokens += example.tokens.len();
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(example);
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of_length(length: usize) -> Example {
        Example { tokens: vec![0; length], ..Example::default() }
    }

    proptest! {
        /// Every example is in one chunk, none is empty, and none has more than its share of tokens by more
        /// than the longest example.
        #[test]
        fn chunks_have_as_much_to_do(
            lengths in prop::collection::vec(1usize..50, 1..40), count in 1usize..9,
        ) {
            let examples: Vec<Example> = lengths.iter().copied().map(of_length).collect();
            let all: Vec<&Example> = examples.iter().collect();
            let chunks = evenly(&all, count);
            prop_assert_eq!(chunks.len(), count.min(all.len()));
            prop_assert!(chunks.iter().all(|chunk| !chunk.is_empty()));
            let mut found: Vec<usize> = chunks.concat().iter().map(|e| e.tokens.len()).collect();
            let mut expected = lengths.clone();
            found.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
            let (sum, longest) = (lengths.iter().sum::<usize>(), *lengths.iter().max().unwrap());
            for chunk in &chunks {
                let tokens: usize = chunk.iter().map(|example| example.tokens.len()).sum();
                prop_assert!(tokens <= sum.div_ceil(chunks.len()) + longest, "{tokens} of {sum}");
            }
        }
    }
}
