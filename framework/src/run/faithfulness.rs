//! A run's circuits put to the test on held-out examples: how faithful, how complete, how small they can
//! be. What is computed is [`crate::evaluation`]'s.

use serde::{Deserialize, Serialize};

use super::Runner;
use super::folder::RunFolder;
use crate::evaluation::ranking;
use crate::evaluation::task::Split;
use crate::evaluation::{CircuitEvaluation, CircuitFigures, Curve, Faithfulness, Scale, Smallest};
use crate::graph::Kind;
use crate::graph::circuit::Circuit;
use crate::graph::scores::Scores;
use crate::run::experiment::Experiment;
use crate::{Error, Result, files, refuse};

/// What a run says of a circuit: a part of `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CircuitSummary {
    /// m(M), the metric of the whole model.
    pub metric_full: f64,
    /// m(∅), the metric without any edge of the graph.
    pub metric_empty: f64,
    /// How many edges the graph has.
    pub edges: usize,
    /// The circuit itself.
    pub circuit: CircuitFigures,
    /// The area under the faithfulness curve of the ranking by scores: MIB's CPR.
    pub cpr: f64,
    /// The area under |1 − faithfulness| of the same curve: MIB's CMD.
    pub cmd: f64,
    /// None where even the whole graph, without its dead ends, isn't faithful enough.
    pub smallest: Option<Smallest>,
}

/// A curve file: the summary, and the points that it is of.
#[derive(Serialize)]
struct CurveFile<'a> {
    #[serde(flatten)]
    summary: &'a CircuitSummary,
    curve: &'a Curve,
    /// The curve of a random ranking, to hold it against.
    random: &'a Curve,
}

impl Runner<'_> {
    /// How circuits between nodes of these kinds are evaluated, on the task's test examples.
    ///
    /// # Errors
    /// If a setting can't be followed, or an example, the metric or the kinds don't fit.
    pub fn circuit_evaluation(&self, kinds: &[Kind]) -> Result<CircuitEvaluation<'_>> {
        let Experiment { faithfulness, discovery, evaluation_batch_size, .. } = self.experiment;
        let default = Faithfulness::default();
        let settings = faithfulness.as_ref().unwrap_or(&default);
        settings.check()?;
        let examples = self.split(Split::Test)?.examples();
        let examples = &examples[..settings.examples.unwrap_or(examples.len()).min(examples.len())];
        if examples.is_empty() {
            refuse!("there are no test examples to evaluate a circuit on; give the task some");
        }
        self.check_metric(examples)?;
        let ablation = settings.ablation.unwrap_or(discovery.ablation);
        for example in examples {
            example.check(self.model.vocabulary(), self.model.context())?;
            ablation.check(example, self.plugins.task.why_no_counterfactual())?;
        }
        Ok(CircuitEvaluation {
            model: self.model,
            metric: &*self.plugins.metric,
            examples,
            ablation,
            all: CircuitEvaluation::graph(self.model, kinds)?,
            prune: settings.prune,
            batch_size: *evaluation_batch_size,
            report: self.report,
            peers: self.peers,
        })
    }

    /// Evaluates a circuit and the ranking by its scores as `[faithfulness]` says, and writes the curve
    /// down. None, and a warning, where there is nothing to measure faithfulness by.
    pub(super) fn judge(
        &self,
        settings: &Faithfulness,
        circuit: &Circuit,
        scores: &Scores,
        folder: &RunFolder,
        when: &str,
    ) -> Result<Option<CircuitSummary>> {
        match self.circuit_summary(settings, circuit, scores) {
            Ok((summary, [curve, random])) => {
                let file = folder.path(&format!("faithfulness-{when}.json"));
                let all = CurveFile { summary: &summary, curve: &curve, random: &random };
                files::write_json(&file, &all)?;
                Ok(Some(summary))
            }
            Err(error @ (Error::NoEffect { .. } | Error::NotFinite(_))) => {
                ::log::warn!("the circuit {when} tuning can't be evaluated: {error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn circuit_summary(
        &self,
        settings: &Faithfulness,
        circuit: &Circuit,
        scores: &Scores,
    ) -> Result<(CircuitSummary, [Curve; 2])> {
        let evaluation = self.circuit_evaluation(&self.experiment.discovery.nodes)?;
        let order = settings.ranking.order(self.model.graph(), &evaluation.all, scores)?;
        let smallest = evaluation.smallest(&order, settings.reach)?;
        let random = ranking::random(&evaluation.all, self.experiment.seed);
        let (Scale { metric_full, metric_empty }, mut curves) =
            evaluation.curves(&[order, random], &settings.fractions)?;
        let (random, curve) = (curves.remove(1), curves.remove(0));
        let (_, circuit) = evaluation.circuit(circuit, &[], false)?;
        let (cpr, cmd) = (curve.cpr, curve.cmd);
        let edges = evaluation.all.len();
        let summary =
            CircuitSummary { metric_full, metric_empty, edges, circuit, cpr, cmd, smallest };
        Ok((summary, [curve, random]))
    }
}
