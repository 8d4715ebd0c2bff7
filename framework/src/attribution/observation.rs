//! What discovery looks at of one batch: which rows, and what of each site's writes and gradients. It
//! is taken while a pass runs, so that the pass need keep neither for it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Tensor};

use super::{Ablation, Discovery, Positions};
use crate::data::example::Batch;
use crate::graph::Graph;
use crate::ops::{Kept, add_by_place, multiply_blocks_into, sum_rows, weight};
use crate::pass::{Captured, Reading, Rules, Unembedding, Writing, Written};
use crate::{Error, Result, refuse};

/// The rows of a batch that count. A score row is a token or, with key positions, an example, whose
/// rows are averaged.
pub(super) struct BatchView {
    /// Rows of real tokens, padding left out.
    pub(super) tokens: Vec<u32>,
    /// The position of each of these tokens in its example.
    pub(super) token_positions: Vec<u32>,
    /// Where the graph is read in the clean run.
    pub(super) clean: Fold,
    /// Where it is read in the counterfactuals' run.
    pub(super) corrupt: Fold,
    /// With which mean each score row's gradient is multiplied.
    pub(super) places: Places,
    /// The score rows of each example.
    pub(super) examples: Vec<Range<usize>>,
}

/// Rows to gather and, where an example has several key positions, how they are averaged.
pub(super) struct Fold {
    rows: Vec<u32>,
    average: Option<Average>,
}

/// Gathered rows averaged example by example.
struct Average {
    examples: usize,
    /// The example of each gathered row.
    example_of: Vec<u32>,
    /// What each counts in its example's mean.
    weights: Vec<f64>,
}

/// A mean ablation's means, each of a place: a position, or all tokens together.
pub(super) enum Places {
    /// Each score row has one.
    One(Vec<u32>),
    /// Examples with several key positions have several, each with a share.
    Several { score_rows: Vec<u32>, places: Vec<u32>, shares: Vec<f64> },
}

impl Fold {
    /// `keys[i]` are example i's key positions; a row is the position before.
    fn of_keys(keys: &[Vec<usize>], seq: usize) -> Self {
        let (mut rows, mut example_of, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for (example, positions) in keys.iter().enumerate() {
            for position in positions {
                rows.push((example * seq + position - 1) as u32);
                example_of.push(example as u32);
                weights.push(1.0 / positions.len() as f64);
            }
        }
        let average = Average { examples: keys.len(), example_of, weights };
        let one_each = keys.iter().all(|positions| positions.len() == 1);
        Self { rows, average: (!one_each).then_some(average) }
    }

    /// Whether several rows make one score row.
    pub(super) fn averages(&self) -> bool {
        self.average.is_some()
    }

    /// values [batch·seq, width] → [score rows, width].
    fn fold(&self, values: &Tensor) -> Result<Tensor> {
        let gathered = Kept::All.choose(values, &self.rows)?;
        Ok(self.average_rows(gathered.unsqueeze(0)?)?.squeeze(0)?)
    }

    /// [nodes, gathered rows, width] → [nodes, score rows, width].
    pub(super) fn average_rows(&self, gathered: Tensor) -> Result<Tensor> {
        let Some(Average { examples, example_of, weights }) = &self.average else {
            return Ok(gathered);
        };
        let (nodes, _, width) = gathered.dims3()?;
        let sums = Tensor::zeros((nodes, *examples, width), gathered.dtype(), gathered.device())?;
        Ok(add_by_place(sums, example_of, &scale_rows(&gathered, weights)?, 1.0)?)
    }
}

impl Places {
    /// Adds to sums [nodes, places, width] `fraction` times the gradients [nodes, score rows, width] of
    /// some score rows; where there are several places a row, of all of them.
    pub(super) fn add(
        &self,
        sums: Tensor,
        score_rows: Range<usize>,
        gradients: &Tensor,
        fraction: f64,
    ) -> Result<Tensor> {
        match self {
            Places::One(places) => {
                Ok(add_by_place(sums, &places[score_rows], gradients, fraction)?)
            }
            Places::Several { score_rows, places, shares } => {
                let index = Tensor::new(&score_rows[..], gradients.device())?;
                let gradients = scale_rows(&gradients.index_select(&index, 1)?, shares)?;
                Ok(add_by_place(sums, places, &gradients, fraction)?)
            }
        }
    }

