//! Scores example by example: a score is a sum over examples, and here are its terms, of one batch at a
//! time. An ablation's means and the metric's divisor are those of all examples together.
//!
//! Each example's own products cost what the sums' cost once more, which is little beside the passes; what
//! becomes of the terms (resamples, a file) is their taker's.

use std::ops::Range;

use rayon::prelude::*;

use super::products::{Difference, Stack, product};
use super::site_values::{SiteWrites, Sites};
use crate::Result;
use crate::graph::{Graph, Reader, Writer};
use crate::peers::{self, Rounds};

/// Takes the scores [examples, edges] of the next examples, laid out as [`EdgeOrder`] says.
pub type TakeScores<'a> = dyn Fn(&[f64]) -> Result<()> + 'a;

/// Where a graph's edges stand in a list without gaps: by reader, then writer.
#[derive(Clone, Debug)]
pub struct EdgeOrder {
    /// The place of each reader's first edge.
    starts: Vec<usize>,
    edges: usize,
}

impl EdgeOrder {
    /// The order of a graph's edges.
    pub fn of(graph: &Graph) -> Self {
        let mut starts = vec![0; graph.readers().len()];
        let mut edges = 0;
        for site in 0..graph.site_count() {
            for reader in graph.readers_of(site) {
                starts[reader] = edges;
                edges += graph.writers_before(site).len();
            }
        }
        Self { starts, edges }
    }

    /// How many edges there are.
    pub fn edge_count(&self) -> usize {
        self.edges
    }

    /// The place of an edge.
    pub fn place(&self, writer: Writer, reader: Reader) -> usize {
        self.starts[reader.0] + writer.0
    }

    /// A list of edges' values as a matrix [writers, readers], 0 where there is no edge.
    pub fn matrix(&self, graph: &Graph, values: &[f64]) -> Vec<f32> {
        let readers = graph.readers().len();
        let mut matrix = vec![0.0; graph.writers().len() * readers];
        for (writer, reader) in graph.edges() {
            matrix[writer.0 * readers + reader.0] = values[self.place(writer, reader)] as f32;
        }
        matrix
    }
}

/// The scores of a batch's examples.
pub(super) struct ExampleScores<'a> {
    order: EdgeOrder,
    /// By site, where the ablation is a mean: of what is written, [places, width].
    means: Option<Sites>,
    /// [examples, edges]
    batch: Vec<f64>,
    take: &'a TakeScores<'a>,
    rounds: Rounds<'a>,
    /// Whether a batch of this process is not yet handed on.
    is_begun: bool,
}

impl<'a> ExampleScores<'a> {
    pub(super) fn new(
        graph: &Graph,
        means: Option<Sites>,
        take: &'a TakeScores<'a>,
        rounds: Rounds<'a>,
    ) -> Self {
        let (order, batch) = (EdgeOrder::of(graph), Vec::new());
        Self { order, means, batch, take, rounds, is_begun: false }
    }

    /// Hands on the batch before, and begins one of so many examples.
    pub(super) fn begin(&mut self, examples: usize) -> Result<()> {
        if self.is_begun {
            self.hand_on()?;
        }
        self.is_begun = true;
        self.batch.resize(examples * self.order.edges, 0.0);
        Ok(())
    }

    /// Whether batches are left to be handed on, of this process or of another.
    pub(super) fn are_left(&self) -> bool {
        self.is_begun || self.rounds.are_left()
    }

    /// Hands on a batch of each process, in their order: every process takes all examples' scores.
    pub(super) fn hand_on(&mut self) -> Result<()> {
        self.is_begun = false;
        self.rounds.next();
        let own = std::mem::take(&mut self.batch);
        let peers = self.rounds.peers;
        for scores in peers::exchange(peers, peers.size(), vec![own])? {
            if !scores.is_empty() {
                (self.take)(&scores)?;
            }
        }
        Ok(())
    }

    pub(super) fn add(&mut self, example: usize, writer: Writer, reader: Reader, score: f64) {
        let place = self.order.place(writer, reader);
        self.batch[example * self.order.edges + place] += score;
    }

    /// What was written less its mean, where the ablation is one.
    pub(super) fn centred(&self, difference: &Difference) -> Result<Option<Sites>> {
        let Some(means) = &self.means else {
            return Ok(None);
        };
        let Difference { view, sites, .. } = difference;
        let centred = sites.iter().zip(means).map(|(site, means)| match (site, means) {
            (Some(SiteWrites { source, values }), Some(means)) => {
                let means = view.places.rows_of(&means.values, values.dim(0)?)?;
                Ok(Some(SiteWrites { source: source.clone(), values: (values - means)? }))
            }
            _ => Ok(None),
        });
        centred.collect::<Result<_>>().map(Some)
    }

    /// Adds `fraction` times each example's own products of a chunk of score rows.
    pub(super) fn multiply(
        &mut self,
        graph: &Graph,
        difference: &Difference,
        rows: &Range<usize>,
        (readers, sites): (&Stack, &[usize]),
        writers: &Stack,
        fraction: f64,
    ) -> Result<()> {
        let before = sites.iter().map(|&site| graph.writers_before(site).len()).max();
        let before = before.unwrap_or(0);
        if before == 0 {
            return Ok(());
        }
        let (readers, writers) = (readers.filled()?, writers.first(before)?);
        let d_model = readers.dim(1)? / rows.len();
        let examples = difference.view.examples.iter().enumerate();
        let parts: Vec<(usize, Range<usize>)> = examples
            .map(|(example, own)| (example, own.start.max(rows.start)..own.end.min(rows.end)))
            .filter(|(_, own)| !own.is_empty())
            .collect();
        let products: Vec<Vec<Vec<f64>>> = (parts.par_iter())
            .map(|(_, own)| {
                let columns = (own.start - rows.start) * d_model..(own.end - rows.start) * d_model;
                product(&readers, &writers, columns)
            })
            .collect::<Result<_>>()?;
        for ((example, _), products) in parts.iter().zip(products) {
            let batch = &mut self.batch[example * self.order.edges..][..self.order.edges];
            let indices = sites.iter().flat_map(|&site| {
                graph.readers_of(site).map(move |reader| (reader, graph.writers_before(site).len()))
            });
            for ((reader, before), products) in indices.zip(products) {
                let sums = &mut batch[self.order.starts[reader]..][..before];
                for (sum, product) in sums.iter_mut().zip(products) {
                    *sum += fraction * product;
                }
            }
        }
        Ok(())
    }
}
