//! How faithful a circuit is: the metric with every edge outside the circuit ablated, on a scale from the
//! metric without any edge of the graph, m(∅), to the whole model's, m(M). What circuits are looked at is
//! `curve`'s and `circuit`'s.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::data::example::Example;
use crate::evaluation::ablation::{Ablation, values_over};
use crate::evaluation::batches;
use crate::evaluation::metric::PatchingMetric;
use crate::evaluation::ranking::Ranking;
use crate::graph::Kind;
use crate::graph::edge_set::EdgeSet;
use crate::model::Model;
use crate::pass::{AblatedEdges, Pass, scalar};
use crate::peers::{self, Peers};
use crate::progress::{self, Progress, Report};
use crate::{Error, Result, refuse};

/// The shares of edges that MIB evaluates at.
pub const FRACTIONS: [f64; 11] = [0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];

/// How a run's circuits are evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Faithfulness {
    /// What is read along the edges outside a circuit, at all positions; without it, as in discovery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ablation: Option<Ablation>,
    /// How edges are ranked for the curve; `absolute` without it.
    pub ranking: Ranking,
    /// The shares of the graph's edges that the curve's circuits have; MIB's without it.
    pub fractions: Vec<f64>,
    /// The faithfulness that the smallest circuit has to reach; 0.9 without it.
    pub reach: f64,
    /// Drop the edges of dead ends before a circuit is run; true without it.
    pub prune: bool,
    /// Evaluate on the first so many of the task's test examples; without it, on all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<usize>,
}

impl Default for Faithfulness {
    fn default() -> Self {
        Self {
            ablation: None,
            ranking: Ranking::default(),
            fractions: FRACTIONS.to_vec(),
            reach: 0.9,
            prune: true,
            examples: None,
        }
    }
}

impl Faithfulness {
    /// Refuses settings that no circuit can be evaluated with.
    ///
    /// # Errors
    /// Naming the setting and what would be right.
    pub fn check(&self) -> Result<()> {
        if self.fractions.is_empty() {
            refuse!("there are no fractions; give at least one, a number from 0 to 1");
        }
        if let Some(fraction) = self.fractions.iter().find(|f| !(0.0..=1.0).contains(*f)) {
            refuse!("fraction {fraction}: a share of the graph's edges is a number from 0 to 1");
        }
        if !(self.reach > 0.0 && self.reach <= 1.0) {
            refuse!("faithfulness.reach is {}; it must be above 0 and at most 1", self.reach);
        }
        if self.examples == Some(0) {
            refuse!("faithfulness.examples is 0; evaluate on at least one");
        }
        Ok(())
    }
}

/// How circuits of a model are evaluated: on which examples, by what metric and ablation.
pub struct CircuitEvaluation<'a> {
    pub model: &'a dyn Model,
    pub metric: &'a dyn PatchingMetric,
    pub examples: &'a [Example],
    pub ablation: Ablation,
    /// The graph: the edges that can be ablated. All others are always kept.
    pub all: EdgeSet,
    /// Whether the edges of dead ends are dropped before a circuit is run.
    pub prune: bool,
    pub batch_size: usize,
    pub report: &'a Report<'a>,
    /// The processes that share the examples' batches.
    pub peers: &'a dyn Peers,
}

/// The metric of the whole model and of none of the graph's edges, between which faithfulness is a share
/// of the way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scale {
    /// m(M)
    pub metric_full: f64,
    /// m(∅)
    pub metric_empty: f64,
}

impl Scale {
    /// f = (m − m(∅)) / (m(M) − m(∅)).
    pub fn faithfulness(self, metric: f64) -> f64 {
        (metric - self.metric_empty) / (self.metric_full - self.metric_empty)
    }

    /// # Errors
    /// If both ends are the same number, up to the rounding of `dtype`.
    fn check(self, dtype: DType) -> Result<()> {
        let precision = if dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
        let largest = self.metric_full.abs().max(self.metric_empty.abs()).max(1.0);
        match (self.metric_full - self.metric_empty).abs() <= 16.0 * precision * largest {
            true => Err(Error::NoEffect { metric: self.metric_full }),
            false => Ok(()),
        }
    }
}

/// What came of circuits that were run.
pub struct Measured {
    pub scale: Scale,
    /// How many edges of each circuit were kept.
    pub kept: Vec<usize>,
    /// Each circuit's metric.
    pub metrics: Vec<f64>,
}

