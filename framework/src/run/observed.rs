//! What a run looks at for its page, before tuning and after it: some of the task's test examples one by one,
//! what every node adds to the logits, where heads look, how far rows moved. It is written to
//! `observed-before.json` and `observed-after.json`; making the page of it isn't the framework's.

use std::collections::BTreeMap;
use std::time::Duration;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Runner;
use super::folder::RunFolder;
use super::movement::{Movement, movements};
use crate::analysis::{Analysis, Caps, HeadLooks, Name, NodeEffect, Observed, strongest};
use crate::evaluation::task::Split;
use crate::graph::{Node, Port};
use crate::peers::{Alone, Peers};
use crate::results::circuit_file::CircuitFile;
use crate::{Error, Result, files};

/// Bytes of a weight in a file, with what stands between two.
const BYTES_OF_WEIGHT: f64 = 3.0;

/// How much a run looks at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Observing {
    /// How many of the task's test examples, the first ones; 0 for nothing to be looked at.
    pub examples: usize,
    /// Attention patterns are kept of so many heads, those with the strongest edges in the circuit before
    /// tuning.
    pub heads: usize,
    /// Patterns are kept of as many examples as have room in so many megabytes, before and after tuning each.
    pub megabytes: f64,
    /// No further example is looked at after so many seconds, before and after tuning each.
    pub seconds: f64,
}

impl Default for Observing {
    fn default() -> Self {
        Self { examples: 64, heads: 8, megabytes: 2.0, seconds: 30.0 }
    }
}

/// A file `observed-WHEN.json`.
#[derive(Debug, Serialize)]
struct File {
    /// The heads whose patterns are kept.
    heads: Vec<Node>,
    examples: Vec<Observed>,
    /// Direct effects on the logit difference; empty where there is none.
    nodes: Vec<NodeEffect>,
    /// Where every head looks.
    looks: Vec<HeadLooks>,
    /// How many examples have a span before one of their keys.
    spans: BTreeMap<String, usize>,
    /// How far rows moved, where the run holds the weights before tuning.
    movements: Vec<Movement>,
}

/// The heads of such a file.
#[derive(Deserialize)]
struct Shown {
    heads: Vec<Node>,
}

impl Runner<'_> {
    /// Looks at the first of the task's test examples and writes down what is seen. `untuned` are the
    /// parameters before tuning.
    ///
    /// # Errors
    /// If a tensor operation fails or the file can't be written.
    pub(super) fn observe(
        &self,
        folder: &RunFolder,
        when: &str,
        untuned: Option<&[Tensor]>,
    ) -> Result<()> {
        if !files::writes() {
            return Ok(());
        }
        let settings = &self.experiment.report;
        let examples = self.split(Split::Test)?.examples();
        let examples = &examples[..examples.len().min(settings.examples)];
        // Tasks without key positions have nothing to be looked at.
        if examples.is_empty() || examples.iter().any(|example| example.keys.is_empty()) {
            return Ok(());
        }
        let ablation = self.experiment.discovery.ablation;
        let batch_size = self.experiment.evaluation_batch_size;
        let (model, metric, report) = (self.model, &*self.plugins.metric, self.report);
        // What there is time for is the writing process's own matter.
        let peers: &dyn Peers = &Alone;
        let analysis = Analysis { model, metric, examples, ablation, batch_size, report, peers };
        let seen = self.seen(&analysis, folder, when, untuned);
        let file = match seen {
            // The run doesn't need what its page shows.
            Err(error @ Error::NotFinite(_)) => {
                ::log::warn!("nothing can be looked at {when} tuning: {error}");
                return Ok(());
            }
            seen => seen?,
        };
        let path = folder.path(&format!("observed-{when}.json"));
        let json = serde_json::to_vec(&file)
            .map_err(|error| Error::input(format!("{}: {error}", path.display())))?;
        files::write_atomically(&path, &json)
    }

    fn seen(
        &self,
        analysis: &Analysis,
        folder: &RunFolder,
        when: &str,
        untuned: Option<&[Tensor]>,
    ) -> Result<File> {
        let settings = &self.experiment.report;
        let before = folder.path("observed-before.json");
        let heads = match when == "after" && before.exists() {
            true => files::read_json::<Shown>(&before)?.heads,
            false => self.heads_to_show(analysis, folder)?,
        };
        let caps = Caps {
            weights: (settings.megabytes * 1e6 / BYTES_OF_WEIGHT) as usize,
            time: Duration::try_from_secs_f64(settings.seconds).unwrap_or(Duration::MAX),
        };
        let movements = match untuned.filter(|_| when == "after") {
            Some(untuned) => movements(self.model.parameters(), untuned)?,
            None => Vec::new(),
        };
        let examples = analysis.examples(&heads, self.tokenizer, caps)?;
        // What there was no time for is left out of everything else too.
        let looked = first(analysis, examples.len());
        let attention = looked.attention(&[], None, 0)?;
        let nodes = match looked.check(Name::Logits, None) {
            Ok(()) if !examples.is_empty() => looked.logits()?.nodes,
            _ => Vec::new(),
        };
        Ok(File {
            examples,
            heads,
            nodes,
            looks: attention.heads,
            spans: attention.spans,
            movements,
        })
    }

    /// The heads with the strongest edges in the circuit before tuning; without one, those with the strongest
    /// direct effects in a batch.
    fn heads_to_show(&self, analysis: &Analysis, folder: &RunFolder) -> Result<Vec<Node>> {
        let count = self.experiment.report.heads;
        let file = folder.path("circuit-before.json");
        if !file.exists() {
            let few = first(analysis, analysis.batch_size);
            if few.check(Name::Logits, None).is_err() {
                return Ok(Vec::new());
            }
            let inputs = strongest(self.model.graph(), &few.logits()?.nodes, count, Port::Query);
            // Where nothing is known of heads there is none to show.
            return Ok(inputs.unwrap_or_default().into_iter().map(|input| input.node).collect());
        }
        let mut sums: BTreeMap<Node, f64> = BTreeMap::new();
        for edge in CircuitFile::read(&file)?.edges {
            for node in [edge.writer, edge.reader.node] {
                *sums.entry(node).or_default() += f64::from(edge.score.abs());
            }
        }
        let mut heads: Vec<(Node, f64)> =
            sums.into_iter().filter(|(node, _)| matches!(node, Node::Head { .. })).collect();
        heads.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(heads.into_iter().take(count).map(|(node, _)| node).collect())
    }
}

/// The same of the first examples alone.
fn first<'a>(analysis: &Analysis<'a>, count: usize) -> Analysis<'a> {
    let examples = &analysis.examples[..analysis.examples.len().min(count)];
    Analysis { examples, ..*analysis }
}
