//! Weight gradients of the selected rows, formed from what a backward pass left: for a projection
//! with input x and output gradient dy, the rows in question of dyᵀ·x, and nothing for the rest.

use std::collections::BTreeSet;
use std::ops::Range;

use candle_core::Tensor;

use crate::Result;
use crate::lora::AdapterGradients;
use crate::ops::norm::Norm;
use crate::ops::norm::NormGradient;
use crate::ops::{Kept, cross_entropy, matmul, select_columns, squared_norm, sum_all_rows};
use crate::pass::{Captured, Reading, SharedInput};
use crate::peers::Part;
use crate::weights::parameters::{Param, ParamId, Parameters, Selection};

/// Gradients of the selected rows, compact: for each parameter [selected rows, width].
pub struct Gradients {
    selection: Selection,
    sums: Vec<Option<Tensor>>,
}

impl Gradients {
    /// No gradient yet, for these rows.
    pub fn new(parameters: &Parameters, selection: Selection) -> Self {
        Self { selection, sums: vec![None; parameters.len()] }
    }

    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Takes what was added since the last time, a tensor a parameter.
    pub(super) fn take(&mut self) -> Part {
        let nothing = vec![None; self.sums.len()];
        std::mem::replace(&mut self.sums, nothing)
    }

    /// Puts sums of what was taken in place.
    pub(super) fn put(&mut self, sums: Part) {
        self.sums = sums;
    }

