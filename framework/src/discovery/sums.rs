//! The running sums behind the scores. Writers' outputs and readers' gradients are expanded to
//! [nodes, rows, d_model] only for a chunk of rows at a time, and only after gathering: a row is an
//! example (its key positions averaged) or a token.
//!
//! A mean ablation needs no second pass: Σ⟨a − ā, g⟩ = Σ⟨a, g⟩ − ⟨ā, Σg⟩. Both sums run by
//! *place*: a position in the sequence where all positions are read, one place for all otherwise.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::{Ablation, Discovery, Positions};
use crate::example::Batch;
use crate::graph::Graph;
use crate::ops::sum_rows;
use crate::pass::{Captured, Written};
use crate::{Error, Result};

/// Rows expanded at once.
const CHUNK: usize = 128;

/// The rows of a batch that count, and how they are folded.
pub(super) struct BatchView {
    /// Rows of real tokens, padding left out.
    tokens: Vec<u32>,
    /// Where the graph is read: the rows, u32 [n], and what folds them to score rows.
    clean: Fold,
    /// The same on the counterfactuals.
    corrupt: Fold,
    /// The place of each score row, u32 [rows].
    places: Tensor,
}

/// Rows to gather and, for key positions, the averages [examples, rows] to take of them.
struct Fold {
    rows: Tensor,
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
        Ok(Self {
            rows: Tensor::from_vec(rows, count, device)?,
            average: Some(Tensor::from_vec(average, (keys.len(), count), device)?),
        })
    }

    fn gather(&self, values: &Tensor) -> Result<Tensor> {
        Ok(values.index_select(&self.rows, 0)?)
    }

    /// values [batch·seq, width] → [score rows, width].
    fn fold(&self, values: &Tensor) -> Result<Tensor> {
        self.average_rows(self.gather(values)?)
    }

    /// [..., n, width] → [..., score rows, width].
    fn average_rows(&self, gathered: Tensor) -> Result<Tensor> {
        match &self.average {
            Some(average) => Ok(like(average, &gathered)?.broadcast_matmul(&gathered)?),
            None => Ok(gathered),
        }
    }
}

impl BatchView {
    pub(super) fn new(batch: &Batch, options: &Discovery) -> Result<Self> {
        let device = batch.tokens.device();
        let mut rows = Vec::new();
        let mut positions = Vec::new();
        for (index, example) in batch.examples.iter().enumerate() {
            for position in 0..example.tokens.len() {
                rows.push(batch.row(index, position));
                positions.push(position as u32);
            }
        }
        let (clean, corrupt, places) = match options.positions {
            Positions::All => {
                let all = || -> Result<Fold> {
                    Ok(Fold { rows: Tensor::new(&rows[..], device)?, average: None })
                };
                (all()?, all()?, Tensor::new(positions, device)?)
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
                let places = Tensor::zeros(batch.examples.len(), DType::U32, device)?;
                (
                    Fold::of_keys(&keys, batch.seq, device)?,
                    Fold::of_keys(&corrupt_keys, corrupt_seq.unwrap_or(0), device)?,
                    places,
                )
            }
        };
        Ok(Self { tokens: rows, clean, corrupt, places })
    }
}

/// What one site's writers wrote, row by row, before or after its projection.
#[derive(Clone)]
pub(super) struct SiteWrites {
    written: Written,
    /// [rows, writers × width], or [rows, d_model] for the embedding.
    values: Tensor,
}

impl SiteWrites {
    /// The writers' outputs [writers, rows, d_model].
    fn expand(&self, writers: usize, with_bias: bool) -> Result<Tensor> {
        match &self.written {
            Written::Embedding { .. } => Ok(self.values.unsqueeze(0)?),
            Written::Projected { writing, .. } => {
                let output = multiply_blocks(&self.values, &writing.weight.tensor, writers)?;
                match &writing.bias {
                    Some(bias) if with_bias && writing.bias_is_written => {
                        Ok(output.broadcast_add(&bias.tensor)?)
                    }
                    _ => Ok(output),
                }
            }
        }
    }

    fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        Ok(Self { written: self.written.clone(), values: self.values.narrow(0, start, len)? })
    }
}

/// values [rows, blocks × width] times weight [blocks × width, d_model], block by block:
/// [blocks, rows, d_model].
fn multiply_blocks(values: &Tensor, weight: &Tensor, blocks: usize) -> Result<Tensor> {
    let (rows, total) = values.dims2()?;
    let width = total / blocks;
    let values = values.reshape((rows, blocks, width))?.transpose(0, 1)?.contiguous()?;
    Ok(values.matmul(&weight.reshape((blocks, width, ()))?)?)
}

/// The site an announcement belongs to.
pub(super) fn site_of(written: &Written) -> usize {
    match written {
        Written::Embedding { site, .. } => *site,
        Written::Projected { writing, .. } => writing.site,
    }
}

/// By site: a − ã of one batch where ã is not a mean, a where it is.
pub(super) type Difference = Vec<Option<SiteWrites>>;

/// The running sums.
pub(super) struct Sums {
    options: Discovery,
    /// Row-major [writers, readers].
    scores: Vec<f64>,
    /// Real tokens added.
    tokens: usize,
    /// Score rows added.
    rows: usize,
    places: usize,
    /// How often each place was summed, [places].
    counts: Vec<f64>,
    /// Σ of what each site wrote, [places, width].
    writes: Vec<Option<SiteWrites>>,
    /// Σ of each site's readers' gradients, [readers, places, d_model].
    gradients: Vec<Option<Tensor>>,
}

impl Sums {
    pub(super) fn new(graph: &Graph, options: &Discovery, longest: usize) -> Self {
        let places = match options.positions {
            Positions::Key => 1,
            Positions::All => longest,
        };
        Self {
            options: options.clone(),
            scores: vec![0.0; graph.writers().len() * graph.readers().len()],
            tokens: 0,
            rows: 0,
            places,
            counts: vec![0.0; places],
            writes: vec![None; graph.site_count()],
            gradients: vec![None; graph.site_count()],
        }
    }

    /// Adds what a batch's clean pass wrote to the means, and returns what the batch's gradients
    /// are to be multiplied with.
    pub(super) fn add_writes(
        &mut self,
        view: &BatchView,
        clean: &[Written],
        corrupt: Option<&[Written]>,
    ) -> Result<Difference> {
        let mut sites = vec![None; self.writes.len()];
        self.tokens += view.tokens.len();
        self.rows += view.places.elem_count();
        if self.options.ablation == Ablation::Mean {
            // With key positions the mean is taken over all tokens, not over the key ones.
            match self.options.positions {
                Positions::Key => self.counts[0] += view.tokens.len() as f64,
                Positions::All => {
                    for place in view.places.to_vec1::<u32>()? {
                        self.counts[place as usize] += 1.0;
                    }
                }
            }
        }
        for (index, written) in clean.iter().enumerate() {
            let values = values_of(written);
            let mut folded = view.clean.fold(values)?;
            match self.options.ablation {
                Ablation::Zero => {}
                Ablation::Corrupt => {
                    let corrupt = corrupt.and_then(|corrupt| corrupt.get(index));
                    let corrupt = corrupt.ok_or_else(|| Error::input("no counterfactual run"))?;
                    folded = (folded - view.corrupt.fold(values_of(corrupt))?)?;
                }
                Ablation::Mean => self.add_to_mean(view, written)?,
            }
            sites[site_of(written)] = Some(SiteWrites { written: written.clone(), values: folded });
        }
        Ok(sites)
    }

