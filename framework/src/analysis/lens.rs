//! The logit lens (nostalgebraist, 2020): what would be predicted if the stream after each layer were read
//! by the unembedding, through the final norm at that stream's own scale and the soft cap on logits.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::evaluation::answers::KeyRow;
use crate::graph::Graph;
use crate::pass::Unembedding;

/// What would be predicted after a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lens {
    /// None for the embedding's output.
    pub layer: Option<usize>,
    pub right: Answer,
    pub wrong: Answer,
}

/// How a key's answers of one side do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The sum of their probabilities.
    pub probability: f64,
    /// The rank of the best of them in the vocabulary, 1 for the likeliest token.
    pub rank: f64,
}

/// The lens at each key, from the stream that each site read there [keys, d_model], in computation order.
///
/// # Errors
/// If a tensor operation fails.
pub(super) fn at_each_key(
    graph: &Graph,
    unembedding: &Unembedding,
    read: &[(usize, Tensor)],
    keys: &[KeyRow],
) -> Result<Vec<Vec<Lens>>> {
    let mut lenses = vec![Vec::new(); keys.len()];
    for (layer, stream) in after_layers(graph, read) {
        let logits: Vec<Vec<f64>> = unembedding.logits(stream)?.to_dtype(DType::F64)?.to_vec2()?;
        for ((lens, logits), (_, key, _)) in lenses.iter_mut().zip(&logits).zip(keys) {
            let of = |answers: &[u32]| Answer::of(logits, answers);
            lens.push(Lens { layer, right: of(&key.correct), wrong: of(&key.wrong) });
        }
    }
    Ok(lenses)
}

/// Sums over keys, layer by layer.
#[derive(Default)]
pub(super) struct LensSums(Vec<Lens>);

impl LensSums {
    /// Adds a batch: the stream that each site read at the keys [keys, d_model], in computation order.
    pub(super) fn add(
        &mut self,
        graph: &Graph,
        unembedding: &Unembedding,
        read: &[(usize, Tensor)],
        (keys, weights): (&[KeyRow], &[f64]),
    ) -> Result<()> {
        for (index, (layer, stream)) in after_layers(graph, read).into_iter().enumerate() {
            let logits: Vec<Vec<f64>> =
                unembedding.logits(stream)?.to_dtype(DType::F64)?.to_vec2()?;
            if self.0.len() == index {
                self.0.push(Lens { layer, right: Answer::default(), wrong: Answer::default() });
            }
            let lens = &mut self.0[index];
            for ((logits, (_, key, _)), weight) in logits.iter().zip(keys).zip(weights) {
                lens.right.add(Answer::of(logits, &key.correct), *weight);
                lens.wrong.add(Answer::of(logits, &key.wrong), *weight);
            }
        }
        Ok(())
    }

    /// The layers, and all sums as numbers.
    pub(super) fn numbers(&self) -> Vec<f64> {
        let of = |lens: &Lens| {
            let (layer, Lens { right, wrong, .. }) = (lens.layer, lens);
            // Counted from 1; 0 is the embedding's output.
            let layer = layer.map_or(0, |layer| layer + 1) as f64;
            [layer, right.probability, right.rank, wrong.probability, wrong.rank]
        };
        self.0.iter().flat_map(of).collect()
    }

    /// Adds what [`LensSums::numbers`] made of another batch.
    pub(super) fn join(&mut self, numbers: &[f64]) {
        let (of_layers, _) = numbers.as_chunks::<5>();
        for (index, &[layer, right, right_rank, wrong, wrong_rank]) in of_layers.iter().enumerate()
        {
            if self.0.len() == index {
                let layer = (layer as usize).checked_sub(1);
                self.0.push(Lens { layer, right: Answer::default(), wrong: Answer::default() });
            }
            let lens = &mut self.0[index];
            lens.right.add(Answer { probability: right, rank: right_rank }, 1.0);
            lens.wrong.add(Answer { probability: wrong, rank: wrong_rank }, 1.0);
        }
    }

    pub(super) fn finish(self) -> Vec<Lens> {
        self.0
    }
}

impl Answer {
    /// The probability and the rank of the answers at one key; both are 0 where there are no answers.
    fn of(logits: &[f64], answers: &[u32]) -> Self {
        if answers.is_empty() {
            return Self::default();
        }
        let largest = logits.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
        let own = answers.iter().map(|&token| logits[token as usize]);
        let best = own.clone().fold(f64::MIN, f64::max);
        let ahead = logits.iter().filter(|&&logit| logit > best).count();
        let probability = own.map(|logit| (logit - largest).exp()).sum::<f64>() / sum;
        Self { probability, rank: (ahead + 1) as f64 }
    }

    fn add(&mut self, of_key: Self, weight: f64) {
        self.probability += weight * of_key.probability;
        self.rank += weight * of_key.rank;
    }
}

/// The stream after the embedding and after each layer: what the first site behind it read. Sites of one
/// layer may read the same stream (parallel blocks) or not.
fn after_layers<'t>(
    graph: &Graph,
    read: &'t [(usize, Tensor)],
) -> Vec<(Option<usize>, &'t Tensor)> {
    let layer_of = |site: usize| {
        let reader = graph.readers().get(graph.readers_of(site).start);
        reader.and_then(|input| input.node.layer())
    };
    let mut streams: Vec<(Option<usize>, &Tensor)> = Vec::new();
    let mut before = None;
    for (index, (site, stream)) in read.iter().enumerate() {
        let layer = layer_of(*site);
        if index == 0 || layer != before {
            streams.push((before, stream));
            before = layer;
        }
    }
    streams
}