    /// The gradient of a parameter's selected rows [selected rows, width]; none where no backward
    /// pass reached it.
    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        self.sums[id.0].as_ref()
    }

    /// Adds the gradients of the adapters that one operation of a backward pass left; this must have
    /// been made for the adapters' parameters.
    pub fn accumulate_adapters(&mut self, captured: &Captured) -> Result<()> {
        if let Captured::Adapter(AdapterGradients { a, b }) = captured {
            for (id, gradient) in [a, b] {
                self.add_rows(*id, |_| Ok(gradient.clone()))?;
            }
        }
        Ok(())
    }

    /// Adds the gradients of the model's parameters that one operation of a backward pass left.
    pub fn accumulate(&mut self, captured: &Captured) -> Result<()> {
        match captured {
            Captured::Embedding { embedding, tokens, gradient } => {
                let index = tokens.flatten_all()?;
                let at_tokens = match embedding.scale == 1.0 {
                    true => gradient.clone(),
                    false => gradient.affine(embedding.scale, 0.0)?,
                };
                self.add_scattered(&embedding.tokens, &index, &at_tokens)?;
                if let Some(positions) = &embedding.positions {
                    let (batch, seq) = tokens.dims2()?;
                    let index = Tensor::arange(0u32, seq as u32, tokens.device())?;
                    self.add_scattered(positions, &index.repeat(batch)?, gradient)?;
                }
            }
            Captured::Reading { reading, x, kept, normed, projected } => {
                if self.selection.contains(reading.weight.id) {
                    let input = reading.normalise(&kept.gather(x)?)?;
                    self.add_product(&reading.weight, projected, &input)?;
                }
                if let Some(bias) = &reading.bias
                    && self.selection.contains(bias.id)
                {
                    let sum = sum_all_rows(projected)?.t()?;
                    self.add_rows(bias.id, |range| Ok(sum.narrow(0, range.start, range.len())?))?;
                }
                self.add_norm(reading.norm.as_ref(), x, kept, normed)?;
            }
            Captured::Writing { writing, z, kept, gradient } => {
                if self.selection.contains(writing.weight.id) {
                    self.add_product(&writing.weight, &kept.gather(z)?, gradient)?;
                }
                if let Some(bias) = &writing.bias {
                    self.add_rows(bias.id, |_| Ok(sum_all_rows(gradient)?))?;
                }
            }
            Captured::ReadingApart { reading, inputs, projected, .. } => {
                self.accumulate_apart(reading, inputs, projected)?;
            }
            Captured::WritingApart { writing, z, gradients, stream } => {
                if self.selection.contains(writing.weight.id) {
                    let (writers, rows, d_model) = gradients.dims3()?;
                    let z = z.reshape((rows, writers, ()))?.permute((1, 2, 0))?.contiguous()?;
                    let product = z.matmul(gradients)?.reshape(((), d_model))?;
                    self.add_rows(writing.weight.id, |range| {
                        Ok(product.narrow(0, range.start, range.len())?)
                    })?;
                }
                if let Some(bias) = &writing.bias {
                    let gradient = match writing.bias_is_written {
                        true => gradients.get(0)?,
                        false => stream.clone(),
                    };
                    self.add_rows(bias.id, |_| Ok(sum_all_rows(&gradient)?))?;
                }
            }
            Captured::FinalNorm { unembedding, x, kept, normed } => {
                self.add_norm(Some(&unembedding.norm), x, kept, normed)?;
            }
            Captured::Logits { unembedding, hidden, gradient } => {
                self.add_product(&unembedding.weight, gradient, hidden)?;
            }
            Captured::TokenLogits { unembedding, tokens, gradients } => {
                self.add_scattered(&unembedding.weight, tokens, gradients)?;
            }
            Captured::CrossEntropy { unembedding, hidden, targets, factor } => {
                let weight = &unembedding.weight;
                if self.selection.contains(weight.id) {
                    let gradient = cross_entropy::unembedding_gradient(
                        hidden,
                        &weight.tensor,
                        unembedding.cap,
                        targets,
                    )?
                    .affine(*factor, 0.0)?;
                    self.add_rows(weight.id, |range| {
                        Ok(gradient.narrow(0, range.start, range.len())?)
                    })?;
                }
            }
            Captured::NormWeight(NormGradient { weight, gradient }) => {
                self.add_rows(weight.id, |_| Ok(gradient.clone()))?;
            }
            Captured::Adapter(_) => {}
        }
        Ok(())
    }

    /// Adds the gradients at a site whose readers have inputs of their own.
    fn accumulate_apart(
        &mut self,
        reading: &Reading,
        inputs: &[SharedInput],
        projected: &Tensor,
    ) -> Result<()> {
        let readers: usize = inputs.iter().map(|input| input.readers.len()).sum();
        if self.selection.contains(reading.weight.id) {
            let width = reading.weight.tensor.dim(0)? / readers;
            let parts = Tensor::zeros(
                reading.weight.tensor.shape(),
                projected.dtype(),
                projected.device(),
            )?;
            for input in inputs {
                let normed = reading.normalise(&input.x)?;
                for reader in &input.readers {
                    let gradient = projected.narrow(1, reader * width, width)?.t()?.contiguous()?;
                    parts.slice_set(&matmul(&gradient, &normed)?, 0, reader * width)?;
                }
            }
            self.add_rows(reading.weight.id, |range| {
                Ok(parts.narrow(0, range.start, range.len())?)
            })?;
        }
        if let Some(bias) = &reading.bias
            && self.selection.contains(bias.id)
        {
            let sum = sum_all_rows(projected)?.t()?;
            self.add_rows(bias.id, |range| Ok(sum.narrow(0, range.start, range.len())?))?;
        }
        for input in inputs {
            self.add_norm(reading.norm.as_ref(), &input.x, &Kept::All, &input.normed)?;
        }
        Ok(())
    }

    /// Adds the selected rows of narrowᵀ · wide, for narrow [n, rows] and wide [n, width].
    fn add_product(&mut self, param: &Param, narrow: &Tensor, wide: &Tensor) -> Result<()> {
        let columns = match self.selection.ranges(param.id) {
            [] => return Ok(()),
            [all] if all.len() == narrow.dim(1)? => narrow.clone(),
            // One product of all ranges: their columns are less to copy than its rows.
            ranges => select_columns(&narrow.contiguous()?, ranges)?,
        };
        self.add(param.id, matmul(&columns.t()?, wide)?)
    }

    /// Adds gradient [n, width] to the rows that `index` [n] names, where they are selected. Of a large
    /// embedding few rows occur, and only they are touched.
    fn add_scattered(&mut self, param: &Param, index: &Tensor, gradient: &Tensor) -> Result<()> {
        if !self.selection.contains(param.id) {
            return Ok(());
        }
        // Where the rows lie among the selected ones, and which of them the n are.
        let places = self.selection.places(param.id, &index.to_vec1::<u32>()?);
        let (n, places): (Vec<u32>, Vec<u32>) = (places.iter().enumerate())
            .filter_map(|(n, place)| Some((n as u32, (*place)? as u32)))
            .unzip();
        let occurring: Vec<u32> = BTreeSet::from_iter(places.iter().copied()).into_iter().collect();
        if occurring.is_empty() {
            return Ok(());
        }
        let rank = |place| occurring.partition_point(|&other| other < place) as u32;
        let ranks: Vec<u32> = places.iter().map(|&place| rank(place)).collect();
        let (device, width) = (gradient.device(), gradient.dim(1)?);
        let gradient = match n.len() == index.dim(0)? {
            true => gradient.clone(),
            false => gradient.index_select(&Tensor::new(n, device)?, 0)?,
        };
        let shape = (occurring.len(), width);
        let sums = Tensor::zeros(shape, gradient.dtype(), device)?.index_add(
            &Tensor::new(ranks, device)?,
            &gradient,
            0,
        )?;
        let sum = &mut self.sums[param.id.0];
        // Nothing else holds what a sum is added to in place: `add` is given tensors of its own.
        let sum = match sum {
            Some(sum) => sum,
            None => {
                let rows = self.selection.rows(param.id);
                sum.insert(Tensor::zeros((rows, width), gradient.dtype(), device)?)
            }
        };
        let rows = Tensor::new(occurring, device)?.unsqueeze(1)?.broadcast_as(shape)?;
        Ok(sum.scatter_add_set(&rows.contiguous()?, &sums, 0)?)
    }

    fn add_norm(
        &mut self,
        norm: Option<&Norm>,
        x: &Tensor,
        kept: &Kept,
        gradient: &Tensor,
    ) -> Result<()> {
        let Some(norm) = norm else {
            return Ok(());
        };
        let bias = norm.bias.as_ref().map(|bias| bias.id);
        if !self.selection.contains(norm.weight.id)
            && !bias.is_some_and(|bias| self.selection.contains(bias))
        {
            return Ok(());
        }
        let (d_weight, d_bias) = norm.parameter_gradients(&kept.gather(x)?, gradient)?;
        self.add_rows(norm.weight.id, |_| Ok(d_weight.clone()))?;
        match bias {
            Some(bias) => self.add_rows(bias, |_| Ok(d_bias.clone())),
            None => Ok(()),
        }
    }

    /// Adds `of` each selected range of a parameter.
    fn add_rows(
        &mut self,
        id: ParamId,
        of: impl Fn(&Range<usize>) -> Result<Tensor>,
    ) -> Result<()> {
        let ranges = self.selection.ranges(id);
        if ranges.is_empty() {
            return Ok(());
        }
        let pieces = ranges.iter().map(of).collect::<Result<Vec<_>>>()?;
        let gradient = match &pieces[..] {
            [only] => only.contiguous()?,
            _ => Tensor::cat(&pieces, 0)?,
        };
        self.add(id, gradient)
    }

    /// Adds to the gradient of a parameter's selected rows a tensor that nothing else holds.
    fn add(&mut self, id: ParamId, gradient: Tensor) -> Result<()> {
        let sum = &mut self.sums[id.0];
        *sum = Some(match sum.take() {
            None => gradient,
            Some(sum) => (sum + gradient)?,
        });
        Ok(())
    }

    /// The joint Euclidean norm, summed in float64.
    pub fn norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for gradient in self.sums.iter().flatten() {
            sum += squared_norm(gradient)?;
        }
        Ok(sum.sqrt())
    }

    /// Multiplies every gradient by `factor`.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        for gradient in self.sums.iter_mut().flatten() {
            *gradient = gradient.affine(factor, 0.0)?;
        }
        Ok(())
    }
}
