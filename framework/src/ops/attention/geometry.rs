//! The geometry of an attention layer.

use std::sync::Arc;

use super::head_norms::HeadNorms;
use crate::ops::rotary::Rotary;

/// The geometry of an attention layer.
#[derive(Clone, Debug)]
pub struct Attention {
    pub heads: usize,
    /// Key/value heads; `heads / kv_heads` query heads share one.
    pub kv_heads: usize,
    pub d_head: usize,
    /// What the products of queries and keys are multiplied with.
    pub scale: f64,
    /// Norms on queries and keys, before they are rotated.
    pub norms: Option<Arc<HeadNorms>>,
    pub rotary: Option<Arc<Rotary>>,
    /// The soft cap on scores.
    pub cap: Option<f64>,
    /// How many tokens a query sees, its own counted; all up to its own where it is none.
    pub window: Option<usize>,
}

impl Attention {
    /// Attention to all tokens up to a query's own, scaled by 1/√d_head, without positions.
    pub fn new(heads: usize, kv_heads: usize, d_head: usize) -> Self {
        let scale = 1.0 / (d_head as f64).sqrt();
        Self { heads, kv_heads, d_head, scale, norms: None, rotary: None, cap: None, window: None }
    }

    /// The width of the stacked projections: all query heads, then key heads, then value heads.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.d_head
    }

    /// Query heads a key/value head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Heads, key/value heads, and a head's width.
    pub(super) fn sizes(&self) -> [usize; 3] {
        [self.heads, self.kv_heads, self.d_head]
    }
}
