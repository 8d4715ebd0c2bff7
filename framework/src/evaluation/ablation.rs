//! What is read along an ablated edge: nothing, the writer's mean over examples, or what it writes in
//! another run. Means are sums of each projection's input, since a projection is linear.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::data::example::{Batch, Example, pad};
use crate::evaluation::batches;
use crate::graph::Graph;
use crate::model::Model;
use crate::pass::{Ablated, Pass, Written};
use crate::peers::{self, Peers};
use crate::{Error, Result, refuse};

/// What replaces a writer's output along an ablated edge.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Ablation {
    /// Its mean over all tokens of all examples.
    #[default]
    Mean,
    /// At each position its mean over the examples that reach it.
    MeanPositional,
    /// Nothing.
    Zero,
    /// Its output on the counterfactual.
    Corrupt,
}

impl Ablation {
    /// Its name, as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Ablation::Mean => "mean",
            Ablation::MeanPositional => "mean-positional",
            Ablation::Zero => "zero",
            Ablation::Corrupt => "corrupt",
        }
    }

    /// Refuses an example without what is read along ablated edges at all positions. `why` is a task's
    /// reason for having no counterfactuals.
    ///
    /// # Errors
    /// If it has no counterfactual of its own length where one is needed.
    pub fn check(self, example: &Example, why: Option<&str>) -> Result<()> {
        if self != Ablation::Corrupt {
            return Ok(());
        }
        let origin = &example.origin;
        let Some(counterfactual) = &example.counterfactual else {
            let reason = why.map_or(String::new(), |why| format!(" ({why})"));
            refuse!(
                "{origin}: no counterfactual, which ablation `corrupt` needs{reason}; use ablation \
                 `mean`, `mean-positional` or `zero`"
            );
        };
        let lengths = (example.tokens.len(), counterfactual.tokens.len());
        if lengths.0 != lengths.1 {
            refuse!(
                "{origin}: {} tokens, but {} in its counterfactual; ablation `corrupt` at all positions \
                 needs equal lengths",
                lengths.0,
                lengths.1
            );
        }
        Ok(())
    }
}

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
    /// Empty sums, for examples of at most `longest` tokens.
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
        self.join(self.of_batch(model, batch)?)
    }

    /// Takes all batches' clean runs into the means: `own` are those that this process does of so many, which
    /// its peers share. One that does none runs the batch that `like` gives, if it is to have the means.
    ///
    /// # Errors
    /// If a tensor operation fails or another process can't be reached.
    pub fn add_shared<'b>(
        &mut self,
        model: &dyn Model,
        own: impl Iterator<Item = Result<Batch<'b>>>,
        (peers, count): (&dyn Peers, usize),
        like: impl FnOnce() -> Result<Option<Batch<'b>>>,
    ) -> Result<()> {
        let (mut known, mut of_own) = (None, Vec::new());
        for batch in own {
            let of_batch = self.of_batch(model, &batch?)?;
            of_own.push(of_batch.flattened()?);
            known.get_or_insert(of_batch);
        }
        let of_batches = peers::exchange(peers, count, of_own)?;
        if known.is_none() {
            known = like()?.map(|batch| self.of_batch(model, &batch)).transpose()?;
        }
        if let Some(known) = known {
            of_batches.iter().try_for_each(|of_batch| self.join_flattened(&known, of_batch))?;
        }
        Ok(())
    }

    /// The sums of a batch's clean run alone.
    fn of_batch(&self, model: &dyn Model, batch: &Batch) -> Result<Self> {
        let places = self.counts.len();
        let (mut rows, mut at) = (Vec::new(), Vec::new());
        for (index, example) in batch.examples.iter().enumerate() {
            for position in 0..example.tokens.len() {
                rows.push(batch.row(index, position));
                at.push(if places == 1 { 0 } else { position as u32 });
            }
        }
        let mut counts = vec![0.0; places];
        at.iter().for_each(|&place| counts[place as usize] += 1.0);
        let mut sums = Vec::new();
        for written in observe(model, &batch.tokens)? {
            let values = written.values()?;
            let index = Tensor::new(&rows[..], values.device())?;
            let values = values.index_select(&index, 0)?;
            let zeros = Tensor::zeros((places, values.dim(1)?), values.dtype(), values.device())?;
            let sum = zeros.index_add(&Tensor::new(&at[..], values.device())?, &values, 0)?;
            sums.push((written, sum));
        }
        Ok(Self { ablation: self.ablation, graph: self.graph.clone(), sums, counts })
    }

    /// Adds what a batch gave.
    fn join(&mut self, batch: Self) -> Result<()> {
        self.counts.iter_mut().zip(batch.counts).for_each(|(count, more)| *count += more);
        if self.sums.is_empty() {
            self.sums = batch.sums;
            return Ok(());
        }
        for ((_, sum), (_, more)) in self.sums.iter_mut().zip(batch.sums) {
            *sum = (&*sum + more)?;
        }
        Ok(())
    }

    /// The counts and the sums as numbers, which processes exchange.
    fn flattened(&self) -> Result<Vec<f64>> {
        let mut all = self.counts.clone();
        for (_, sum) in &self.sums {
            all.extend(sum.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?);
        }
        Ok(all)
    }

    /// Adds what a batch gave another process, whose sites are those of `like`.
    fn join_flattened(&mut self, like: &Self, values: &[f64]) -> Result<()> {
        let (counts, mut rest) = values.split_at(self.counts.len());
        let mut sums = Vec::new();
        for (written, sum) in &like.sums {
            let (own, others) = rest.split_at(sum.elem_count());
            let own = Tensor::from_slice(own, sum.shape(), &Device::Cpu)?;
            sums.push((written.clone(), own.to_dtype(sum.dtype())?.to_device(sum.device())?));
            rest = others;
        }
        let graph = self.graph.clone();
        self.join(Self { ablation: self.ablation, graph, sums, counts: counts.to_vec() })
    }

    /// What is read along ablated edges on a batch.
    ///
    /// # Errors
    /// If an example has no counterfactual where it is wanted, or a tensor operation fails.
    pub fn of(&self, model: &dyn Model, batch: &Batch) -> Result<Ablated> {
        match self.independent_of_tokens()? {
            Some(ablated) => Ok(ablated),
            None => Ok(Ablated::Values(values_of(model, &counterfactual_tokens(model, batch)?)?)),
        }
    }

    /// What is read along ablated edges whatever the tokens are; none where it depends on them.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn independent_of_tokens(&self) -> Result<Option<Ablated>> {
        Ok(match self.ablation {
            Ablation::Zero => Some(Ablated::Zero),
            Ablation::Corrupt => None,
            Ablation::Mean => Some(Ablated::Constant(self.means()?.squeeze(1)?)),
            Ablation::MeanPositional => Some(Ablated::ByPosition(self.means()?)),
        })
    }

    /// The means [writers, places, d_model].
    fn means(&self) -> Result<Tensor> {
        let inverse: Vec<f64> = self.counts.iter().map(|&count| 1.0 / count.max(1.0)).collect();
        let inverse = Tensor::new(inverse, &Device::Cpu)?.unsqueeze(1)?;
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

/// A batch's counterfactuals, u32 [batch, seq].
///
/// # Errors
/// If an example has none.
pub fn counterfactual_tokens(model: &dyn Model, batch: &Batch) -> Result<Tensor> {
    let of = |example: &&Example| match &example.counterfactual {
        Some(counterfactual) => Ok(counterfactual.tokens.clone()),
        None => Err(Error::input(format!("{}: no counterfactual", example.origin))),
    };
    let counterfactuals: Vec<Vec<u32>> = batch.examples.iter().map(of).collect::<Result<_>>()?;
    Ok(pad(counterfactuals.iter().map(|tokens| &tokens[..]), &model.device())?.0)
}

/// The ablated values of examples, of which means are formed in batches of `batch_size`, which
/// `peers` share.
///
/// # Errors
/// If an example doesn't fit the model, or a tensor operation fails.
pub fn values_over(
    model: &dyn Model,
    ablation: Ablation,
    examples: &[Example],
    batch_size: usize,
    peers: &dyn Peers,
) -> Result<AblatedValues> {
    let longest = examples.iter().map(|example| example.tokens.len()).max().unwrap_or(0);
    let mut values = AblatedValues::new(model, ablation, longest);
    if !values.is_mean() {
        return Ok(values);
    }
    let all = || batches(model, examples, batch_size);
    let own = peers::own(peers, all());
    let count = examples.len().div_ceil(batch_size.max(1));
    // A process that does none needs one to know the sites by.
    let like = || all().next().transpose();
    values.add_shared(model, own, (peers, count), like)?;
    Ok(values)
}
