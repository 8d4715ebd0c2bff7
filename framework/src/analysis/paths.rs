//! Path patching (Wang et al., 2022, arXiv 2211.00593; Goldowsky-Dill et al., 2023, arXiv 2304.05969): what
//! chosen readers read from one writer is exchanged for what it writes on the counterfactual, or its mean;
//! what that does to the metric, and to where the readers' heads look.
//!
//! A path is an edge: the residual stream alone lies between writer and reader. Everything behind the readers
//! is computed anew. All paths out of a node together are the node itself, patched.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::attention::{Sums, Watch, is_marked, key_places};
use super::findings::{Table, names, number};
use super::{Analysis, LEAST_SHARE, Panel};
use crate::data::example::Batch;
use crate::evaluation::ablation::values_over;
use crate::evaluation::batches;
use crate::graph::edge_set::served;
use crate::graph::{Graph, Input, Node, Reader, Writer};
use crate::pass::{Ablated, AblatedEdges, Pass, Prefix, scalar};
use crate::peers;
use crate::progress::{self, Progress};
use crate::{Error, Result, refuse};

/// What patching the paths from each writer to chosen readers does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paths {
    /// The readers.
    pub to: Vec<Input>,
    /// The metric of the clean run.
    pub metric: f64,
    /// The share of the readers' heads' attention on each span in the clean run.
    pub attention: BTreeMap<String, f64>,
    /// By writer, in computation order; those without an edge to any of the readers are left out.
    pub nodes: Vec<PathEffect>,
}

/// What patching the paths from one writer does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathEffect {
    pub node: Node,
    /// The metric of the patched run less that of the clean one.
    pub effect: f64,
    /// The share of attention on each span in the patched run, less that in the clean one.
    pub attention: BTreeMap<String, f64>,
}

/// Sums of one kind of run over examples.
#[derive(Default)]
struct Run {
    metric: f64,
    looks: Sums,
}

impl Analysis<'_> {
    /// Patches the paths to the readers from each of some writers, or from every one where none are named.
    ///
    /// # Errors
    /// If there is no reader, a writer or reader isn't the model's, no path leads from any of the one to any of the
    /// other, an example lacks what the ablation needs, the metric isn't a finite number, or a tensor operation
    /// fails.
    pub fn paths(&self, from: &[Node], to: &[Input]) -> Result<Paths> {
        let graph = self.model.graph();
        let of = |input: &Input| match graph.reader_of(*input) {
            Some(reader) => Ok(reader),
            None => Err(Error::input(format!("the model has no reader `{input}`"))),
        };
        let readers: BTreeSet<Reader> = to.iter().map(of).collect::<Result<_>>()?;
        if readers.is_empty() {
            refuse!("no reader to patch paths to; name heads' inputs, as head.2.1.q, or logits");
        }
        if let Some(node) = from.iter().find(|node| graph.writer_of(**node).is_none()) {
            refuse!("the model has no writer `{node}`");
        }
        let is_asked =
            |writer: &Writer| from.is_empty() || from.contains(&graph.writers()[writer.0]);
        let writers: Vec<Writer> = (0..graph.writers().len())
            .map(Writer)
            .filter(is_asked)
            .filter(|&writer| readers.iter().any(|&reader| graph.has_edge(writer, reader)))
            .collect();
        if writers.is_empty() {
            refuse!(
                "no path leads from the named writers to the readers; writers stand before readers"
            );
        }
        self.patched(&writers, &readers)
    }

    /// Patches each of `writers`' edges to `readers`.
    pub(super) fn patched(&self, writers: &[Writer], readers: &BTreeSet<Reader>) -> Result<Paths> {
        for example in self.examples {
            self.ablation.check(example, None)?;
        }
        let graph = self.model.graph();
        let heads = heads_behind(graph, readers);
        let values =
            values_over(self.model, self.ablation, self.examples, self.batch_size, self.peers)?;
        let names = self.span_names();
        let all_runs = || std::iter::once(None).chain(writers.iter().copied().map(Some));
        let total = all_runs().count() * self.examples.len().div_ceil(self.batch_size.max(1));
        let mut done = 0;
        let batches = batches(self.model, self.examples, self.batch_size);
        let of_batches = peers::share(self.peers, batches, |batch| {
            let batch = batch?;
            let by = values.of(self.model, &batch)?;
            let mut numbers = Vec::new();
            let clean = Prefix::default();
            for writer in all_runs() {
                progress::check_stop()?;
                let pass = match writer {
                    None => Pass::forward_only().keeping(&clean),
                    Some(writer) => {
                        patching(graph, by.clone(), writer, readers).beginning_from(&clean)
                    }
                };
                let run = self.run_of(pass, &batch, &heads)?;
                numbers.push(run.metric);
                numbers.extend(run.looks.numbers(&names, &heads));
                done += 1;
                (self.report)(Progress { stage: "analyze paths", done, total, figure: None });
            }
            Ok(numbers)
        })?;
        let mut runs: Vec<Run> = all_runs().map(|_| Run::default()).collect();
        for of_batch in of_batches {
            let of_runs = of_batch.chunks(1 + names.len() * (1 + 2 * heads.len()));
            for (run, numbers) in runs.iter_mut().zip(of_runs) {
                run.metric += numbers[0];
                run.looks.join(&numbers[1..], &names, &heads);
            }
        }
        self.finish(runs, writers, readers, &heads)
    }

    /// What comes of a pass over a batch.
    fn run_of(&self, pass: Pass, batch: &Batch, heads: &[Node]) -> Result<Run> {
        let places = key_places(batch);
        let watch = Watch::new(self.model.graph(), batch, &places, heads)?;
        let pass = if heads.is_empty() || places.is_empty() { pass } else { watch.pass(pass) };
        let readout = self.model.forward(&pass, &batch.tokens)?;
        let metric = scalar(&self.metric.sum(&readout, batch)?)?;
        let mut looks = Sums::default();
        looks.add(batch, &places, &watch.weights());
        Ok(Run { metric, looks })
    }

    fn finish(
        &self,
        runs: Vec<Run>,
        writers: &[Writer],
        readers: &BTreeSet<Reader>,
        heads: &[Node],
    ) -> Result<Paths> {
        let graph = self.model.graph();
        let weight: f64 = self.examples.iter().map(|example| self.metric.weight(example)).sum();
        let means = |run: Run| (run.metric / weight, shares(run.looks, heads));
        let mut runs = runs.into_iter().map(means);
        let (metric, attention) = runs.next().unwrap_or_default();
        let mut nodes = Vec::with_capacity(writers.len());
        for ((patched, shares), &writer) in runs.zip(writers) {
            if !patched.is_finite() {
                return Err(Error::NotFinite(format!("a patched run's metric is {patched}")));
            }
            let change = |(name, share): (String, f64)| {
                let change = share - attention.get(&name).copied().unwrap_or(0.0);
                (name, change)
            };
            nodes.push(PathEffect {
                node: graph.writers()[writer.0],
                effect: patched - metric,
                attention: shares.into_iter().map(change).collect(),
            });
        }
        let to = readers.iter().map(|reader| graph.readers()[reader.0]).collect();
        Ok(Paths { to, metric, attention, nodes })
    }
}

