//! What discovery looks at of one batch: which rows, and what of each site's writes and gradients. It
//! is taken while a pass runs, so that the pass need keep neither for it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Tensor};

use super::{Discovery, Positions};
use crate::example::Batch;
use crate::graph::Graph;
use crate::ops::{Kept, multiply_blocks_into, sum_rows, weight};
use crate::pass::{Captured, Reading, Unembedding, Writing, Written};
use crate::{Error, Result};

/// The rows of a batch that count, and how they are folded.
pub(super) struct BatchView {
    positions: Positions,
    /// Rows of real tokens, padding left out.
    pub(super) tokens: Vec<u32>,
    /// Where the graph is read: the rows, u32 [n], and what folds them to score rows.
    pub(super) clean: Fold,
    /// The same on the counterfactuals.
    pub(super) corrupt: Fold,
    /// The place of each score row.
    pub(super) places: Vec<u32>,
}

/// Rows to gather and, for key positions, the averages [examples, rows] to take of them.
pub(super) struct Fold {
    rows: Vec<u32>,
    average: Option<Tensor>,
}

impl Fold {
    /// `keys[i]` are example i's key positions; a row is the position before.
    fn of_keys(keys: &[Vec<usize>], seq: usize, device: &Device) -> Result<Self> {
        let count: usize = keys.iter().map(Vec::len).sum();
        let mut rows = Vec::with_capacity(count);
        let mut average = vec![0f64; keys.len() * count];
        for (example, positions) in keys.iter().enumerate() {
            for position in positions {
                average[example * count + rows.len()] = 1.0 / positions.len() as f64;
                rows.push((example * seq + position - 1) as u32);
            }
        }
        Ok(Self { rows, average: Some(Tensor::from_vec(average, (keys.len(), count), device)?) })
    }

    fn gather(&self, values: &Tensor) -> Result<Tensor> {
        Ok(Kept::All.choose(values, &self.rows)?)
    }

    /// values [batch·seq, width] → [score rows, width].
    fn fold(&self, values: &Tensor) -> Result<Tensor> {
        self.average_rows(self.gather(values)?)
    }

    /// [..., n, width] → [..., score rows, width].
    pub(super) fn average_rows(&self, gathered: Tensor) -> Result<Tensor> {
        match &self.average {
            Some(average) => Ok(like(average, &gathered)?.broadcast_matmul(&gathered)?),
            None => Ok(gathered),
        }
    }
}

impl BatchView {
    pub(super) fn new(batch: &Batch, options: &Discovery) -> Result<Self> {
        let device = batch.tokens.device();
        let (mut tokens, mut places) = (Vec::new(), Vec::new());
        for (index, example) in batch.examples.iter().enumerate() {
            for position in 0..example.tokens.len() {
                tokens.push(batch.row(index, position));
                places.push(position as u32);
            }
        }
        let (clean, corrupt, places) = match options.positions {
            Positions::All => {
                let all = || Fold { rows: tokens.clone(), average: None };
                (all(), all(), places)
            }
            Positions::Key => {
                let keys: Vec<Vec<usize>> = (batch.examples.iter())
                    .map(|example| example.keys.iter().map(|key| key.position).collect())
                    .collect();
                let counterfactuals = batch.examples.iter().map(|e| e.counterfactual.as_ref());
                let corrupt_keys: Vec<Vec<usize>> = (counterfactuals.clone())
                    .map(|c| c.map_or(Vec::new(), |c| c.key_positions.clone()))
                    .collect();
                let corrupt_seq = counterfactuals.flatten().map(|c| c.tokens.len()).max();
                (
                    Fold::of_keys(&keys, batch.seq, device)?,
                    Fold::of_keys(&corrupt_keys, corrupt_seq.unwrap_or(0), device)?,
                    vec![0; batch.examples.len()],
                )
            }
        };
        Ok(Self { positions: options.positions, tokens, clean, corrupt, places })
    }

