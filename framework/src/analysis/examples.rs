//! Single examples, to be looked at one by one: their tokens, what would be predicted after each layer at each
//! key, and the attention patterns of chosen heads.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::lens::{Lens, at_each_key};
use super::{Analysis, Shown, rows};
use crate::Result;
use crate::data::example::{Batch, Example, Key, Spans};
use crate::data::tokenizer::Tokenizer;
use crate::evaluation::answers::KeyRow;
use crate::evaluation::batches;
use crate::graph::{Graph, Node};
use crate::pass::Pass;
use crate::progress::{self, Progress};

/// A pattern's weights are whole numbers up to this, which stands for 1.
const WHOLE: f64 = 255.0;

/// An example as it is looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    pub origin: String,
    /// The tokens as text.
    pub tokens: Vec<String>,
    /// Tokens that the task marks.
    pub spans: Spans,
    pub keys: Vec<ObservedKey>,
    /// The attention weights of each chosen head, 255 for 1: the lower triangle row by row, a row a query.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attention: BTreeMap<Node, Vec<u8>>,
}

/// A key, and what would be predicted there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObservedKey {
    /// The index of the token that is predicted.
    pub position: usize,
    /// The answers as text.
    pub right: Vec<String>,
    pub wrong: Vec<String>,
    /// After the embedding and after each layer.
    pub lens: Vec<Lens>,
}

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Attention patterns are kept as long as all together have at most so many weights.
    pub weights: usize,
    /// No batch is begun after this.
    pub time: Duration,
}

impl Analysis<'_> {
    /// The examples one by one, in their order, with the attention of `heads`; fewer where the time is up.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn examples(
        &self,
        heads: &[Node],
        tokenizer: Option<&Tokenizer>,
        caps: Caps,
    ) -> Result<Vec<Observed>> {
        let start = Instant::now();
        let mut observed: Vec<(usize, Observed)> = Vec::new();
        let mut room = caps.weights;
        // In their order, so that the first are there whatever the time.
        for (index, examples) in self.examples.chunks(self.batch_size.max(1)).enumerate() {
            progress::check_stop()?;
            if start.elapsed() > caps.time {
                log::warn!(
                    "{} of {} examples were looked at; the time that report.seconds gives is up",
                    observed.len(),
                    self.examples.len()
                );
                break;
            }
            let first = index * self.batch_size.max(1);
            for batch in batches(self.model, examples, examples.len()) {
                let batch = batch?;
                let found = self.observe(&batch, heads, tokenizer)?;
                // Batches take examples in another order.
                let place = |example: &Example| {
                    let own = examples.iter().position(|other| std::ptr::eq(other, example));
                    first + own.unwrap_or(0)
                };
                let places = batch.examples.iter().map(|example| place(example));
                observed.extend(places.zip(found));
            }
            let (done, total) = (observed.len(), self.examples.len());
            (self.report)(Progress { stage: "look at examples", done, total, figure: None });
        }
        observed.sort_by_key(|(place, _)| *place);
        for (_, example) in &mut observed {
            let weights: usize = example.attention.values().map(Vec::len).sum();
            match weights <= room {
                true => room -= weights,
                false => example.attention.clear(),
            }
        }
        Ok(observed.into_iter().map(|(_, example)| example).collect())
    }

    /// The examples of a batch, in its order.
    fn observe(
        &self,
        batch: &Batch,
        heads: &[Node],
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Vec<Observed>> {
        let graph = self.model.graph();
        let keys: Vec<KeyRow> = batch.keys().collect();
        let rows = Tensor::new(rows(&keys), batch.tokens.device())?;
        let (read, patterns) = (Shown::new(), Shown::new());
        let (reads, shows) = (read.handle(), patterns.handle());
        let layers = heads_by_layer(graph, heads);
        let pass = Pass::forward_only()
            .on_read(move |site, x| {
                reads.push((site, x.index_select(&rows, 0)?));
                Ok(())
            })
            .on_attention(move |layer, probabilities| {
                for &(head, node) in layers.get(layer).map_or(&[][..], Vec::as_slice) {
                    let own = probabilities.narrow(1, head, 1)?.squeeze(1)?;
                    shows.push((node, own.to_dtype(DType::F32)?.to_vec3::<f32>()?));
                }
                Ok(())
            });
        let readout = self.model.forward(&pass, &batch.tokens)?;
        let lenses = at_each_key(graph, readout.unembedding(), &read.take(), &keys)?;
        let patterns: Vec<(Node, Vec<Vec<Vec<f32>>>)> = patterns.take();
        let text = |ids: &[u32]| ids.iter().map(|&id| token_text(tokenizer, id)).collect();
        let of_key = |(lens, &(_, key, _)): (Vec<Lens>, &KeyRow)| {
            let Key { position, correct, wrong } = key;
            ObservedKey { position: *position, right: text(correct), wrong: text(wrong), lens }
        };
        let mut of_keys: Vec<Vec<ObservedKey>> = vec![Vec::new(); batch.examples.len()];
        for (lens, key) in lenses.into_iter().zip(&keys) {
            of_keys[key.0].push(of_key((lens, key)));
        }
        let examples = batch.examples.iter().zip(of_keys).enumerate();
        let observed = examples.map(|(index, (example, keys))| Observed {
            origin: example.origin.clone(),
            tokens: text(&example.tokens),
            spans: example.spans.clone(),
            keys,
            attention: (patterns.iter())
                .map(|(node, of)| (*node, triangle(&of[index], example.tokens.len())))
                .collect(),
        });
        Ok(observed.collect())
    }
}

/// A token as text; its number where it has none.
fn token_text(tokenizer: Option<&Tokenizer>, id: u32) -> String {
    tokenizer.and_then(|tokenizer| tokenizer.text(id)).unwrap_or_else(|| format!("[{id}]"))
}

/// The chosen heads of each attention layer, by number.
fn heads_by_layer(graph: &Graph, chosen: &[Node]) -> Vec<Vec<(usize, Node)>> {
    let layer = |site: usize| {
        let writers = &graph.writers()[graph.writers_of(site)];
        let is_attention = writers.iter().any(|node| matches!(node, Node::Head { .. }));
        let own = writers.iter().copied().enumerate().filter(|(_, node)| chosen.contains(node));
        is_attention.then(|| own.collect())
    };
    (0..graph.site_count()).filter_map(layer).collect()
}

/// The lower triangle of a pattern's first rows.
fn triangle(pattern: &[Vec<f32>], length: usize) -> Vec<u8> {
    let whole = |weight: &f32| (f64::from(*weight) * WHOLE).round().clamp(0.0, WHOLE) as u8;
    let rows = pattern.iter().take(length).enumerate();
    rows.flat_map(|(query, row)| row.iter().take(query + 1).map(whole)).collect()
}
