//! Running a model over examples without gradients: what tasks' evaluations are made of.

use crate::Result;
use candle_core::DType;

use crate::example::{Batch, Example};
use crate::model::Model;
use crate::ops::cross_entropy::Target;
use crate::pass::{Pass, Readout, scalar};
use crate::progress::{Progress, Report};
use crate::task::{Figures, Setting};

/// A model and how to run it.
pub struct Evaluation<'a> {
    pub model: &'a dyn Model,
    pub setting: Setting<'a>,
    pub batch_size: usize,
    pub report: &'a Report<'a>,
}

impl Evaluation<'_> {
    /// Runs all examples in batches, in order.
    ///
    /// # Errors
    /// If an example doesn't fit the model, naming it.
    pub fn for_each_batch(
        &self,
        examples: &[Example],
        mut f: impl FnMut(&Batch, &Readout) -> Result<()>,
    ) -> Result<()> {
        for example in examples {
            example.check(self.model.vocabulary(), self.model.context())?;
        }
        let mut done = 0;
        for chunk in examples.chunks(self.batch_size.max(1)) {
            let batch = Batch::new(chunk.iter().collect(), &self.model.device())?;
            let readout = self.model.forward(&Pass::forward_only(), &batch.tokens)?;
            f(&batch, &readout)?;
            done += chunk.len();
            let total = examples.len();
            (self.report)(Progress { stage: "evaluate", done, total, figure: None });
        }
        Ok(())
    }

    /// `loss` over all predicted tokens, and its `perplexity`; with right and wrong answers,
    /// `logit_diff` (right − wrong, the mean over keys) and `right_share` (the share of keys where
    /// the right answer's logit is the larger).
    ///
    /// # Errors
    /// As for [`Evaluation::for_each_batch`].
    pub fn language_modelling(&self, examples: &[Example]) -> Result<Figures> {
        let (mut loss, mut predicted) = (0.0, 0usize);
        let mut differences: Vec<f64> = Vec::new();
        self.for_each_batch(examples, |batch, readout| {
            let (mut rows, mut targets) = (Vec::new(), Vec::new());
            for (index, position, row) in batch.predicted() {
                let token = batch.examples[index].tokens[position];
                rows.push(row);
                targets.push(Target { token, weight: 1.0 });
            }
            predicted += rows.len();
            loss += scalar(&readout.cross_entropy(&rows, targets)?)?;
            let keys: Vec<_> = (batch.keys())
                .filter_map(|(_, key, row)| Some((row, key.correct, key.wrong?)))
                .collect();
            if keys.is_empty() {
                return Ok(());
            }
            let rows: Vec<u32> = keys.iter().map(|&(row, ..)| row).collect();
            let logits = readout.logits(&rows)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
            differences.extend(logits.iter().zip(&keys).map(|(logits, &(_, right, wrong))| {
                logits[right as usize] - logits[wrong as usize]
            }));
            Ok(())
        })?;
        let mut figures = Figures::new();
        let loss = loss / predicted as f64;
        figures.insert("loss".into(), loss);
        figures.insert("perplexity".into(), loss.exp());
        if !differences.is_empty() {
            let n = differences.len() as f64;
            let right = differences.iter().filter(|&&d| d > 0.0).count();
            figures.insert("logit_diff".into(), differences.iter().sum::<f64>() / n);
            figures.insert("right_share".into(), right as f64 / n);
        }
        Ok(figures)
    }
}
