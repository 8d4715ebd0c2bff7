//! The running sums behind the scores. Writers' outputs and readers' gradients are expanded to
//! [nodes, rows, d_model] only for a chunk of rows at a time, and only after gathering: a row is an
//! example (its key positions averaged) or a token.
//!
//! A mean ablation needs no second pass: Σ⟨a − ā, g⟩ = Σ⟨a, g⟩ − ⟨ā, Σg⟩. Both sums run by
//! *place*: a position in the sequence where means are positional, one place for all tokens otherwise.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::added::Added;
use super::by_example::ExampleScores;
use super::observation::{BatchView, Folded, Watched};
use super::products::{Difference, Group, Stack, products};
use super::score_rows::like;
use super::site_values::{SiteGradients, SiteWrites, Sites};
use super::{Ablation, Discovery};
use crate::graph::Graph;
use crate::peers::{self, Rounds};
use crate::{Error, Result};

/// Rows expanded at once.
const CHUNK: usize = 64;

/// The running sums: of whole rounds of batches, and of the batch that is not yet in one.
pub(super) struct Sums<'a> {
    options: Discovery,
    /// How many means are formed; 0 where the ablation is none.
    places: usize,
    device: Device,
    rounds: Rounds<'a>,
    /// Whether this process has a batch that is not yet in a round.
    is_begun: bool,
    all: Added,
    batch: Added,
}

impl<'a> Sums<'a> {
    pub(super) fn new(
        graph: &Graph,
        options: &Discovery,
        longest: usize,
        device: Device,
        rounds: Rounds<'a>,
    ) -> Self {
        let places = match options.ablation {
            Ablation::Mean => 1,
            Ablation::MeanPositional => longest,
            Ablation::Zero | Ablation::Corrupt => 0,
        };
        let nothing = Added::nothing(graph, places);
        Self {
            options: options.clone(),
            places,
            device,
            rounds,
            is_begun: false,
            all: nothing.clone(),
            batch: nothing,
        }
    }

    /// These sums, formed by these rounds.
    pub(super) fn by(self, rounds: Rounds<'a>) -> Self {
        Self { rounds, ..self }
    }

