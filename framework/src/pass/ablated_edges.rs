//! Edges that are ablated in a pass: readers that get an input of their own.
//!
//! A reader's own input is x + Σ over its ablated edges of (ablated − written), the stream as it is with
//! what those writers wrote in this very run exchanged. All of a site's readers get theirs from one
//! product [inputs, writers] · [writers, rows · d_model]; readers that miss the same edges share one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::hooks::Replacement;
use super::{Reading, Writing};
use crate::graph::{Graph, Input, Node, Reader, Writer};
use crate::ops::backward::Rules;
use crate::ops::{Apart, Sums, is_fused, is_small, multiply_blocks_into, subtract_from, weight};
use crate::{Result, refuse};

/// What is read along an ablated edge instead of what the writer wrote. Writers are those of the
/// model's whole graph, in its order.
#[derive(Clone, Debug)]
pub enum Ablated {
    /// Nothing.
    Zero,
    /// A vector a writer, the same at all positions: [writers, d_model].
    Constant(Tensor),
    /// A vector a writer and position: [writers, positions, d_model].
    ByPosition(Tensor),
    /// What the writers wrote in a pass over tokens of the same shape: [writers, batch·seq, d_model].
    Values(Tensor),
}

/// Which edges of a model's graph are ablated, and by what.
#[derive(Clone, Debug)]
pub struct AblatedEdges {
    graph: Graph,
    /// Row-major [readers, writers].
    ablated: Vec<bool>,
    by: Ablated,
}

impl AblatedEdges {
    /// The edges of the model's whole `graph` for which `is_ablated` holds.
    pub fn new(graph: &Graph, by: Ablated, is_ablated: impl Fn(Writer, Reader) -> bool) -> Self {
        let writers = graph.writers().len();
        let mut ablated = vec![false; graph.readers().len() * writers];
        for (writer, reader) in graph.edges() {
            ablated[reader.0 * writers + writer.0] = is_ablated(writer, reader);
        }
        Self { graph: graph.clone(), ablated, by }
    }

    /// One edge of the model's whole `graph`, by its ends.
    ///
    /// # Errors
    /// If it is none of the graph's.
    pub fn only(graph: &Graph, by: Ablated, (node, input): (Node, Input)) -> Result<Self> {
        let ends = graph.writer_of(node).zip(graph.reader_of(input));
        let Some((writer, reader)) = ends.filter(|&(w, r)| graph.has_edge(w, r)) else {
            refuse!("{node} → {input} is no edge of this model's graph");
        };
        Ok(Self::new(graph, by, |w, r| (w, r) == (writer, reader)))
    }

    /// Whether an ablated edge leaves one of a site's writers.
    fn leaves(&self, site: usize) -> bool {
        let writers = self.graph.writers().len();
        let of_site = self.graph.writers_of(site);
        (self.ablated.chunks(writers.max(1))).any(|row| row[of_site.clone()].contains(&true))
    }

    /// What stands in for what a site's writers wrote [writers of the site, rows, d_model], in the type
    /// and on the device of `like`; none for nothing.
    fn stand_ins(&self, site: usize, positions: &[u32], like: &Tensor) -> Result<Option<Tensor>> {
        let of_site = self.graph.writers_of(site);
        let of = |tensor: &Tensor| -> Result<Tensor> {
            let part = tensor.narrow(0, of_site.start, of_site.len())?;
            Ok(part.to_dtype(like.dtype())?.to_device(like.device())?)
        };
        Ok(match &self.by {
            Ablated::Zero => None,
            Ablated::Constant(vectors) => {
                Some(of(vectors)?.unsqueeze(1)?.broadcast_as(like.shape())?)
            }
            Ablated::ByPosition(vectors) => {
                let reached = vectors.dim(1)?;
                if let Some(position) = positions.iter().find(|&&p| p as usize >= reached) {
                    refuse!(
                        "there is no ablated value at position {position}: the examples that the means \
                         are taken over have at most {reached} tokens; use ablation `mean` or `zero`"
                    );
                }
                let index = Tensor::new(positions, vectors.device())?;
                Some(of(&vectors.index_select(&index, 1)?)?)
            }
            Ablated::Values(values) => {
                let values = of(values)?;
                if values.dims() != like.dims() {
                    refuse!(
                        "what ablated edges read is {:?}, but site {site} wrote {:?}: the other pass \
                         must be over tokens of the same shape",
                        values.dims(),
                        like.dims()
                    );
                }
                Some(values)
            }
        })
    }
}

