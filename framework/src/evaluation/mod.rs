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
pub use plot::{Line, Plot};

use self::answers::Side;
use crate::data::example::{Batch, Example, by_length};
use crate::evaluation::task::{Figures, Setting};
use crate::model::Model;
use crate::ops::cross_entropy::Target;
use crate::pass::cache::Cache;
use crate::pass::{Pass, Readout, scalar, values};
use crate::progress::{self, Progress, Report};
use crate::{Error, Result, files};

/// A model and how to run it.
#[derive(Clone, Copy)]
pub struct Evaluation<'a> {
    pub model: &'a dyn Model,
    pub setting: Setting<'a>,
    pub batch_size: usize,
    pub report: &'a Report<'a>,
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
        let Some(folder) = self.folder else {
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

    /// Runs all examples in batches of similar length. `f` is given the batch's indices in
    /// `examples`, which come in no order of note.
    ///
    /// # Errors
    /// If an example doesn't fit the model, naming it.
    pub fn for_each_batch(
        &self,
        examples: &[Example],
        mut f: impl FnMut(&[usize], &Batch, &Readout) -> Result<()>,
    ) -> Result<()> {
        for example in examples {
            example.check(self.model.vocabulary(), self.model.context())?;
        }
        let mut done = 0;
        let order = by_length(examples, |example| example.tokens.len());
        for chunk in order.chunks(self.batch_size.max(1)) {
            let batch = chunk.iter().map(|&index| &examples[index]).collect();
            let batch = Batch::new(batch, &self.model.device())?;
            progress::check_stop()?;
            let readout = self.forward(&batch)?;
            f(chunk, &batch, &readout)?;
            done += chunk.len();
            let total = examples.len();
            (self.report)(Progress { stage: "evaluate", done, total, figure: None });
        }
        Ok(())
    }

    /// `loss` over all predicted tokens, and its `perplexity`; with right and wrong answers,
    /// `logit_diff` (right − wrong, the mean over keys) and `right_share` (the share of keys whose best
    /// right answer beats every wrong one).
    ///
    /// # Errors
    /// As for [`Evaluation::for_each_batch`].
    pub fn language_modelling(&self, examples: &[Example]) -> Result<Figures> {
        let (mut loss, mut predicted) = (0.0, 0usize);
        let (mut differences, mut wins) = (Vec::new(), 0usize);
        self.for_each_batch(examples, |_, batch, readout| {
            let (mut rows, mut targets) = (Vec::new(), Vec::new());
            for (index, position, row) in batch.predicted() {
                let token = batch.examples[index].tokens[position];
                rows.push(row);
                targets.push(Target { token, weight: 1.0 });
            }
            predicted += rows.len();
            loss += scalar(&readout.cross_entropy(&rows, targets)?)?;
            let keys: Vec<_> = batch.keys().filter(|(_, key, _)| !key.wrong.is_empty()).collect();
            if keys.is_empty() {
                return Ok(());
            }
            differences.extend(values(&answers::logit_differences(readout, &keys)?)?);
            let right = values(&answers::best_logits(readout, &keys, Side::Right)?)?;
            let wrong = values(&answers::best_logits(readout, &keys, Side::Wrong)?)?;
            wins += right.iter().zip(&wrong).filter(|(right, wrong)| right > wrong).count();
            Ok(())
        })?;
        let mut figures = Figures::new();
        let loss = loss / predicted as f64;
        figures.insert("loss".into(), loss);
        figures.insert("perplexity".into(), loss.exp());
        if !differences.is_empty() {
            let n = differences.len() as f64;
            figures.insert("logit_diff".into(), differences.iter().sum::<f64>() / n);
            figures.insert("right_share".into(), wins as f64 / n);
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