    /// The rounds, to be made once more for other sums.
    pub(super) fn rounds(&self) -> &Rounds<'a> {
        &self.rounds
    }

    /// Begins a batch, whose examples weigh so much together: the one before is complete, and added.
    pub(super) fn begin(&mut self, weight: f64) -> Result<()> {
        if self.is_begun {
            self.make_round()?;
        }
        self.is_begun = true;
        self.batch.weight += weight;
        Ok(())
    }

    /// Adds the last batches.
    pub(super) fn end(&mut self) -> Result<()> {
        while self.are_left() {
            self.make_round()?;
        }
        Ok(())
    }

    /// Whether batches are left to be added, of this process or of another.
    pub(super) fn are_left(&self) -> bool {
        self.is_begun || self.rounds.are_left()
    }

    /// Adds to all that there is a batch of each process.
    pub(super) fn make_round(&mut self) -> Result<()> {
        self.is_begun = false;
        let own = self.batch.take()?;
        let sums = self.rounds.add(self.all.take()?, own, &self.device)?;
        self.all.put(sums, &self.batch.writes)?;
        self.batch.writes.fill(None);
        Ok(())
    }

    pub(super) fn count(&mut self, metric: f64) {
        self.batch.metric += metric;
    }

    /// The mean metric, as far as this process knows it.
    pub(super) fn metric(&self) -> f64 {
        (self.all.metric + self.batch.metric) / (self.all.weight + self.batch.weight)
    }

    /// Where the ablation is a mean, how many means there are.
    pub(super) fn places_of_means(&self) -> Option<usize> {
        (self.places > 0).then_some(self.places)
    }

    /// Adds what a batch's clean pass wrote to the means, and returns what the batch's gradients
    /// are to be multiplied with.
    pub(super) fn add_writes(
        &mut self,
        view: Arc<BatchView>,
        clean: &Watched,
        corrupt: Option<&Watched>,
    ) -> Result<Difference> {
        let mut sites = vec![None; self.batch.writes.len()];
        // With key positions too a mean is taken over all tokens, not over the key ones.
        match self.places {
            0 => {}
            1 => self.batch.counts[0] += view.tokens.len() as f64,
            _ => {
                let counts = &mut self.batch.counts;
                view.token_positions.iter().for_each(|&at| counts[at as usize] += 1.0);
            }
        }
        let corrupt = corrupt.map(Watched::take).unwrap_or_default();
        for (index, folded) in clean.take().into_iter().enumerate() {
            let Folded { site, mut writes, sum } = folded;
            if let Some(sum) = sum {
                self.add_to_mean(site, &writes, sum)?;
            }
            if self.options.ablation == Ablation::Corrupt {
                let corrupt =
                    corrupt.get(index).ok_or_else(|| Error::input("no counterfactual run"))?;
                writes.values = (writes.values - &corrupt.writes.values)?;
            }
            sites[site] = Some(writes);
        }
        Ok(Difference { view, sites, centred: None })
    }

    fn add_to_mean(&mut self, site: usize, writes: &SiteWrites, sum: Tensor) -> Result<()> {
        let values = match self.batch.writes[site].take() {
            Some(before) => (before.values + sum)?,
            None => sum,
        };
        self.batch.writes[site] = Some(SiteWrites { source: writes.source.clone(), values });
        Ok(())
    }

    /// Adds `fraction` times the products with the gradients that a backward pass left, and where they are
    /// asked for those of each example.
    pub(super) fn add_gradients(
        &mut self,
        graph: &Graph,
        difference: &Difference,
        mut gradients: Vec<SiteGradients>,
        fraction: f64,
        mut examples: Option<&mut ExampleScores>,
    ) -> Result<()> {
        let Difference { view, sites, centred } = difference;
        gradients.sort_by_key(SiteGradients::site);
        check_sites(graph, &gradients)?;
        let gathered = gradients.first().map_or(0, |gradients| gradients.stream().dims()[0]);
        // Rows that are averaged example by example stay in one chunk.
        let averages = view.clean.averages();
        let chunk = if averages { gathered.max(1) } else { CHUNK };
        let (mut writes, mut group) = (Stack::of_writers(graph), Group::new(graph));
        let mut own_writes = centred.as_ref().map(|_| Stack::of_writers(graph));
        for start in (0..gathered).step_by(chunk) {
            let rows = start..gathered.min(start + chunk);
            let score_rows = if averages { 0..view.score_rows() } else { rows.clone() };
            self.expand(graph, sites, score_rows.clone(), &mut writes)?;
            if let Some((centred, own_writes)) = centred.as_ref().zip(own_writes.as_mut()) {
                self.expand(graph, centred, score_rows.clone(), own_writes)?;
            }
            let mut multiply = |sums: &mut Self, group: &mut Group| -> Result<()> {
                if let Some(examples) = &mut examples {
                    let writes = own_writes.as_ref().unwrap_or(&writes);
                    let readers = (&group.stack, &group.sites[..]);
                    examples.multiply(graph, difference, &score_rows, readers, writes, fraction)?;
                }
                sums.multiply(graph, &writes, group, fraction)
            };
            for gradients in &gradients {
                let (site, stream) = (gradients.site(), gradients.stream());
                let (readers, d_model) = (graph.readers_of(site).len(), stream.dim(1)?);
                let place = group.place(site, (readers, score_rows.len(), d_model), stream)?;
                if averages {
                    let shape = (readers, rows.len(), d_model);
                    let all = Tensor::zeros(shape, stream.dtype(), stream.device())?;
                    gradients.expand_into(rows.clone(), &all)?;
                    place.slice_set(&view.clean.average_rows(all)?, 0, 0)?;
                } else {
                    gradients.expand_into(rows.clone(), &place)?;
                }
                if self.places > 0 {
                    self.add_gradient_sum(site, view, score_rows.clone(), &place, fraction)?;
                }
                if group.is_full() {
                    multiply(self, &mut group)?;
                }
            }
            multiply(self, &mut group)?;
        }
        Ok(())
    }

    /// Stacks the outputs of all the graph's writers for some rows.
    fn expand(
        &self,
        graph: &Graph,
        sites: &Sites,
        rows: Range<usize>,
        stack: &mut Stack,
    ) -> Result<()> {
        // A writer's bias cancels in every difference but the one with nothing.
        let with_bias = self.options.ablation == Ablation::Zero;
        stack.clear();
        for (site, writes) in sites.iter().enumerate() {
            let writers = graph.writers_of(site).len();
            if writers == 0 {
                continue;
            }
            let writes = writes.as_ref().ok_or_else(|| {
                Error::input(format!("the model announces no write at site {site} of its graph"))
            })?;
            let shape = (writers, rows.len(), writes.d_model()?);
            let place = stack.place(shape, &writes.values)?;
            writes.expand_into(rows.clone(), with_bias, &place)?;
        }
        Ok(())
    }

    fn add_gradient_sum(
        &mut self,
        site: usize,
        view: &BatchView,
        score_rows: Range<usize>,
        gradients: &Tensor,
        fraction: f64,
    ) -> Result<()> {
        let (readers, _, d_model) = gradients.dims3()?;
        let shape = (readers, self.places, d_model);
        let before = match self.batch.gradients[site].take() {
            Some(sum) => sum,
            None => Tensor::zeros(shape, gradients.dtype(), gradients.device())?,
        };
        self.batch.gradients[site] =
            Some(view.places.add(before, score_rows, gradients, fraction)?);
        Ok(())
    }

    /// scores[u, d] += fraction · Σ over rows of ⟨writes[u], gradients[d]⟩, for the readers d of the
    /// group's sites and the writers u before them. Empties the group.
    fn multiply(
        &mut self,
        graph: &Graph,
        writes: &Stack,
        group: &mut Group,
        fraction: f64,
    ) -> Result<()> {
        let before = group.sites.iter().map(|&site| graph.writers_before(site).len()).max();
        let before = before.unwrap_or(0);
        if before > 0 {
            let all_readers = graph.readers().len();
            let readers = group.sites.iter().flat_map(|&site| {
                graph.readers_of(site).map(move |reader| (reader, graph.writers_before(site)))
            });
            for products in products(&group.stack, &writes.first(before)?)? {
                for ((reader, before), products) in readers.clone().zip(&products) {
                    for writer in before {
                        self.batch.scores[writer * all_readers + reader] +=
                            fraction * products[writer];
                    }
                }
            }
        }
        group.sites.clear();
        group.stack.clear();
        Ok(())
    }

    /// The scores of all batches, which are added, the means' share taken off: by the first process, which has
    /// run one.
    pub(super) fn finish(&mut self, graph: &Graph) -> Result<Vec<f32>> {
        if self.places == 0 {
            return Ok(self.all.scores.iter().map(|&score| score as f32).collect());
        }
        let bytes = peers::by_the_first(self.rounds.peers, || {
            self.subtract_means(graph)?;
            let scores = self.all.scores.iter().zip(&self.batch.scores);
            Ok(scores.flat_map(|(all, means)| ((all + means) as f32).to_le_bytes()).collect())
        })?;
        let (scores, _) = bytes.as_chunks();
        Ok(scores.iter().map(|&score| f32::from_le_bytes(score)).collect())
    }

    /// By site: the mean of what was written at each place over all batches that are added, [places, width].
    pub(super) fn means(&self) -> Result<Sites> {
        let inverse: Vec<f64> = self.all.counts.iter().map(|&n| 1.0 / n.max(1.0)).collect();
        let inverse = Tensor::from_vec(inverse, (self.places, 1), &Device::Cpu)?;
        let mut means = self.all.writes.clone();
        for mean in means.iter_mut().flatten() {
            mean.values = mean.values.broadcast_mul(&like(&inverse, &mean.values)?)?;
        }
        Ok(means)
    }

    fn subtract_means(&mut self, graph: &Graph) -> Result<()> {
        let means = self.means()?;
        let sums = std::mem::take(&mut self.all.gradients);
        let (mut writes, mut group) = (Stack::of_writers(graph), Group::new(graph));
        for start in (0..self.places).step_by(CHUNK) {
            let len = CHUNK.min(self.places - start);
            self.expand(graph, &means, start..start + len, &mut writes)?;
            for (site, sum) in sums.iter().enumerate() {
                if let Some(sum) = sum {
                    let sum = sum.narrow(1, start, len)?.contiguous()?;
                    group.place(site, sum.dims3()?, &sum)?.slice_set(&sum, 0, 0)?;
                }
                if group.is_full() {
                    self.multiply(graph, &writes, &mut group, -1.0)?;
                }
            }
            self.multiply(graph, &writes, &mut group, -1.0)?;
        }
        Ok(())
    }
}

/// Refuses a backward pass that did not come by every reader of the graph.
fn check_sites(graph: &Graph, gradients: &[SiteGradients]) -> Result<()> {
    let mut sites = (0..graph.site_count()).filter(|&site| !graph.readers_of(site).is_empty());
    match sites.find(|site| !gradients.iter().any(|gradients| gradients.site() == *site)) {
        Some(site) => Err(Error::input(format!("no gradient reached site {site} of the graph"))),
        None => Ok(()),
    }
}