    /// The mean of each of `rows` score rows, [rows, width], from those of all places, [places, width];
    /// where there are several places a row, their mean.
    pub(super) fn rows_of(&self, means: &Tensor, rows: usize) -> Result<Tensor> {
        let chosen = |places: &[u32]| -> Result<Tensor> {
            Ok(means.index_select(&Tensor::new(places, means.device())?, 0)?)
        };
        match self {
            Places::One(places) => chosen(places),
            Places::Several { score_rows, places, shares } => {
                let means = scale_rows(&chosen(places)?.unsqueeze(0)?, shares)?;
                let sums = (1, rows, means.dim(2)?);
                let sums = Tensor::zeros(sums, means.dtype(), means.device())?;
                Ok(add_by_place(sums, score_rows, &means, 1.0)?.squeeze(0)?)
            }
        }
    }
}

/// [nodes, rows, width] with each row multiplied by its own factor.
fn scale_rows(values: &Tensor, factors: &[f64]) -> Result<Tensor> {
    let factors = Tensor::new(factors, &Device::Cpu)?.unsqueeze(1)?;
    Ok(values.broadcast_mul(&like(&factors, values)?)?)
}

impl BatchView {
    pub(super) fn new(batch: &Batch, options: &Discovery) -> Self {
        let (mut tokens, mut token_positions) = (Vec::new(), Vec::new());
        let mut tokens_of = Vec::new();
        for (index, example) in batch.examples.iter().enumerate() {
            tokens_of.push(tokens.len()..tokens.len() + example.tokens.len());
            for position in 0..example.tokens.len() {
                tokens.push(batch.row(index, position));
                token_positions.push(position as u32);
            }
        }
        let positional = options.ablation == Ablation::MeanPositional;
        let (clean, corrupt, places) = match options.positions {
            Positions::All => {
                let all = || Fold { rows: tokens.clone(), average: None };
                let places = match positional {
                    true => token_positions.clone(),
                    false => vec![0; tokens.len()],
                };
                (all(), all(), Places::One(places))
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
                let places = match positional {
                    true => places_of_keys(&keys),
                    false => Places::One(vec![0; keys.len()]),
                };
                let corrupt = Fold::of_keys(&corrupt_keys, corrupt_seq.unwrap_or(0));
                (Fold::of_keys(&keys, batch.seq), corrupt, places)
            }
        };
        let examples = match options.positions {
            Positions::All => tokens_of,
            Positions::Key => (0..batch.examples.len()).map(|index| index..index + 1).collect(),
        };
        Self { tokens, token_positions, clean, corrupt, places, examples }
    }

    /// How many score rows there are.
    pub(super) fn score_rows(&self) -> usize {
        self.clean.average.as_ref().map_or(self.clean.rows.len(), |average| average.examples)
    }

    /// Whether the graph is read at all positions.
    fn reads_all(&self) -> bool {
        !self.clean.averages() && self.clean.rows.len() == self.tokens.len()
    }