/// The state of ablated edges in one pass.
#[derive(Clone)]
pub(super) struct Edges {
    edges: Arc<AblatedEdges>,
    /// The position of each row, sequence by sequence.
    positions: Arc<Vec<u32>>,
    /// ablated − written [writers, rows, d_model], filled as sites write.
    differences: Tensor,
}

impl Edges {
    /// The state before anything is written; `stream` [rows, d_model] is the embedding's output.
    pub(super) fn new(
        edges: Arc<AblatedEdges>,
        positions: Vec<u32>,
        stream: &Tensor,
    ) -> Result<Self> {
        let (rows, d_model) = stream.dims2()?;
        let shape = (edges.graph.writers().len(), rows, d_model);
        let differences = Tensor::zeros(shape, stream.dtype(), stream.device())?;
        Ok(Self { edges, positions: Arc::new(positions), differences })
    }

    /// Takes note of the embedding's output [rows, d_model].
    pub(super) fn embedded(&self, site: usize, output: &Tensor) -> Result<()> {
        match self.edges.leaves(site) {
            true => self.put(site, &output.unsqueeze(0)?),
            false => Ok(()),
        }
    }

    /// Takes note of what a site's writers wrote together, `output` [rows, d_model], a bias not counted; of
    /// their values [rows, writers × width], which `values` forms; and of what was written instead.
    pub(super) fn written(
        &self,
        writing: &Writing,
        output: &Tensor,
        values: impl FnOnce() -> Result<Tensor>,
        replaced: Option<&Replacement>,
    ) -> Result<()> {
        if !self.edges.leaves(writing.site) {
            return Ok(());
        }
        if replaced.is_none() && self.writers(writing.site) == 1 {
            let bias = writing.bias.as_ref().filter(|_| writing.bias_is_written);
            let written = match bias {
                Some(bias) => output.broadcast_add(&bias.tensor)?,
                None => output.clone(),
            };
            return self.put(writing.site, &written.unsqueeze(0)?);
        }
        let z = values()?;
        let is_plain =
            writing.norm.is_none() && (writing.bias.is_none() || !writing.bias_is_written);
        if replaced.is_none() && is_plain && is_fused(&z) {
            return self.put_product(writing, &z);
        }
        let writers = self.writers(writing.site);
        self.put(writing.site, &writers_outputs(writing, &z, writers, replaced)?)
    }

    /// Forms ablated − written where it belongs, of z [rows, writers × width].
    fn put_product(&self, writing: &Writing, z: &Tensor) -> Result<()> {
        let of_site = self.edges.graph.writers_of(writing.site);
        let place = self.differences.narrow(0, of_site.start, of_site.len())?;
        multiply_blocks_into(z, &weight::widened(&writing.weight.tensor)?, &place)?;
        let stand_ins = self.edges.stand_ins(writing.site, &self.positions, &place)?;
        let stand_ins = stand_ins.map(|tensor| tensor.contiguous()).transpose()?;
        Ok(subtract_from(stand_ins.as_ref(), &place)?)
    }

    /// How many writers a site has.
    pub(super) fn writers(&self, site: usize) -> usize {
        self.edges.graph.writers_of(site).len()
    }

    /// Puts ablated − `written` [writers of the site, rows, d_model] in its place.
    fn put(&self, site: usize, written: &Tensor) -> Result<()> {
        let difference = match self.edges.stand_ins(site, &self.positions, written)? {
            Some(other) => (other - written)?,
            None => written.neg()?,
        };
        Ok(self.differences.slice_set(&difference, 0, self.edges.graph.writers_of(site).start)?)
    }

