//! The tuning of a run: what it trains is saved whatever becomes of it.

use candle_core::Tensor;

use super::Runner;
use super::folder::RunFolder;
use super::log::RunLog;
use super::resume::Stages;
use crate::data::example::Example;
use crate::lora::Adapters;
use crate::panics::caught;
use crate::run::experiment::{Experiment, ModelChoice};
use crate::tuning::selector::ParamSelector;
use crate::tuning::{Matched, Tuned, Tuner};
use crate::{Error, Result};

impl Runner<'_> {
    /// Tunes, writing down every step, from where an earlier try was ended; a control is `matched` to the
    /// circuit's own run. Adapters are saved to `adapter` and merged into the model.
    ///
    /// # Errors
    /// If tuning fails. What it reached, adapters and model, is saved to `folder` first, unless it was asked
    /// to stop: then the state is there to go on from.
    pub(super) fn tune(
        &self,
        folder: &RunFolder,
        selector: &dyn ParamSelector,
        matched: Option<&Matched>,
        examples: &[Example],
        untuned: Option<&[Tensor]>,
        stages: &Stages,
    ) -> Result<Tuned> {
        let Experiment { discovery, pruning, tuning, seed, .. } = self.experiment;
        let tuner = Tuner {
            model: self.model,
            metric: &*self.plugins.metric,
            selector,
            discovery,
            pruning,
            tuning,
            matched,
            seed: *seed,
            peers: self.peers,
        };
        let mut log = RunLog::new(self, folder, untuned, stages)?;
        // An update is the last thing in a step, so model and adapters are as the last whole step left
        // them, even after a panic.
        let from = log.resume()?;
        let tuned = caught("tuning", || {
            tuner.resume(examples, from.as_deref(), &mut |event| log.event(event))
        });
        if let Err(Error::Stopped) = tuned {
            return Err(Error::Stopped);
        }
        let kept = self.keep_adapters(folder, log.adapters());
        let logged = log.finish();
        match tuned {
            Ok(tuned) => kept.and(logged).map(|()| tuned),
            Err(error) => {
                let saved = kept.and_then(|()| (self.save)(&folder.clear("model")?, self.model));
                if let Err(error) = saved.and(logged) {
                    log::error!("what was reached can't be saved: {error}");
                }
                Err(error)
            }
        }
    }

    /// Saves adapters, and merges them into the model.
    fn keep_adapters(&self, folder: &RunFolder, adapters: Option<&Adapters>) -> Result<()> {
        let Some(adapters) = adapters else {
            return Ok(());
        };
        let ModelChoice { path, random_init, .. } = &self.experiment.model;
        // Drawn weights are in no file.
        let base_model = random_init.is_none().then_some(&**path);
        adapters.save(&folder.clear("adapter")?, base_model)?;
        adapters.merge(self.model.parameters())
    }
}
