//! Running a model over examples without gradients: what tasks' evaluations are made of.

pub mod ablation;
pub mod answers;
mod circuit;
mod curve;
mod faithfulness;
pub mod figures;
pub mod generation;
mod in_force;
pub mod metric;
pub(crate) mod plot;
pub mod ranking;
pub mod task;

use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::Tensor;
use serde::Serialize;

pub use circuit::{CircuitFigures, Complement, Knockout};
pub use curve::{Curve, Point, SIZES, Smallest};
pub use faithfulness::{CircuitEvaluation, FRACTIONS, Faithfulness, Measured, Scale};
pub use in_force::CircuitInForce;
pub use plot::{Across, Line, Plot};

use self::answers::Side;
use crate::data::example::{Batch, Example, by_length};
use crate::evaluation::task::{Figures, Setting};
use crate::model::Model;
use crate::ops::cross_entropy::Target;
use crate::pass::cache::Cache;
use crate::pass::{Pass, Readout, scalar, values};
use crate::peers::{self, Peers};
use crate::progress::{self, Progress, Report};
use crate::{Error, Result, files, refuse};

/// A model and how to run it.
#[derive(Clone, Copy)]
pub struct Evaluation<'a> {
    pub model: &'a dyn Model,
    pub setting: Setting<'a>,
    pub batch_size: usize,
    pub report: &'a Report<'a>,
    /// The processes that share the evaluation's batches.
    pub peers: &'a dyn Peers,
    /// Where the evaluation's files go, made when the first is written; without it none are.
    pub folder: Option<&'a Path>,
    /// The parameters before tuning, to compare with; none where the model is untuned.
    pub untuned: Option<&'a [Tensor]>,
    /// The circuit that alone is in force; without it, the whole model is.
    pub circuit: Option<&'a CircuitInForce>,
}