    fn add_to_mean(&mut self, view: &BatchView, written: &Written) -> Result<()> {
        let values = values_of(written);
        let sum = &mut self.writes[site_of(written)];
        let zeros =
            || Tensor::zeros((self.places, values.dim(1)?), values.dtype(), values.device());
        let before = match sum {
            Some(sum) => sum.values.clone(),
            None => zeros()?,
        };
        let values = match self.options.positions {
            Positions::Key => (before + sum_rows(values, &view.tokens)?)?,
            Positions::All => before.index_add(&view.places, &view.clean.gather(values)?, 0)?,
        };
        *sum = Some(SiteWrites { written: written.clone(), values });
        Ok(())
    }

    /// Adds `fraction` times the products with the gradients that a backward pass left.
    pub(super) fn add_gradients(
        &mut self,
        graph: &Graph,
        view: &BatchView,
        difference: &Difference,
        captured: &[Captured],
        fraction: f64,
    ) -> Result<()> {
        let mut by_site: Vec<Option<&Captured>> = vec![None; graph.site_count()];
        for captured in captured {
            match captured {
                Captured::Reading { reading, .. } => by_site[reading.site] = Some(captured),
                Captured::FinalNorm { unembedding, .. } => {
                    by_site[unembedding.site] = Some(captured)
                }
                _ => {}
            }
        }
        let total = view.places.elem_count();
        let gathered = view.clean.rows.elem_count();
        // Key positions are averaged example by example, so their rows stay in one chunk.
        let chunk = if view.clean.average.is_some() { gathered.max(1) } else { CHUNK };
        for start in (0..gathered).step_by(chunk) {
            let len = chunk.min(gathered - start);
            let score_rows =
                if view.clean.average.is_some() { 0..total } else { start..start + len };
            let writes = self.expand(graph, difference, score_rows.clone())?;
            let rows = view.clean.rows.narrow(0, start, len)?.to_vec1::<u32>()?;
            for (site, captured) in by_site.iter().enumerate() {
                if graph.readers_of(site).is_empty() {
                    continue;
                }
                let gradients = reader_gradients(graph, site, *captured, &rows)?;
                let gradients = view.clean.average_rows(gradients)?;
                self.multiply(graph, site, &writes, &gradients, fraction)?;
                if self.options.ablation == Ablation::Mean {
                    let places = view.places.narrow(0, score_rows.start, score_rows.len())?;
                    self.add_gradient_sum(site, &places, &gradients, fraction)?;
                }
            }
        }
        Ok(())
    }

    /// The outputs of all the graph's writers for some rows, [writers, rows, d_model].
    fn expand(&self, graph: &Graph, sites: &Difference, rows: Range<usize>) -> Result<Tensor> {
        // A writer's bias cancels in every difference but the one with nothing.
        let with_bias = self.options.ablation == Ablation::Zero;
        let mut outputs = Vec::new();
        for (site, writes) in sites.iter().enumerate() {
            let writers = graph.writers_of(site).len();
            if writers == 0 {
                continue;
            }
            let writes = writes.as_ref().ok_or_else(|| {
                Error::input(format!("the model announces no write at site {site} of its graph"))
            })?;
            outputs.push(writes.narrow(rows.start, rows.len())?.expand(writers, with_bias)?);
        }
        Ok(Tensor::cat(&outputs, 0)?)
    }

    fn add_gradient_sum(
        &mut self,
        site: usize,
        places: &Tensor,
        gradients: &Tensor,
        fraction: f64,
    ) -> Result<()> {
        let (readers, _, d_model) = gradients.dims3()?;
        let shape = (readers, self.places, d_model);
        let before = match self.gradients[site].take() {
            Some(sum) => sum,
            None => Tensor::zeros(shape, gradients.dtype(), gradients.device())?,
        };
        self.gradients[site] =
            Some(before.index_add(places, &gradients.affine(fraction, 0.0)?, 1)?);
        Ok(())
    }