    /// What takes in the writes of a pass as they are made, and where it puts them. With `sums` it
    /// also adds up what was written at each of so many places, with key positions over all tokens.
    pub(super) fn watch(
        self: &Arc<Self>,
        graph: &Graph,
        fold: fn(&Self) -> &Fold,
        sums: Option<usize>,
    ) -> (Watched, impl Fn(Written) -> Result<()> + use<>) {
        let (watched, view) = (Watched::default(), self.clone());
        let sites = 0..graph.site_count();
        let alone: Vec<bool> = sites.map(|site| graph.writers_of(site).len() == 1).collect();
        let put = watched.clone();
        let watch = move |written: Written| {
            let (site, source, values) = match written {
                Written::Embedding { site, output } => {
                    (site, Source::Embedding(output.clone()), output)
                }
                // At a few positions less is kept, and projected later, if it is z.
                Written::Projected { writing, output, .. }
                    if view.positions == Positions::All && alone[writing.site] =>
                {
                    (writing.site, Source::Output(writing), output.copy()?)
                }
                Written::Projected { writing, z, .. } => {
                    (writing.site, Source::Projection(writing), z)
                }
            };
            let sum = sums.map(|places| view.sum(&values, places)).transpose()?;
            let values = fold(&view).fold(&values)?;
            let folded = Folded { site, writes: SiteWrites { source, values }, sum };
            put.0.lock().unwrap_or_else(PoisonError::into_inner).push(folded);
            Ok(())
        };
        (watched, watch)
    }

    /// The sum by place [places, width] of values [batch·seq, width].
    fn sum(&self, values: &Tensor, places: usize) -> Result<Tensor> {
        match self.positions {
            Positions::Key => Ok(sum_rows(values, &self.tokens)?),
            Positions::All => {
                let zeros =
                    Tensor::zeros((places, values.dim(1)?), values.dtype(), values.device())?;
                let index = Tensor::new(&self.places[..], values.device())?;
                Ok(zeros.index_add(&index, &self.clean.gather(values)?, 0)?)
            }
        }
    }

    /// What a backward pass left of the readers at a site of the graph, if this is of any.
    pub(super) fn gradients(
        &self,
        graph: &Graph,
        captured: &Captured,
    ) -> Result<Option<SiteGradients>> {
        let rows = &self.clean.rows;
        let (source, x, kept, gradient) = match captured {
            Captured::Reading { reading, x, kept, normed, projected } => {
                // A site's only reader has the whole gradient at the normalised stream.
                let only = graph.readers_of(reading.site).len() == 1;
                let gradient = if only { normed } else { projected };
                (ReadBy::Projection(reading.clone()), x, kept, gradient)
            }
            Captured::FinalNorm { unembedding, x, kept, normed } => {
                (ReadBy::Unembedding(unembedding.clone()), x, kept, normed)
            }
            _ => return Ok(None),
        };
        if graph.readers_of(source.site()).is_empty() {
            return Ok(None);
        }
        let (x, gradient) = (Kept::All.choose(x, rows)?, kept.choose(gradient, rows)?);
        Ok(Some(SiteGradients { source, x, gradient }))
    }
}

/// What a pass wrote, site by site.
#[derive(Clone, Default)]
pub(super) struct Watched(Arc<Mutex<Vec<Folded>>>);

/// Of one site.
pub(super) struct Folded {
    pub(super) site: usize,
    /// At the score rows.
    pub(super) writes: SiteWrites,
    /// The sum by place, where it was asked for.
    pub(super) sum: Option<Tensor>,
}

impl Watched {
    /// The embedding's whole output [batch·seq, d_model].
    pub(super) fn embedding(&self) -> Result<Tensor> {
        let watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let output = watched.iter().find_map(|folded| match &folded.writes.source {
            Source::Embedding(output) => Some(output.clone()),
            Source::Projection(_) | Source::Output(_) => None,
        });
        output.ok_or_else(|| Error::input("the model announces no embedding"))
    }