impl<'a> CircuitEvaluation<'a> {
    /// The graph between nodes of these kinds.
    ///
    /// # Errors
    /// If it has no edges.
    pub fn graph(model: &dyn Model, kinds: &[Kind]) -> Result<EdgeSet> {
        let all = EdgeSet::between(model.graph(), kinds);
        if all.is_empty() {
            refuse!("no edges between nodes of the kinds {kinds:?}; take `head` and `mlp` in");
        }
        Ok(all)
    }

    /// A circuit as it is run.
    pub fn kept(&self, circuit: &EdgeSet) -> EdgeSet {
        match self.prune {
            true => circuit.without_dead_ends(self.model.graph(), &self.all),
            false => circuit.clone(),
        }
    }

    /// Runs circuits: a pass each a batch, and one for the batch's ablated values.
    ///
    /// # Errors
    /// If an example doesn't fit, a metric isn't a finite number, or the whole model's is that of no edge.
    pub fn measure(&self, circuits: &[EdgeSet]) -> Result<Measured> {
        self.measure_beside(circuits, &mut BTreeMap::new())
    }

    /// [`CircuitEvaluation::measure`] of circuits beside others: those whose metrics are `known` are not run, and those
    /// that are run are known thereafter.
    pub(super) fn measure_beside(
        &self,
        circuits: &[EdgeSet],
        known: &mut BTreeMap<EdgeSet, f64>,
    ) -> Result<Measured> {
        let empty = EdgeSet::empty(self.model.graph());
        let kept: Vec<EdgeSet> = circuits.iter().map(|circuit| self.kept(circuit)).collect();
        // Circuits that come to the same edges are run once.
        let sets: BTreeSet<&EdgeSet> = [&self.all, &empty].into_iter().chain(&kept).collect();
        let sets: Vec<&EdgeSet> = sets.into_iter().filter(|set| !known.contains_key(set)).collect();
        let metrics = self.run(&sets)?;
        if let Some(metric) = metrics.iter().find(|metric| !metric.is_finite()) {
            return Err(Error::NotFinite(format!("a circuit's metric is {metric}")));
        }
        known.extend(sets.into_iter().cloned().zip(metrics));
        let of = |set: &EdgeSet| known[set];
        let scale = Scale { metric_full: of(&self.all), metric_empty: of(&empty) };
        scale.check(self.dtype())?;
        Ok(Measured {
            scale,
            metrics: kept.iter().map(of).collect(),
            kept: kept.iter().map(EdgeSet::len).collect(),
        })
    }

    /// The metric with only the edges of each set kept. A batch's ablated values serve for all of them.
    fn run(&self, kept: &[&EdgeSet]) -> Result<Vec<f64>> {
        if kept.is_empty() {
            return Ok(Vec::new());
        }
        let (model, graph) = (self.model, self.model.graph());
        let values = values_over(model, self.ablation, self.examples, self.batch_size, self.peers)?;
        let count = self.examples.len().div_ceil(self.batch_size.max(1));
        let (mut done, total) = (0, kept.len() * count);
        let of_batches = batches(model, self.examples, self.batch_size);
        let of_batches = peers::share(self.peers, of_batches, |batch| {
            progress::check_stop()?;
            let batch = batch?;
            let by = values.of(model, &batch)?;
            let metric = |&kept: &&EdgeSet| {
                let pass = match *kept == self.all {
                    true => Pass::forward_only(),
                    false => {
                        let is_ablated = |w, r| self.all.contains((w, r)) && !kept.contains((w, r));
                        let edges = AblatedEdges::new(graph, by.clone(), is_ablated);
                        Pass::forward_only().ablating(edges.into())
                    }
                };
                let readout = model.forward(&pass, &batch.tokens)?;
                let metric = scalar(&self.metric.sum(&readout, &batch)?)?;
                done += 1;
                (self.report)(Progress { stage: "faithfulness", done, total, figure: None });
                Ok(metric)
            };
            kept.iter().map(metric).collect()
        })?;
        let mut sums = vec![0.0; kept.len()];
        for of_batch in of_batches {
            sums.iter_mut().zip(of_batch).for_each(|(sum, value)| *sum += value);
        }
        let weights = self.examples.iter().map(|example| self.metric.weight(example));
        let weight = weights.sum::<f64>();
        Ok(sums.into_iter().map(|sum| sum / weight).collect())
    }

    /// What the model computes in.
    fn dtype(&self) -> DType {
        let parameter = self.model.parameters().iter().next();
        parameter.map_or(DType::F32, |(_, parameter)| parameter.tensor.dtype())
    }
}
