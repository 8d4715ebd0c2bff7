//! What discovery looks at of one batch: which rows, and what of each site's writes and gradients. It
//! is taken while a pass runs, so that the pass need keep neither for it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use super::score_rows::{Fold, Places, places_of_keys};
use super::site_values::{ReadBy, SiteGradients, SiteWrites, Source};
use super::{Ablation, Discovery, Positions};
use crate::data::example::Batch;
use crate::graph::Graph;
use crate::ops::{Kept, sum_rows};
use crate::pass::{Captured, Rules, Written};
use crate::{Error, Result, refuse};

/// What is written on a batch's clean pass, as far as that has run, and on its counterfactuals'.
pub struct Observation {
    pub(super) view: Arc<BatchView>,
    pub(super) clean: Watched,
    pub(super) corrupt: Option<Watched>,
}

impl Observation {
    /// The embedding's output [batch·seq, d_model] on the counterfactuals and on the clean pass, once
    /// that has run.
    ///
    /// # Errors
    /// If the counterfactuals were not asked for, or the clean pass has not run.
    pub fn embeddings(&self) -> Result<[Tensor; 2]> {
        let Some(corrupt) = &self.corrupt else {
            return Err(Error::input("the counterfactuals were not run"));
        };
        Ok([corrupt.embedding()?, self.clean.embedding()?])
    }
}

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

/// What a pass wrote, site by site.
#[derive(Clone, Default)]
pub(super) struct Watched(Arc<Mutex<Vec<Folded>>>);

/// What one site wrote.
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