    /// The inputs of a site's readers; none where each reads the plain stream.
    pub(super) fn inputs(&self, site: usize) -> Result<Option<Inputs>> {
        let graph = &self.edges.graph;
        let (before, writers) = (graph.writers_before(site).len(), graph.writers().len());
        let mut groups: BTreeMap<&[bool], Vec<usize>> = BTreeMap::new();
        let of_site = graph.readers_of(site);
        for reader in of_site.clone() {
            let row = &self.edges.ablated[reader * writers..][..before];
            groups.entry(row).or_default().push(reader - of_site.start);
        }
        let is_plain = |row: &[bool]| !row.contains(&true);
        if groups.keys().all(|row| is_plain(row)) {
            return Ok(None);
        }
        let plain =
            groups.iter().find(|(row, _)| is_plain(row)).map(|(_, readers)| readers.clone());
        let own = groups.into_iter().filter(|(row, _)| !is_plain(row));
        let (rows, own): (Vec<&[bool]>, Vec<Vec<usize>>) = own.unzip();
        let factors: Vec<f64> =
            rows.iter().flat_map(|row| row.iter().map(|&ablated| f64::from(ablated))).collect();
        let factors = Tensor::from_vec(factors, (own.len(), before), &Device::Cpu)?
            .to_dtype(self.differences.dtype())?
            .to_device(self.differences.device())?;
        let differences = self.differences.clone();
        let writers = |row: &&[bool]| (0..before).filter(|&writer| row[writer]).collect();
        Ok(Some(Inputs {
            ablated: rows.iter().map(writers).collect(),
            count: of_site.len(),
            plain: plain.unwrap_or_default(),
            own,
            factors,
            differences,
        }))
    }

    /// Whether the gradient at a site's writers differs from the stream's.
    pub(super) fn changes_gradient(&self, site: usize) -> bool {
        self.edges.leaves(site)
    }

    /// The part [writers of the site, rows, d_model] of what a backward pass left at the differences that
    /// is of a site's writers.
    pub(super) fn part(&self, at_differences: &Tensor, site: usize) -> Result<Tensor> {
        let of_site = self.edges.graph.writers_of(site);
        Ok(at_differences.narrow(0, of_site.start, of_site.len())?)
    }
}

/// What each of a site's writers wrote [writers, rows, d_model], of their values [rows, writers × width].
///
/// # Errors
/// If what was replaced doesn't say so writer by writer.
pub(super) fn writers_outputs(
    writing: &Writing,
    values: &Tensor,
    writers: usize,
    replaced: Option<&Replacement>,
) -> Result<Tensor> {
    let outputs = writing.outputs(values, writers)?;
    match replaced {
        None => {}
        Some(Replacement::Writer { index, output, .. }) => {
            outputs.slice_set(&output.unsqueeze(0)?.to_dtype(values.dtype())?, 0, *index)?;
        }
        Some(Replacement::Site(output)) if writers == 1 => {
            outputs.slice_set(&output.unsqueeze(0)?.to_dtype(values.dtype())?, 0, 0)?;
        }
        Some(Replacement::Site(_)) => refuse!(
            "site {} was replaced as a whole, so that none of its {writers} writers' edges can be \
             ablated; replace its writers",
            writing.site
        ),
    }
    Ok(outputs)
}

/// The inputs of a site's readers, where some differ from the stream.
#[derive(Clone)]
pub(super) struct Inputs {
    /// How many readers the site has.
    count: usize,
    /// The readers that read the plain stream.
    plain: Vec<usize>,
    /// The readers of each other input.
    own: Vec<Vec<usize>>,
    /// The writers of each other input's ablated edges.
    ablated: Vec<Vec<usize>>,
    /// The same as [inputs, writers before], 1 where an edge is ablated.
    factors: Tensor,
    /// [writers, rows, d_model]
    differences: Tensor,
}

/// What several readers of a site read, and the gradients there.
#[derive(Clone, Debug)]
pub struct SharedInput {
    /// The readers, counted from the site's first.
    pub readers: Vec<usize>,
    /// The input [rows, d_model].
    pub x: Tensor,
    /// The gradient at the normalised input [rows, d_model].
    pub normed: Tensor,
    /// The gradient at the input [rows, d_model].
    pub gradient: Tensor,
}

impl Inputs {
    /// Each input that is not the stream x [rows, d_model] itself: [inputs, rows, d_model].
    pub(super) fn own(&self, x: &Tensor) -> Result<Tensor> {
        if is_fused(x) {
            return Ok(self.sums(x)?.form()?);
        }
        let (rows, d_model) = x.dims2()?;
        let differences = self.differences.narrow(0, 0, self.factors.dim(1)?)?.flatten_from(1)?;
        let sums = self.factors.matmul(&differences)?.reshape((self.own.len(), rows, d_model))?;
        Ok(sums.broadcast_add(&x.unsqueeze(0)?)?)
    }

