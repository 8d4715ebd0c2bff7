//! The discovery of a circuit with an experiment's settings, and what its bootstrap says of it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use super::Runner;
use crate::attribution::{
    Certainty, Discovered, Resamples, discover, discover_by_example, discover_edges,
};
use crate::data::example::Example;
use crate::graph::circuit::Circuit;
use crate::graph::scores::Scores;
use crate::graph::{Reader, Writer};
use crate::results::example_score_file::ExampleScoreFile;
use crate::run::experiment::Experiment;
use crate::{Result, files, refuse};

/// What a discovery found.
#[derive(Clone, Debug)]
pub struct Found {
    pub scores: Scores,
    /// The metric over all examples.
    pub metric: f64,
    /// Its edges say how sure they are, where there was a bootstrap.
    pub circuit: Circuit,
    /// What the bootstrap says, where there was one.
    pub certainty: Option<Certainty>,
}

impl Runner<'_> {
    /// Scores all edges and cuts the circuit.
    ///
    /// # Errors
    /// As [`discover`]'s, if the pruning's settings don't fit the graph, and if the metric or a score
    /// isn't a finite number.
    pub fn discover(&self, examples: &[Example]) -> Result<Found> {
        self.discover_into(examples, None)
    }

    /// [`Runner::discover`], which also writes each example's own scores to a file, where one is named.
    ///
    /// # Errors
    /// As [`Runner::discover`]'s, and if the file can't be written or would be absurdly large.
    pub fn discover_into(&self, examples: &[Example], per_example: Option<&Path>) -> Result<Found> {
        let Experiment { discovery, pruning, .. } = self.experiment;
        let provenance = self.provenance(examples);
        let examples: Vec<&Example> = examples[..provenance.examples].iter().collect();
        // Before the work, so that a wrong setting is refused at once.
        let graph = self.model.graph().subset(&discovery.nodes);
        pruning.check(&graph)?;
        let top_n = pruning.top_n(&graph)?;
        // Whether examples are scored one by one is the same for all processes; one of them writes.
        let by_example = per_example.is_some();
        let file = per_example
            .filter(|_| files::writes())
            .map(|path| ExampleScoreFile::create(path, &graph, &provenance, &examples))
            .transpose()?;
        let (Discovered { scores, metric }, resamples) = self.score(&examples, by_example, file)?;
        let cut = |scores: &Scores| pruning.prune(scores, &scores.magnitudes(), top_n);
        let mut circuit = cut(&scores);
        let certainty = resamples.map(|resamples| resamples.judge(&circuit, cut));
        if let Some(certainty) = &certainty {
            certainty.note(&graph, &mut circuit);
        }
        Ok(Found { scores, metric, circuit, certainty })
    }

    /// The scores of some edges, of the graph between discovery's kinds of nodes; others are unsaid.
    ///
    /// # Errors
    /// As [`discover_edges`]'s, and if the metric or a score isn't a finite number.
    pub fn score_edges(
        &self,
        examples: &[Example],
        edges: &BTreeSet<(Writer, Reader)>,
    ) -> Result<Scores> {
        let Experiment { discovery, .. } = self.experiment;
        let examples: Vec<&Example> =
            examples[..self.provenance(examples).examples].iter().collect();
        let metric = &*self.plugins.metric;
        let with = (self.peers, self.report);
        let found = discover_edges(self.model, &examples, metric, discovery, edges, with)?;
        found.check()?;
        Ok(found.scores)
    }

    /// The scores, and resampled ones where there is a bootstrap.
    fn score(
        &self,
        examples: &[&Example],
        by_example: bool,
        file: Option<ExampleScoreFile>,
    ) -> Result<(Discovered, Option<Resamples>)> {
        let Experiment { discovery, seed, .. } = self.experiment;
        let metric = &*self.plugins.metric;
        let resamples = match (discovery.bootstrap, examples.len()) {
            (0, _) => None,
            (_, 0 | 1) => {
                ::log::warn!("there is no bootstrap: one example can't be resampled");
                None
            }
            (count, examples) => {
                let graph = self.model.graph().subset(&discovery.nodes);
                Some(RefCell::new(Resamples::draw(&graph, count, examples, *seed)))
            }
        };
        if resamples.is_none() && !by_example {
            let (peers, report) = (self.peers, self.report);
            let found = discover(self.model, examples, metric, discovery, peers, report)?;
            return found.check().map(|()| (found, None));
        }
        let take = |examples: &[usize], scores: &[f64]| {
            if let Some(resamples) = &resamples {
                resamples.borrow_mut().add(examples, scores);
            }
            file.as_ref().map_or(Ok(()), |file| file.write(examples, scores))
        };
        let with = (self.peers, self.report);
        let (found, is_sum) =
            discover_by_example(self.model, examples, metric, discovery, with, &take)?;
        found.check()?;
        let method = &discovery.method.name;
        if by_example && !is_sum {
            refuse!(
                "method `{method}` gives scores that are no sums over examples; leave --per-example out"
            );
        }
        if let Some(file) = file {
            file.finish()?;
        }
        if !is_sum && resamples.is_some() {
            ::log::warn!(
                "there is no bootstrap: method `{method}` gives scores that are no sums over examples"
            );
        }
        Ok((found, resamples.filter(|_| is_sum).map(RefCell::into_inner)))
    }
}
