//! What watches or changes a pass, site by site: it is shown what is read, attended to and written, says
//! what is written instead, and which edges are ablated. Models know nothing of it.

use std::sync::Arc;

use candle_core::Tensor;

use super::ablated_edges::AblatedEdges;
use super::{Pass, Replacement, Written};
use crate::Result;

type Show = dyn Fn(usize, &Tensor) -> Result<()> + Send + Sync;
type ShowWritten = dyn Fn(Written) -> Result<()> + Send + Sync;
type Replace = dyn Fn(&Written) -> Result<Option<Replacement>> + Send + Sync;

/// The hooks of one pass.
#[derive(Clone, Default)]
pub(super) struct Hooks {
    read: Option<Arc<Show>>,
    attention: Option<Arc<Show>>,
    write: Option<Arc<ShowWritten>>,
    replace: Option<Arc<Replace>>,
    pub(super) edges: Option<Arc<AblatedEdges>>,
}

impl Hooks {
    /// Shows the stream [batch·seq, d_model] that a site reads.
    pub(super) fn show_read(&self, site: usize, x: &Tensor) -> Result<()> {
        self.read.as_ref().map_or(Ok(()), |show| show(site, x))
    }

    /// Whether they watch or replace what sites read and write.
    pub(super) fn see_sites(&self) -> bool {
        self.read.is_some() || self.write.is_some() || self.replace.is_some()
    }

    /// Shows a layer's attention probabilities, which `form` forms.
    pub(super) fn show_attention(
        &self,
        layer: usize,
        form: impl FnOnce() -> Result<Tensor>,
    ) -> Result<()> {
        self.attention.as_ref().map_or(Ok(()), |show| show(layer, &form()?))
    }

    /// Shows what a site wrote, and asks what is to be written instead.
    pub(super) fn show_written(
        &self,
        written: impl Fn() -> Written,
    ) -> Result<Option<Replacement>> {
        if let Some(show) = &self.write {
            show(written())?;
        }
        self.replace.as_ref().map_or(Ok(None), |replace| replace(&written()))
    }
}

impl Pass {
    /// Shows `show` the stream [batch·seq, d_model] that each site reads, before its normalisation, in
    /// computation order. Readers with ablated edges read something else.
    pub fn on_read(
        mut self,
        show: impl Fn(usize, &Tensor) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.read = Some(Arc::new(show));
        self
    }

    /// Shows `show` the attention probabilities [batch, heads, queries, keys] of each attention layer,
    /// counted from 0. They are formed for this alone.
    pub fn on_attention(
        mut self,
        show: impl Fn(usize, &Tensor) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.attention = Some(Arc::new(show));
        self
    }

    /// Shows `show` what each site's writers formed, in computation order, before any of it is replaced.
    pub fn on_write(
        mut self,
        show: impl Fn(Written) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.write = Some(Arc::new(show));
        self
    }

    /// Asks `replace` at each site what is to be written instead of what its writers formed.
    pub fn replacing(
        mut self,
        replace: impl Fn(&Written) -> Result<Option<Replacement>> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.replace = Some(Arc::new(replace));
        self
    }

    /// Ablates edges: each of their readers gets an input of its own.
    pub fn ablating(mut self, edges: Arc<AblatedEdges>) -> Self {
        self.hooks.edges = Some(edges);
        self
    }
}