/// A pass in which `readers` read something else from one writer.
fn patching(graph: &Graph, by: Ablated, writer: Writer, readers: &BTreeSet<Reader>) -> Pass {
    let edges = AblatedEdges::new(graph, by, |w, r| w == writer && readers.contains(&r));
    Pass::forward_only().ablating(edges.into())
}

/// The heads that attend by what some of `readers` read: their own, or with shared keys and values those of
/// their group.
fn heads_behind(graph: &Graph, readers: &BTreeSet<Reader>) -> Vec<Node> {
    let served = served(graph);
    let writers = readers.iter().flat_map(|reader| served[reader.0].iter());
    let nodes = writers.map(|writer| graph.writers()[writer.0]);
    let heads: BTreeSet<Node> = nodes.filter(|node| matches!(node, Node::Head { .. })).collect();
    heads.into_iter().collect()
}

/// The mean share of the heads' attention on each span.
fn shares(looks: Sums, heads: &[Node]) -> BTreeMap<String, f64> {
    let attention = looks.finish(heads);
    let mean = |name: &String| {
        let of_heads = attention.heads.iter().map(|head| head.looks[name].share);
        (name.clone(), of_heads.sum::<f64>() / heads.len() as f64)
    };
    match heads.is_empty() {
        true => BTreeMap::new(),
        false => attention.spans.keys().map(mean).collect(),
    }
}

impl Paths {
    /// A line a writer, a column a span.
    pub(super) fn table(&self) -> Table {
        let cells = |of: &PathEffect| {
            let own = [of.node.to_string(), number(of.effect)];
            own.into_iter().chain(of.attention.values().copied().map(number)).collect()
        };
        let spans = self.attention.keys().cloned();
        Table {
            head: names(["node", "effect"]).into_iter().chain(spans).collect(),
            lines: self.nodes.iter().map(cells).collect(),
            weights: self.nodes.iter().map(|of| of.effect.abs()).collect(),
        }
    }

    /// The change of the metric, and of the attention to each span that the task marks.
    pub(super) fn panels(&self, graph: &Graph) -> Vec<Panel> {
        let effects = self.nodes.iter().map(|of| (of.node, of.effect));
        let of_span = |name: &String| {
            let change = |of: &PathEffect| Some((of.node, *of.attention.get(name)?));
            let changes = self.nodes.iter().filter_map(change);
            let title = format!("attention to {name}");
            Panel::new(graph, &title, changes).with_scale_of(LEAST_SHARE)
        };
        let metric = Panel::new(graph, "metric", effects);
        let spans = self.attention.keys().filter(|name| is_marked(name));
        std::iter::once(metric).chain(spans.map(of_span)).collect()
    }
}
