//! What ablated edges amount to in one pass: for each of their writers, what is read instead less what it
//! wrote in this very run. They are filled in as sites write.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::ablated_edges::AblatedEdges;
use super::reader_inputs::Inputs;
use super::sites::{Replacement, Writing};
use crate::ops::{is_fused, multiply_blocks_into, subtract_from, weight};
use crate::{Result, refuse};

/// ablated − written of every writer whose edges are ablated, in one pass.
#[derive(Clone)]
pub(super) struct Differences {
    edges: Arc<AblatedEdges>,
    /// The position of each row, sequence by sequence.
    positions: Arc<Vec<u32>>,
    /// ablated − written [writers, rows, d_model], filled as sites write.
    differences: Tensor,
}

impl Differences {
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
fn writers_outputs(
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
