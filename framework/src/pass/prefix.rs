//! What a pass leaves for others over the same tokens to begin from. A pass with ablated edges is the plain one up
//! to the first block in which something else is read: what stands before needs no computing anew.

use std::sync::{Arc, Mutex};

use candle_core::Tensor;

use super::ablated_edges::AblatedEdges;
use super::differences::Differences;
use super::sites::{Writing, Written};
use super::{Pass, lock, rows};
use crate::ops::weight;
use crate::{Result, refuse};

/// What a plain pass read and wrote, block by block: the stream before each block, and what sites' outputs are
/// formed of. It takes the memory of the batch's activations.
#[derive(Clone, Default)]
pub struct Prefix(Arc<Mutex<Vec<Kept>>>);

enum Kept {
    /// The embedding's output [batch·seq, d_model].
    Embedded(Tensor),
    /// The stream [batch, seq, d_model] before the block whose first reading site this is, or before the readout.
    Block { site: usize, x: Tensor },
    /// What a site wrote: z [batch·seq, writers × width], times its weight.
    Written { writing: Arc<Writing>, z: Tensor },
}

impl Prefix {
    fn keep(&self, kept: Kept) {
        lock(&self.0).push(kept);
    }
}

impl Pass {
    /// This pass, leaving what others may begin from in an empty `prefix`.
    pub fn keeping(mut self, prefix: &Prefix) -> Self {
        self.kept = Some(prefix.clone());
        self
    }

    /// This pass, beginning where its ablated edges first change what is read, if its hooks neither watch nor
    /// replace what is read and written; attention is shown from there on. The results are the same bits.
    pub fn beginning_from(mut self, prefix: &Prefix) -> Self {
        self.begins_from = Some(prefix.clone());
        self
    }

    /// Keeps the stream before a block whose first reading site this is.
    pub fn enter(&self, site: usize, x: &Tensor) {
        if let Some(prefix) = &self.kept {
            prefix.keep(Kept::Block { site, x: x.clone() });
        }
    }

    pub(super) fn keep_embedded(&self, output: &Tensor) {
        if let Some(prefix) = &self.kept {
            prefix.keep(Kept::Embedded(output.clone()));
        }
    }

    pub(super) fn keep_written(&self, writing: &Arc<Writing>, z: &Tensor) {
        if let Some(prefix) = &self.kept {
            prefix.keep(Kept::Written { writing: writing.clone(), z: z.clone() });
        }
    }

    /// The last block that the pass can begin before: its first reading site, and the stream [batch, seq, d_model]
    /// there. None if it begins with the embedding.
    ///
    /// # Errors
    /// If the prefix is of tokens of another shape.
    pub fn begin(&self, tokens: &Tensor) -> Result<Option<(usize, Tensor)>> {
        let (Some(prefix), Some(edges)) = (&self.begins_from, &self.hooks.edges) else {
            return Ok(None);
        };
        if self.anchor.is_some() || self.cache.is_some() || self.hooks.see_sites() {
            return Ok(None);
        }
        let kept = lock(&prefix.0);
        let first = edges.first_reading_site();
        let before = |kept: &Kept| matches!(kept, Kept::Block { site, .. } if *site <= first);
        let Some(index) = kept.iter().rposition(before) else { return Ok(None) };
        let Kept::Block { site, x } = &kept[index] else { return Ok(None) };
        let (batch, seq, _) = x.dims3()?;
        if tokens.dims() != [batch, seq] {
            refuse!("a pass begins from one over tokens of the same shape");
        }
        let differences = self.differences(edges, &kept[..index], x)?;
        let mut record = self.record();
        record.stream = Some(x.id());
        record.edges = Some(differences);
        Ok(Some((*site, x.clone())))
    }

    /// What ablated edges amount to of sites that the pass leaves out.
    fn differences(
        &self,
        edges: &Arc<AblatedEdges>,
        before: &[Kept],
        x: &Tensor,
    ) -> Result<Differences> {
        let (batch, seq, _) = x.dims3()?;
        let positions = self.row_positions(batch, seq);
        let differences = Differences::new(edges.clone(), positions, &rows(x)?)?;
        for kept in before {
            match kept {
                Kept::Block { .. } => {}
                Kept::Embedded(output) => differences.embedded(0, output)?,
                Kept::Written { writing, z } if edges.leaves(writing.site) => {
                    let projected = weight::times(z, &writing.weight.tensor)?;
                    let (output, scale) = writing.normalise(&projected)?;
                    let (writing, z) = (writing.clone(), z.clone());
                    let written = Written::Projected {
                        writing: writing.clone(),
                        z,
                        scale,
                        output: output.clone(),
                    };
                    differences.written(&writing, &output, || written.values(), None)?;
                }
                Kept::Written { .. } => {}
            }
        }
        Ok(differences)
    }
}
