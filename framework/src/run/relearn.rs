//! How fast a model learns: tuned on its task's first n training examples, for several n, each time from where it
//! is. Of a model that was made to forget the curve says whether it did, or only hides what it knows.

use serde::Serialize;

use super::Runner;
use crate::evaluation::figures;
use crate::evaluation::task::Figures;
use crate::run::experiment::Experiment;
use crate::tuning::Tuner;
use crate::{Result, refuse};

/// A model tuned on so many examples.
#[derive(Clone, Debug, Serialize)]
pub struct Relearned {
    pub examples: usize,
    /// Update steps.
    pub steps: usize,
    #[serde(serialize_with = "figures::serialize")]
    pub figures: Figures,
}

impl Runner<'_> {
    /// Evaluates the model tuned on the first n training examples for each of these n, with the experiment's
    /// settings; of n = 0 as it is. Afterwards its weights are as they were.
    ///
    /// # Errors
    /// If the task has fewer examples, or as tuning and the evaluation.
    pub fn relearn(&self, counts: &[usize]) -> Result<Vec<Relearned>> {
        let examples = self.prepare()?;
        if let Some(count) = counts.iter().find(|&&count| count > examples.len()) {
            refuse!(
                "{count} examples to learn from, but the task gives {}; give fewer, or more data",
                examples.len()
            );
        }
        counts.iter().map(|&count| self.tuned_on(count)).collect()
    }

    fn tuned_on(&self, count: usize) -> Result<Relearned> {
        let Experiment { discovery, pruning, tuning, seed, .. } = self.experiment;
        let parameters = self.model.parameters();
        let _untuned = parameters.put_back_on_drop()?;
        let mut steps = 0;
        if count > 0 {
            let tuner = Tuner {
                model: self.model,
                metric: &*self.plugins.metric,
                selector: &*self.plugins.selector,
                discovery,
                pruning,
                tuning,
                matched: None,
                seed: *seed,
                peers: self.peers,
            };
            let examples = &self.examples()?[..count];
            steps = tuning.total_steps(count);
            if let Some(adapters) = tuner.run(examples, &mut |_| Ok(()))?.adapters {
                adapters.merge(parameters)?;
            }
        }
        Ok(Relearned { examples: count, steps, figures: self.evaluate(None, None)? })
    }
}