impl Evaluation<'_> {
    /// The forward pass over a batch. Every evaluation asks for it here, and so sees the model as it is to
    /// be judged: whole, or a circuit of it alone.
    ///
    /// # Errors
    /// If the circuit in force needs what an example doesn't have, or a tensor operation fails.
    pub fn forward(&self, batch: &Batch) -> Result<Readout> {
        let pass = match self.circuit {
            None => Pass::forward_only(),
            Some(circuit) => circuit.pass(self.model, batch)?,
        };
        self.model.forward(&pass, &batch.tokens)
    }

    /// The forward pass over new tokens u32 [batch, seq] that follow those in the cache.
    ///
    /// # Errors
    /// If what the circuit in force needs of new tokens isn't known, or a tensor operation fails.
    pub fn forward_continuing(
        &self,
        cache: &Arc<Mutex<Cache>>,
        tokens: &Tensor,
    ) -> Result<Readout> {
        let pass = Pass::continuing(cache.clone());
        let pass = match self.circuit {
            None => pass,
            Some(circuit) => circuit.continuing(self.model, pass)?,
        };
        self.model.forward(&pass, tokens)
    }

    /// Writes a file beside the figures: a drawing, a table of details.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let Some(folder) = self.folder.filter(|_| files::writes()) else {
            return Ok(());
        };
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        files::write_atomically(&folder.join(name), content)
    }

    /// Writes a JSON Lines file beside the figures: what was generated, and its verdict.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write_jsonl(&self, name: &str, lines: &[impl Serialize]) -> Result<()> {
        self.write(name, files::jsonl(lines)?.as_bytes())
    }

    /// Runs `f` on the model as it was before tuning. Afterwards the model is tuned again, even if `f`
    /// panics.
    ///
    /// # Errors
    /// As `f`, and if the parameters can't be copied.
    pub fn untuned<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(untuned) = self.untuned else {
            return f();
        };
        let parameters = self.model.parameters();
        let _tuned = parameters.put_back_on_drop()?;
        parameters.restore(untuned)?;
        f()
    }

    /// The numbers that `f` makes of each batch, added up. Batches hold examples of similar length.
    ///
    /// # Errors
    /// If an example doesn't fit the model, naming it, and as `f`.
    pub fn sums<const N: usize>(
        &self,
        examples: &[Example],
        mut f: impl FnMut(&Batch, &Readout) -> Result<[f64; N]>,
    ) -> Result<[f64; N]> {
        let of_batches =
            self.by_batch(examples, |batch, readout| Ok(f(batch, readout)?.to_vec()))?;
        let mut sums = [0.0; N];
        for (_, values) in of_batches {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        Ok(sums)
    }

    /// One number an example, in the order of `examples`: `f` makes them of each batch, in the order of the
    /// batch's examples.
    ///
    /// # Errors
    /// If an example doesn't fit the model, naming it, if `f` makes more or fewer numbers than the batch
    /// has examples, and as `f`.
    pub fn by_example(
        &self,
        examples: &[Example],
        f: impl FnMut(&Batch, &Readout) -> Result<Vec<f64>>,
    ) -> Result<Vec<f64>> {
        let mut all = vec![0.0; examples.len()];
        for (indices, values) in self.by_batch(examples, f)? {
            if values.len() != indices.len() {
                refuse!(
                    "an evaluation made {} numbers of a batch of {} examples; it must make one each",
                    values.len(),
                    indices.len()
                );
            }
            indices.into_iter().zip(values).for_each(|(index, value)| all[index] = value);
        }
        Ok(all)
    }

    /// What `f` makes of each batch, with the batch's indices in `examples`, in the batches' order. The
    /// batches are shared with the process's peers.
    fn by_batch(
        &self,
        examples: &[Example],
        mut f: impl FnMut(&Batch, &Readout) -> Result<Vec<f64>>,
    ) -> Result<Vec<(Vec<usize>, Vec<f64>)>> {
        for example in examples {
            example.check(self.model.vocabulary(), self.model.context())?;
        }
        let order = by_length(examples, |example| example.tokens.len());
        let chunks: Vec<&[usize]> = order.chunks(self.batch_size.max(1)).collect();
        let (mut done, total) = (0, examples.len());
        let all = peers::share(self.peers, &chunks, |chunk| {
            let batch = chunk.iter().map(|&index| &examples[index]).collect();
            let batch = Batch::new(batch, &self.model.device())?;
            progress::check_stop()?;
            let values = f(&batch, &self.forward(&batch)?)?;
            done += chunk.len();
            (self.report)(Progress { stage: "evaluate", done, total, figure: None });
            Ok(values)
        })?;
        Ok(chunks.into_iter().map(<[usize]>::to_vec).zip(all).collect())
    }

    /// `loss` over all predicted tokens, and its `perplexity`; with right and wrong answers,
    /// `logit_diff` (right − wrong, the mean over keys) and `right_share` (the share of keys whose best
    /// right answer beats every wrong one).
    ///
    /// # Errors
    /// If an example doesn't fit the model, naming it.
    pub fn language_modelling(&self, examples: &[Example]) -> Result<Figures> {
        let [loss, predicted, difference, wins, keys] = self.sums(examples, |batch, readout| {
            let (mut rows, mut targets) = (Vec::new(), Vec::new());
            for (index, position, row) in batch.predicted() {
                let token = batch.examples[index].tokens[position];
                rows.push(row);
                targets.push(Target { token, weight: 1.0 });
            }
            let predicted = rows.len() as f64;
            let loss = scalar(&readout.cross_entropy(&rows, targets)?)?;
            let keys: Vec<_> = batch.keys().filter(|(_, key, _)| !key.wrong.is_empty()).collect();
            if keys.is_empty() {
                return Ok([loss, predicted, 0.0, 0.0, 0.0]);
            }
            let differences = values(&answers::logit_differences(readout, &keys)?)?;
            let right = values(&answers::best_logits(readout, &keys, Side::Right)?)?;
            let wrong = values(&answers::best_logits(readout, &keys, Side::Wrong)?)?;
            let wins = right.iter().zip(&wrong).filter(|(right, wrong)| right > wrong).count();
            let difference = differences.into_iter().sum();
            Ok([loss, predicted, difference, wins as f64, keys.len() as f64])
        })?;
        let mut figures = Figures::new();
        let loss = loss / predicted;
        figures.insert("loss".into(), loss);
        figures.insert("perplexity".into(), loss.exp());
        if keys > 0.0 {
            figures.insert("logit_diff".into(), difference / keys);
            figures.insert("right_share".into(), wins / keys);
        }
        Ok(figures)
    }
}

/// Examples in batches of similar length on a model's device, each checked against the model.
pub(crate) fn batches<'e>(
    model: &dyn Model,
    examples: &'e [Example],
    batch_size: usize,
) -> impl Iterator<Item = Result<Batch<'e>>> {
    let (device, limits) = (model.device(), (model.vocabulary(), model.context()));
    let order = by_length(examples, |example| example.tokens.len());
    let of_size = batch_size.max(1);
    (0..order.len().div_ceil(of_size)).map(move |index| {
        let chunk = &order[index * of_size..order.len().min((index + 1) * of_size)];
        let examples: Vec<&Example> = chunk.iter().map(|&index| &examples[index]).collect();
        examples.iter().try_for_each(|example| example.check(limits.0, limits.1))?;
        Batch::new(examples, &device)
    })
}
