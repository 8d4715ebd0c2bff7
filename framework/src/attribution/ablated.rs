//! What stands in for writers' outputs on a model's whole graph: their means over examples, or what they
//! write in another run. Means are sums of each projection's input, since a projection is linear.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use super::{Ablation, scoring};
use crate::Result;
use crate::data::example::Batch;
use crate::graph::Graph;
use crate::model::Model;
use crate::pass::{Ablated, Pass, Written};

/// What one site wrote, before its projection: [rows, width], with what projects it.
type SiteWrites = Vec<Written>;

/// The ablated values of all writers, formed from batches that are added one by one.
pub struct AblatedValues {
    ablation: Ablation,
    graph: Graph,
    /// Σ of what each site was given to project, [places, width], with one of its writes.
    sums: Vec<(Written, Tensor)>,
    /// How many tokens are in each place.
    counts: Vec<f64>,
}

impl AblatedValues {
    /// Of examples of at most `longest` tokens.
    pub fn new(model: &dyn Model, ablation: Ablation, longest: usize) -> Self {
        let places = if ablation == Ablation::MeanPositional { longest } else { 1 };
        let graph = model.graph().clone();
        Self { ablation, graph, sums: Vec::new(), counts: vec![0.0; places] }
    }

    /// Whether batches have to be added before [`AblatedValues::of`] is asked.
    pub fn is_mean(&self) -> bool {
        matches!(self.ablation, Ablation::Mean | Ablation::MeanPositional)
    }

    /// Takes a batch's clean run into the means.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn add(&mut self, model: &dyn Model, batch: &Batch) -> Result<()> {
        let places = self.counts.len();
        let (mut rows, mut at) = (Vec::new(), Vec::new());
        for (index, example) in batch.examples.iter().enumerate() {
            for position in 0..example.tokens.len() {
                rows.push(batch.row(index, position));
                at.push(if places == 1 { 0 } else { position as u32 });
            }
        }
        at.iter().for_each(|&place| self.counts[place as usize] += 1.0);
        for (site, written) in observe(model, &batch.tokens)?.into_iter().enumerate() {
            let values = written.values()?;
            let index = Tensor::new(&rows[..], values.device())?;
            let values = values.index_select(&index, 0)?;
            let zeros = Tensor::zeros((places, values.dim(1)?), values.dtype(), values.device())?;
            let sum = zeros.index_add(&Tensor::new(&at[..], values.device())?, &values, 0)?;
            match self.sums.get_mut(site) {
                Some((_, before)) => *before = (&*before + sum)?,
                None => self.sums.push((written, sum)),
            }
        }
        Ok(())
    }

    /// What is read along ablated edges on a batch.
    ///
    /// # Errors
    /// If an example has no counterfactual where it is wanted, or a tensor operation fails.
    pub fn of(&self, model: &dyn Model, batch: &Batch) -> Result<Ablated> {
        Ok(match self.ablation {
            Ablation::Zero => Ablated::Zero,
            Ablation::Corrupt => {
                Ablated::Values(values_of(model, &scoring::counterfactual_tokens(model, batch)?)?)
            }
            Ablation::Mean => Ablated::Constant(self.means()?.squeeze(1)?),
            Ablation::MeanPositional => Ablated::ByPosition(self.means()?),
        })
    }

    /// The means [writers, places, d_model].
    fn means(&self) -> Result<Tensor> {
        let inverse: Vec<f64> = self.counts.iter().map(|&count| 1.0 / count.max(1.0)).collect();
        let inverse = Tensor::new(inverse, &candle_core::Device::Cpu)?.unsqueeze(1)?;
        let outputs = self.sums.iter().map(|(written, sum)| {
            let inverse = inverse.to_dtype(sum.dtype())?.to_device(sum.device())?;
            let writers = self.graph.writers_of(written.site()).len();
            written.outputs_of(&sum.broadcast_mul(&inverse)?, writers)
        });
        Ok(Tensor::cat(&outputs.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

/// What all writers of a model write on tokens u32 [batch, seq]: [writers, batch·seq, d_model].
///
/// # Errors
/// If a tensor operation fails.
pub fn values_of(model: &dyn Model, tokens: &Tensor) -> Result<Tensor> {
    let written = observe(model, tokens)?;
    let outputs = written.iter().map(|written| {
        written.outputs_of(&written.values()?, model.graph().writers_of(written.site()).len())
    });
    Ok(Tensor::cat(&outputs.collect::<Result<Vec<_>>>()?, 0)?)
}

/// What each site writes on a clean run, in computation order.
fn observe(model: &dyn Model, tokens: &Tensor) -> Result<SiteWrites> {
    let writes: Arc<Mutex<SiteWrites>> = Arc::default();
    let shown = writes.clone();
    let pass = Pass::forward_only().on_write(move |written| {
        shown.lock().unwrap_or_else(PoisonError::into_inner).push(written);
        Ok(())
    });
    model.forward(&pass, tokens)?;
    Ok(std::mem::take(&mut *writes.lock().unwrap_or_else(PoisonError::into_inner)))
}