    /// What takes in the writes of a pass as they are made, and puts them in `watched`. With `means` it
    /// also adds up what was written at each of so many places, over all tokens.
    pub(super) fn watch(
        self: &Arc<Self>,
        graph: &Graph,
        fold: fn(&Self) -> &Fold,
        means: Option<usize>,
        watched: &Watched,
    ) -> impl Fn(Written) -> Result<()> + use<> {
        let view = self.clone();
        let sites = 0..graph.site_count();
        let alone: Vec<bool> = sites.map(|site| graph.writers_of(site).len() == 1).collect();
        let put = watched.clone();
        move |written: Written| {
            let values = written.values()?;
            let (site, source, values) = match written {
                Written::Embedding { site, output } => (site, Source::Embedding(output), values),
                // At a few positions less is kept, and projected later, if it is z.
                Written::Projected { writing, output, .. }
                    if view.reads_all() && alone[writing.site] =>
                {
                    (writing.site, Source::Output(writing), output.copy()?)
                }
                Written::Projected { writing, .. } => {
                    (writing.site, Source::Projection(writing), values)
                }
            };
            let sum = means.map(|places| view.sum(&values, places)).transpose()?;
            let values = fold(&view).fold(&values)?;
            let folded = Folded { site, writes: SiteWrites { source, values }, sum };
            put.0.lock().unwrap_or_else(PoisonError::into_inner).push(folded);
            Ok(())
        }
    }

    /// The sum by place [places, width] of values [batch·seq, width].
    fn sum(&self, values: &Tensor, places: usize) -> Result<Tensor> {
        if places == 1 {
            return Ok(sum_rows(values, &self.tokens)?);
        }
        let zeros = Tensor::zeros((places, values.dim(1)?), values.dtype(), values.device())?;
        let index = Tensor::new(&self.token_positions[..], values.device())?;
        Ok(zeros.index_add(&index, &Kept::All.choose(values, &self.tokens)?, 0)?)
    }

    /// What a backward pass by these rules left of the readers at a site of the graph, if this is of any.
    pub(super) fn gradients(
        &self,
        graph: &Graph,
        captured: &Captured,
        rules: Rules,
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
            Captured::ReadingApart { reading, .. } => refuse!(
                "edges into site {} are ablated; edges are scored in a pass that ablates none",
                reading.site
            ),
            _ => return Ok(None),
        };
        if graph.readers_of(source.site()).is_empty() {
            return Ok(None);
        }
        let (x, gradient) = (Kept::All.choose(x, rows)?, kept.choose(gradient, rows)?);
        Ok(Some(SiteGradients { source, x, gradient, rules }))
    }
}

/// The places where examples with these key positions are read.
fn places_of_keys(keys: &[Vec<usize>]) -> Places {
    if keys.iter().all(|positions| positions.len() == 1) {
        return Places::One(keys.iter().map(|positions| positions[0] as u32 - 1).collect());
    }
    let (mut score_rows, mut places, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for (example, positions) in keys.iter().enumerate() {
        for &position in positions {
            score_rows.push(example as u32);
            places.push(position as u32 - 1);
            shares.push(1.0 / positions.len() as f64);
        }
    }
    Places::Several { score_rows, places, shares }
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
                multiply_blocks_into(&values, &writing.output_weight()?, place)?;
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
    /// Of the backward pass: the way through the normalisation is its last part.
    rules: Rules,
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
        let pulled = match &self.source {
            ReadBy::Projection(reading) if place.dim(0)? > 1 => {
                let weight = weight::widened(&reading.weight.tensor)?;
                match &reading.norm {
                    Some(norm) => {
                        norm.pull_back_blocks_into(&x, &gradient, &weight, place, self.rules)?;
                    }
                    None => multiply_blocks_into(&gradient, &weight, place)?,
                }
                return Ok(());
            }
            ReadBy::Projection(reading) => reading.pull_back(&x, &gradient, self.rules)?,
            ReadBy::Unembedding(unembedding) => {
                unembedding.norm.pull_back(&x, &gradient, self.rules)?
            }
        };
        Ok(place.slice_set(&pulled.unsqueeze(0)?.contiguous()?, 0, 0)?)
    }
}

/// `tensor` with the type and on the device of `other`.
pub(super) fn like(tensor: &Tensor, other: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_dtype(other.dtype())?.to_device(other.device())?)
}
