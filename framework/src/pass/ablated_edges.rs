//! Which edges are ablated in a pass, and what is read along them instead. What that amounts to in a pass is
//! formed in `differences.rs`, and the inputs that readers then have in `reader_inputs.rs`.

use candle_core::Tensor;

use crate::graph::{Graph, Input, Node, Reader, Writer};
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
    pub(super) graph: Graph,
    /// Row-major [readers, writers].
    pub(super) ablated: Vec<bool>,
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
    pub(super) fn leaves(&self, site: usize) -> bool {
        let writers = self.graph.writers().len();
        let of_site = self.graph.writers_of(site);
        (self.ablated.chunks(writers.max(1))).any(|row| row[of_site.clone()].contains(&true))
    }

    /// The first site that an ablated edge leads to.
    pub(super) fn first_reading_site(&self) -> usize {
        let writers = self.graph.writers().len();
        let is_led_to = |site: &usize| {
            let of_site = self.graph.readers_of(*site);
            self.ablated[of_site.start * writers..of_site.end * writers].contains(&true)
        };
        (0..self.graph.site_count()).find(is_led_to).unwrap_or(self.graph.site_count())
    }

    /// What stands in for what a site's writers wrote [writers of the site, rows, d_model], in the type
    /// and on the device of `like`; none for nothing.
    pub(super) fn stand_ins(
        &self,
        site: usize,
        positions: &[u32],
        like: &Tensor,
    ) -> Result<Option<Tensor>> {
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