    fn sums<'a>(&'a self, x: &'a Tensor) -> Result<Sums<'a>> {
        let before = self.factors.dim(1)?;
        Ok(Sums { x, differences: &self.differences, before, writers: &self.ablated })
    }

    /// The readers' projections [rows, readers × width] of their inputs.
    pub(super) fn project(&self, reading: &Reading, x: &Tensor) -> Result<Tensor> {
        let projected = match self.plain.is_empty() {
            true => {
                let shape = (x.dim(0)?, reading.weight.tensor.dim(0)?);
                Tensor::zeros(shape, x.dtype(), x.device())?
            }
            false => reading.project(&reading.normalise(x)?)?,
        };
        let columns = self.own.iter().map(|readers| self.columns(readers, reading));
        let columns: Vec<_> = columns.collect::<Result<_>>()?;
        if let Some(norm) = &reading.norm
            && is_small(x, reading.weight.tensor.dim(0)? / self.count)
        {
            Apart {
                sums: self.sums(x)?,
                norm,
                columns: &columns,
                weight: &weight::widened(&reading.weight.tensor)?,
                bias: reading.bias.as_ref().map(|bias| &bias.tensor),
            }
            .project_into(&projected)?;
            return Ok(projected);
        }
        let own = self.own(x)?;
        for (index, columns) in columns.into_iter().enumerate() {
            let normed = reading.normalise(&own.get(index)?)?;
            for columns in columns {
                let (start, len) = (columns.start, columns.len());
                let weight = reading.weight.tensor.narrow(0, start, len)?;
                let mut part = weight::times_transposed(&normed, &weight)?;
                if let Some(bias) = &reading.bias {
                    part = part.broadcast_add(&bias.tensor.narrow(0, start, len)?.t()?)?;
                }
                projected.slice_set(&part.contiguous()?, 1, start)?;
            }
        }
        Ok(projected)
    }

    /// Readers as columns of the projection, neighbours together.
    fn columns(&self, readers: &[usize], reading: &Reading) -> Result<Vec<Range<usize>>> {
        let width = reading.weight.tensor.dim(0)? / self.count;
        let runs = readers.chunk_by(|a, b| a + 1 == *b);
        Ok(runs.map(|run| run[0] * width..(run[0] + run.len()) * width).collect())
    }

    /// The inputs and the gradients there, from the stream x and the gradient at the projections [rows,
    /// readers × width]. The plain stream comes last, where a reader reads it.
    pub(super) fn pull_back(
        &self,
        reading: &Reading,
        x: &Tensor,
        projected: &Tensor,
        rules: Rules,
    ) -> Result<Vec<SharedInput>> {
        let shared = |readers: &Vec<usize>, x: Tensor| -> Result<SharedInput> {
            let mut normed = x.zeros_like()?;
            for columns in self.columns(readers, reading)? {
                let gradient = projected.narrow(1, columns.start, columns.len())?.contiguous()?;
                let weight = reading.weight.tensor.narrow(0, columns.start, columns.len())?;
                normed = (normed + weight::times(&gradient, &weight)?)?;
            }
            let gradient = reading.pull_back(&x, &normed, rules)?;
            Ok(SharedInput { readers: readers.clone(), x, normed, gradient })
        };
        let own = self.own(x)?;
        let own =
            self.own.iter().enumerate().map(|(index, readers)| shared(readers, own.get(index)?));
        let plain = (!self.plain.is_empty()).then(|| shared(&self.plain, x.clone()));
        own.chain(plain).collect()
    }

    /// Zeros for the gradients at the differences [writers, rows, d_model].
    pub(super) fn zeros(&self) -> Result<Tensor> {
        Ok(self.differences.zeros_like()?)
    }

    /// Adds the gradients at the inputs, as [`Inputs::pull_back`] orders them, to the differences'
    /// [writers, rows, d_model].
    pub(super) fn add_to(&self, at_differences: &Tensor, inputs: &[&Tensor]) -> Result<()> {
        let own = Tensor::stack(&inputs[..self.own.len()], 0)?.flatten_from(1)?;
        let sums = at_differences.narrow(0, 0, self.factors.dim(1)?)?;
        let share = self.factors.t()?.contiguous()?.matmul(&own)?.reshape(sums.shape())?;
        Ok(at_differences.slice_set(&(sums + share)?.contiguous()?, 0, 0)?)
    }
}