    /// scores[u, d] += fraction · Σ over rows of ⟨writes[u], gradients[d]⟩, for the site's readers.
    fn multiply(
        &mut self,
        graph: &Graph,
        site: usize,
        writes: &Tensor,
        gradients: &Tensor,
        fraction: f64,
    ) -> Result<()> {
        let before = graph.writers_before(site).len();
        if before == 0 {
            return Ok(());
        }
        let (readers, rows, d_model) = gradients.dims3()?;
        let writes = writes.narrow(0, 0, before)?.reshape((before, rows * d_model))?;
        let gradients = gradients.contiguous()?.reshape((readers, rows * d_model))?;
        let products = writes.matmul(&gradients.t()?)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let all_readers = graph.readers().len();
        for (writer, products) in products.iter().enumerate() {
            let row = &mut self.scores[writer * all_readers + graph.readers_of(site).start..];
            for (score, product) in row.iter_mut().zip(products) {
                *score += fraction * product;
            }
        }
        Ok(())
    }

    /// Takes the means' share off, and divides by the examples or tokens.
    pub(super) fn finish(mut self, graph: &Graph) -> Result<Vec<f32>> {
        if self.options.ablation == Ablation::Mean {
            self.subtract_means(graph)?;
        }
        let divisor = match self.options.positions {
            Positions::Key => self.rows,
            Positions::All => self.tokens,
        };
        Ok(self.scores.iter().map(|score| (score / divisor as f64) as f32).collect())
    }

    fn subtract_means(&mut self, graph: &Graph) -> Result<()> {
        let inverse: Vec<f64> = self.counts.iter().map(|&n| 1.0 / n.max(1.0)).collect();
        let inverse = Tensor::from_vec(inverse, (self.places, 1), &Device::Cpu)?;
        let mut means = self.writes.clone();
        for mean in means.iter_mut().flatten() {
            mean.values = mean.values.broadcast_mul(&like(&inverse, &mean.values)?)?;
        }
        let gradients = std::mem::take(&mut self.gradients);
        for start in (0..self.places).step_by(CHUNK) {
            let len = CHUNK.min(self.places - start);
            let writes = self.expand(graph, &means, start..start + len)?;
            for (site, gradients) in gradients.iter().enumerate() {
                if let Some(gradients) = gradients {
                    self.multiply(graph, site, &writes, &gradients.narrow(1, start, len)?, -1.0)?;
                }
            }
        }
        Ok(())
    }
}

/// `tensor` with the type and on the device of `other`.
fn like(tensor: &Tensor, other: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_dtype(other.dtype())?.to_device(other.device())?)
}

fn values_of(written: &Written) -> &Tensor {
    match written {
        Written::Embedding { output, .. } => output,
        Written::Projected { z, .. } => z,
    }
}

/// The gradients at the inputs of a site's readers for some rows of the batch, [readers, rows,
/// d_model]: the projection's output gradient through each reader's rows of the weight, then
/// through the normalisation.
fn reader_gradients(
    graph: &Graph,
    site: usize,
    captured: Option<&Captured>,
    rows: &[u32],
) -> Result<Tensor> {
    let readers = graph.readers_of(site).len();
    let (norm, x, at_normed) = match captured {
        // A site's only reader has the whole gradient at the normalised stream.
        Some(Captured::Reading { reading, x, kept, normed, .. }) if readers == 1 => {
            (&reading.norm, x, kept.choose(normed, rows)?.unsqueeze(0)?)
        }
        Some(Captured::Reading { reading, x, kept, projected, .. }) => {
            let projected = kept.choose(projected, rows)?;
            let at_normed = multiply_blocks(&projected, &reading.weight.tensor, readers)?;
            (&reading.norm, x, at_normed)
        }
        Some(Captured::FinalNorm { unembedding, x, kept, normed }) => {
            (&unembedding.norm, x, kept.choose(normed, rows)?.unsqueeze(0)?)
        }
        _ => return Err(Error::input(format!("no gradient reached site {site} of the graph"))),
    };
    let d_model = x.dim(1)?;
    let flat = at_normed.reshape(((), d_model))?;
    let pulled = norm.pull_back(&x.index_select(&Tensor::new(rows, x.device())?, 0)?, &flat)?;
    Ok(pulled.reshape((readers, rows.len(), d_model))?)
}