    pub(super) fn take(&self) -> Vec<Folded> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What one site's writers wrote, row by row, before or after its projection.
#[derive(Clone)]
pub(super) struct SiteWrites {
    pub(super) source: Source,
    /// [rows, writers × width], or [rows, d_model] for the embedding.
    pub(super) values: Tensor,
}

#[derive(Clone)]
pub(super) enum Source {
    /// The whole output [batch·seq, d_model].
    Embedding(Tensor),
    Projection(Arc<Writing>),
    /// Of a site's only writer, projected already.
    Output(Arc<Writing>),
}

impl SiteWrites {
    pub(super) fn d_model(&self) -> Result<usize> {
        Ok(match &self.source {
            Source::Projection(writing) => writing.weight.tensor.dim(1)?,
            Source::Embedding(_) | Source::Output(_) => self.values.dim(1)?,
        })
    }

    /// Puts the writers' outputs for some rows in a place [writers, rows, d_model].
    pub(super) fn expand_into(
        &self,
        rows: Range<usize>,
        with_bias: bool,
        place: &Tensor,
    ) -> Result<()> {
        let values = self.values.narrow(0, rows.start, rows.len())?;
        let writing = match &self.source {
            Source::Embedding(_) => return Ok(place.slice_set(&values.unsqueeze(0)?, 0, 0)?),
            Source::Output(writing) => {
                place.slice_set(&values.unsqueeze(0)?, 0, 0)?;
                writing
            }
            Source::Projection(writing) => {
                let weight = weight::widened(&writing.weight.tensor)?;
                multiply_blocks_into(&values, &weight, place)?;
                writing
            }
        };
        match &writing.bias {
            Some(bias) if with_bias && writing.bias_is_written => {
                Ok(place.slice_set(&place.broadcast_add(&bias.tensor)?, 0, 0)?)
            }
            _ => Ok(()),
        }
    }
}

/// What one site's readers are given back, at the rows where the graph is read.
pub(super) struct SiteGradients {
    source: ReadBy,
    /// The stream that was read [rows, d_model].
    x: Tensor,
    /// The gradient at the normalised stream [rows, d_model] of a site with one reader, at the
    /// projection's output [rows, readers × width] of others.
    gradient: Tensor,
}

enum ReadBy {
    Projection(Arc<Reading>),
    Unembedding(Arc<Unembedding>),
}

impl ReadBy {
    fn site(&self) -> usize {
        match self {
            Self::Projection(reading) => reading.site,
            Self::Unembedding(unembedding) => unembedding.site,
        }
    }
}

impl SiteGradients {
    pub(super) fn site(&self) -> usize {
        self.source.site()
    }

    /// The stream that was read [rows, d_model].
    pub(super) fn stream(&self) -> &Tensor {
        &self.x
    }

    /// Puts the gradients at the readers' inputs for some rows in a place [readers, rows, d_model]:
    /// through each reader's rows of the weight, then through the normalisation.
    pub(super) fn expand_into(&self, rows: Range<usize>, place: &Tensor) -> Result<()> {
        let x = self.x.narrow(0, rows.start, rows.len())?;
        let gradient = self.gradient.narrow(0, rows.start, rows.len())?;
        let norm = match &self.source {
            ReadBy::Projection(reading) if place.dim(0)? > 1 => {
                let weight = weight::widened(&reading.weight.tensor)?;
                return Ok(reading.norm.pull_back_blocks_into(&x, &gradient, &weight, place)?);
            }
            ReadBy::Projection(reading) => &reading.norm,
            ReadBy::Unembedding(unembedding) => &unembedding.norm,
        };
        Ok(place.slice_set(&norm.pull_back(&x, &gradient)?.unsqueeze(0)?, 0, 0)?)
    }
}

/// `tensor` with the type and on the device of `other`.
pub(super) fn like(tensor: &Tensor, other: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_dtype(other.dtype())?.to_device(other.device())?)
}
