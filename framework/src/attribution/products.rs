//! The products of writers' outputs with readers' gradients, of a chunk of rows: for each edge the sum over
//! rows and d_model.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::observation::BatchView;
use super::site_values::Sites;
use crate::graph::Graph;
use crate::ops::{is_fused, matmul};
use crate::{Error, Result};

/// Readers whose products are formed at once, at least: a matrix product with few rows spends its
/// time on bringing the other side into the cache.
const GROUP: usize = 200;

/// Parts of the sums of products that are formed side by side.
const PARTS: usize = 4;

/// What a batch's gradients are multiplied with.
pub struct Difference {
    pub(super) view: Arc<BatchView>,
    /// By site: a − ã where ã is not a mean, a where it is.
    pub(super) sites: Sites,
    /// By site: a − ã where ã is a mean, and scores are asked for by example.
    pub(super) centred: Option<Sites>,
}

/// Readers' gradients times the transpose of writers' outputs [writers, rows · d_model], in terms that
/// add up to [readers, writers]. On a CPU each is of a part of the long sums: with so few rows and columns
/// the time goes into bringing both sides into shape, which candle leaves to one thread.
pub(super) fn products(readers: &Stack, writers: &Tensor) -> Result<Vec<Vec<Vec<f64>>>> {
    let readers = readers.filled()?;
    let length = readers.dim(1)?;
    let parts = if is_fused(writers) { PARTS } else { 1 };
    let part = length.div_ceil(parts).max(1);
    let term = |start: usize| product(&readers, writers, start..length.min(start + part));
    (0..length).into_par_iter().step_by(part).map(term).collect()
}

/// Some columns of readers [readers, length] times those of the transpose of writers [writers, length].
pub(super) fn product(
    readers: &Tensor,
    writers: &Tensor,
    columns: Range<usize>,
) -> Result<Vec<Vec<f64>>> {
    let of = |nodes: &Tensor| nodes.narrow(1, columns.start, columns.len());
    let product = matmul(&of(readers)?, &of(writers)?.t()?)?;
    Ok(product.to_dtype(DType::F64)?.to_vec2()?)
}

/// Nodes' vectors [nodes, rows, d_model], one node behind the other. The place they take is filled
/// again and again: clearing it anew would take longer than the products.
pub(super) struct Stack {
    /// [capacity, rows, d_model], once there is anything.
    tensor: Option<Tensor>,
    capacity: usize,
    nodes: usize,
}

impl Stack {
    pub(super) fn new(capacity: usize) -> Self {
        Self { tensor: None, capacity, nodes: 0 }
    }

    pub(super) fn of_writers(graph: &Graph) -> Self {
        Self::new(graph.writers().len())
    }

    /// Begins anew, with no nodes.
    pub(super) fn clear(&mut self) {
        self.nodes = 0;
    }

    /// The place of the next so many nodes' vectors [nodes, rows, d_model], which may still hold others;
    /// type and device are those of `like`.
    pub(super) fn place(
        &mut self,
        (nodes, rows, d_model): (usize, usize, usize),
        like: &Tensor,
    ) -> Result<Tensor> {
        let tensor = match self.tensor.take().filter(|tensor| tensor.dims()[1] == rows) {
            Some(tensor) => tensor,
            None => Tensor::zeros((self.capacity, rows, d_model), like.dtype(), like.device())?,
        };
        let place = tensor.narrow(0, self.nodes, nodes)?;
        self.nodes += nodes;
        self.tensor = Some(tensor);
        Ok(place)
    }

    /// The first so many nodes' vectors [nodes, rows · d_model].
    pub(super) fn first(&self, nodes: usize) -> Result<Tensor> {
        let Some(tensor) = &self.tensor else {
            return Err(Error::input("the graph has no nodes of these kinds"));
        };
        Ok(tensor.narrow(0, 0, nodes)?.flatten_from(1)?)
    }

    /// All nodes' vectors [nodes, rows · d_model].
    pub(super) fn filled(&self) -> Result<Tensor> {
        self.first(self.nodes)
    }
}

/// A few sites' readers, whose products are formed together.
pub(super) struct Group {
    pub(super) sites: Vec<usize>,
    pub(super) stack: Stack,
}

impl Group {
    pub(super) fn new(graph: &Graph) -> Self {
        let readers = (0..graph.site_count()).map(|site| graph.readers_of(site).len());
        Self { sites: Vec::new(), stack: Stack::new(GROUP + readers.max().unwrap_or(0)) }
    }

    /// Whether there are enough readers to form their products.
    pub(super) fn is_full(&self) -> bool {
        self.stack.nodes >= GROUP
    }

    /// The place of a site's readers' gradients, as [`Stack::place`]'s.
    pub(super) fn place(
        &mut self,
        site: usize,
        shape: (usize, usize, usize),
        like: &Tensor,
    ) -> Result<Tensor> {
        self.sites.push(site);
        self.stack.place(shape, like)
    }
}
