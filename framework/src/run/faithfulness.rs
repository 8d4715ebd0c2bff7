//! A run's circuits put to the test on held-out examples: how faithful, how complete, how small they can
//! be. What is computed is [`crate::evaluation`]'s.

use serde::{Deserialize, Serialize};

use super::Runner;
use super::folder::RunFolder;
use crate::evaluation::task::Split;
use crate::evaluation::{
    Across, CircuitEvaluation, CircuitFigures, Curve, Faithfulness, Line, Plot, Scale, Smallest,
    ranking,
};
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
    /// Circuits of all sizes, the best edges by their scores.
    #[serde(flatten)]
    pub ranked: RankingSummary,
    /// Circuits of all sizes, edges drawn at random; none in runs of former versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random: Option<RankingSummary>,
}

/// What circuits of growing size, taken from one ranking of the edges, come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankingSummary {
    /// The area under the faithfulness curve: MIB's CPR.
    pub cpr: f64,
    /// The area under |1 − faithfulness| of the same curve: MIB's CMD.
    pub cmd: f64,
    /// None where even the whole graph, without its dead ends, isn't faithful enough.
    pub smallest: Option<Smallest>,
}

/// A curve file: the summary, and the curves that it is of.
#[derive(Serialize)]
struct CurveFile<'a> {
    #[serde(flatten)]
    summary: &'a CircuitSummary,
    curve: &'a Curve,
    random_curve: &'a Curve,
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
        let ablation = settings.ablation.unwrap_or(discovery.ablation);
        let examples = self.data.fitting(self.split(Split::Test)?.examples(), ablation);
        let examples = &examples[..settings.examples.unwrap_or(examples.len()).min(examples.len())];
        if examples.is_empty() {
            refuse!("there are no test examples to evaluate a circuit on; give the task some");
        }
        self.check_metric(examples)?;
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

    /// A plot of what circuits came to in an evaluation.
    pub fn faithfulness_plot(
        &self,
        evaluation: &CircuitEvaluation,
        title: String,
        lines: Vec<Line>,
    ) -> Plot {
        let metric = self.provenance(evaluation.examples).metric;
        let (ablation, edges) = (evaluation.ablation.name(), evaluation.all.len());
        let examples = evaluation.examples.len();
        let subtitle = format!("{metric}, {ablation} ablation, {edges} edges, {examples} examples");
        let values = "faithfulness".to_owned();
        Plot { title, subtitle, across: Across::Sizes, values, lines }
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
        let evaluation = self.circuit_evaluation(&self.experiment.discovery.nodes)?;
        match self.circuit_summary(&evaluation, settings, circuit, scores) {
            Ok((summary, curves)) => {
                let file =
                    CurveFile { summary: &summary, curve: &curves[0], random_curve: &curves[1] };
                files::write_json(&folder.path(&format!("faithfulness-{when}.json")), &file)?;
                let labels = [settings.ranking.name(), ranking::RANDOM].into_iter();
                let lines = labels.zip(&curves).map(|(label, curve)| curve.line(label)).collect();
                let title = format!("{}: circuits {when} tuning", self.experiment.name);
                let plot = self.faithfulness_plot(&evaluation, title, lines);
                let path = folder.path(&format!("faithfulness-{when}.svg"));
                files::write_atomically(&path, plot.svg().as_bytes())?;
                Ok(Some(summary))
            }
            Err(error @ (Error::NoEffect { .. } | Error::NotFinite(_))) => {
                ::log::warn!("the circuit {when} tuning can't be evaluated: {error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The summary, and the curves of the ranking by scores and of a random one.
    fn circuit_summary(
        &self,
        evaluation: &CircuitEvaluation,
        settings: &Faithfulness,
        circuit: &Circuit,
        scores: &Scores,
    ) -> Result<(CircuitSummary, Vec<Curve>)> {
        let orders = [
            settings.ranking.order(self.model.graph(), &evaluation.all, scores)?,
            ranking::random(&evaluation.all, self.experiment.seed),
        ];
        let smallest = evaluation.smallest(&orders, settings.reach)?;
        let (Scale { metric_full, metric_empty }, curves) =
            evaluation.curves(&orders, &settings.fractions)?;
        let (_, circuit) = evaluation.circuit(circuit, &[], false)?;
        let of = |index: usize| RankingSummary {
            cpr: curves[index].cpr,
            cmd: curves[index].cmd,
            smallest: smallest[index].clone(),
        };
        let summary = CircuitSummary {
            metric_full,
            metric_empty,
            edges: evaluation.all.len(),
            circuit,
            ranked: of(0),
            random: Some(of(1)),
        };
        Ok((summary, curves))
    }
}
