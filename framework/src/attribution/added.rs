//! What batches gave toward the scores, before it is added up: as the running sums keep it, and as processes
//! exchange it.

use candle_core::{Device, Tensor};

use super::site_values::SiteWrites;
use crate::Result;
use crate::graph::Graph;
use crate::peers::Part;

/// What batches gave.
#[derive(Clone)]
pub(super) struct Added {
    /// Row-major [writers, readers].
    pub(super) scores: Vec<f64>,
    /// Σ of the metric and of the examples' weights.
    pub(super) metric: f64,
    pub(super) weight: f64,
    /// How many tokens each place's mean is over, [places].
    pub(super) counts: Vec<f64>,
    /// Σ of what each site wrote over all tokens, [places, width].
    pub(super) writes: Vec<Option<SiteWrites>>,
    /// Σ of each site's readers' gradients, [readers, places, d_model].
    pub(super) gradients: Vec<Option<Tensor>>,
}

impl Added {
    pub(super) fn nothing(graph: &Graph, places: usize) -> Self {
        Self {
            scores: vec![0.0; graph.writers().len() * graph.readers().len()],
            metric: 0.0,
            weight: 0.0,
            counts: vec![0.0; places],
            writes: vec![None; graph.site_count()],
            gradients: vec![None; graph.site_count()],
        }
    }

    /// Takes all numbers as tensors, and leaves nothing but what writes are of.
    pub(super) fn take(&mut self) -> Result<Part> {
        let numbers = [&[self.metric, self.weight], &self.counts[..], &self.scores].concat();
        (self.metric, self.weight) = (0.0, 0.0);
        self.counts.fill(0.0);
        self.scores.fill(0.0);
        let mut part = vec![Some(Tensor::new(numbers, &Device::Cpu)?)];
        part.extend(self.writes.iter().map(|writes| Some(writes.as_ref()?.values.clone())));
        part.extend(self.gradients.iter_mut().map(Option::take));
        Ok(part)
    }

    /// Puts in place what was taken, and added to; `like` says what writes are of.
    pub(super) fn put(&mut self, part: Part, like: &[Option<SiteWrites>]) -> Result<()> {
        let mut part = part.into_iter();
        if let Some(numbers) = part.next().flatten() {
            let numbers = numbers.to_vec1::<f64>()?;
            (self.metric, self.weight) = (numbers[0], numbers[1]);
            let (counts, scores) = numbers[2..].split_at(self.counts.len());
            self.counts.copy_from_slice(counts);
            self.scores.copy_from_slice(scores);
        }
        for ((writes, like), values) in self.writes.iter_mut().zip(like).zip(part.by_ref()) {
            // A process that ran no batch doesn't know what they are of, and needs them for nothing.
            let like = like.as_ref().or(writes.as_ref());
            let source = like.map(|writes| writes.source.clone());
            *writes = source.zip(values).map(|(source, values)| SiteWrites { source, values });
        }
        self.gradients = part.collect();
        Ok(())
    }
}
