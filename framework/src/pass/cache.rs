//! What generation keeps between forward passes: every layer's keys and values, so that a new token
//! costs one position. Sequences of unequal length stand side by side, padded on the left.

use candle_core::Tensor;

use crate::Result;
use crate::ops::attention::Attention;

/// The keys and values of a batch of sequences.
#[derive(Debug)]
pub struct Cache {
    /// Columns before each sequence's first token.
    padding: Vec<usize>,
    /// Columns there is room for.
    capacity: usize,
    /// Columns that are in.
    past: usize,
    /// A layer's keys and values, [batch, capacity, kv_heads·d_head] each; made when the layer first
    /// attends.
    layers: Vec<[Tensor; 2]>,
}

impl Cache {
    /// An empty cache with room for `capacity` columns; `padding[b]` columns of sequence b are none
    /// of its tokens.
    pub fn new(padding: Vec<usize>, capacity: usize) -> Self {
        Self { padding, capacity, past: 0, layers: Vec::new() }
    }

    /// The positions of the next `new` columns, sequence by sequence; 0 where a column is padding.
    pub(crate) fn positions(&self, new: usize) -> Vec<u32> {
        let of = |padding: &usize| {
            let padding = *padding;
            (self.past..self.past + new).map(move |column| column.saturating_sub(padding) as u32)
        };
        self.padding.iter().flat_map(of).collect()
    }

    /// Attention of the `layer`-th layer over the columns so far and the new ones, whose keys and
    /// values join them.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        attention: &Attention,
        qkv: &Tensor,
    ) -> Result<Tensor> {
        let width = attention.kv_heads * attention.d_head;
        while self.layers.len() <= layer {
            let shape = (self.padding.len(), self.capacity, width);
            let empty = || Tensor::zeros(shape, qkv.dtype(), qkv.device());
            self.layers.push([empty()?, empty()?]);
        }
        let [keys, values] = &self.layers[layer];
        Ok(attention.extend(qkv, self.past, &self.padding, [keys, values])?)
    }

    /// Goes on with these sequences alone.
    ///
    /// # Errors
    /// If a tensor can't be allocated.
    pub fn keep(&mut self, sequences: &[u32]) -> Result<()> {
        self.padding = sequences.iter().map(|&index| self.padding[index as usize]).collect();
        for tensor in self.layers.iter_mut().flatten() {
            let index = Tensor::new(sequences, tensor.device())?;
            *tensor = tensor.index_select(&index, 0)?;
        }
        Ok(())
    }

    /// Counts `new` columns as in: every layer has attended to them.
    pub(crate) fn advance(&mut self, new: usize) {
        self.past += new;
    }
}
