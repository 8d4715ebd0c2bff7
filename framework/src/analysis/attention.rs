//! Where heads look from the positions that predict the keys, or from a marked span: how much of their attention
//! is on the tokens that the task marks, and how often its maximum is there.
//!
//! Beside the task's spans, which are looked at as far as the position sees them, there are two that every
//! example has: its first token, on which heads rest, and the position itself.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::findings::{Table, names, number};
use super::{Analysis, LEAST_SHARE, Panel, Shown};
use crate::data::example::{Batch, Example};
use crate::evaluation::answers::check_keys;
use crate::evaluation::batches;
use crate::graph::{Graph, Node};
use crate::pass::Pass;
use crate::peers;
use crate::progress::{self, Progress};
use crate::{Error, Result, refuse};

/// The spans that every example has.
const FIRST: &str = "(first)";
const SELF: &str = "(self)";

/// Whether a span is one that the task marks.
pub(super) fn is_marked(name: &str) -> bool {
    ![FIRST, SELF].contains(&name)
}

/// Where heads look.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// How many examples have a span before one of their keys.
    pub spans: BTreeMap<String, usize>,
    pub heads: Vec<HeadLooks>,
    /// The patterns of the first examples, as many as were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<Pattern>,
}

/// Where one head looks, by span.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadLooks {
    pub node: Node,
    pub looks: BTreeMap<String, Look>,
}

/// How much a head looks at a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// The share of the attention that is on it, from 0 to 1.
    pub share: f64,
    /// The share of examples whose largest attention weight is on it.
    pub largest: f64,
}

/// What heads look at in one example, from one position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pattern {
    pub origin: String,
    /// The tokens up to the position, each with its weights.
    pub tokens: Vec<u32>,
    pub spans: BTreeMap<String, Vec<usize>>,
    /// The weights of each head, a number a token.
    pub heads: BTreeMap<Node, Vec<f64>>,
}

impl Analysis<'_> {
    /// The names of the spans that examples mark.
    pub(super) fn marked(&self) -> BTreeSet<&str> {
        self.examples
            .iter()
            .flat_map(|example| example.spans.keys())
            .map(|name| &name[..])
            .collect()
    }

    /// The names of all spans, those that every example has too.
    pub(super) fn span_names(&self) -> Vec<String> {
        let mut names = self.marked();
        names.extend([FIRST, SELF]);
        names.into_iter().map(str::to_owned).collect()
    }

    /// Where `heads` look, all where it is empty, and the patterns of the first `patterns` examples: from the
    /// last token of the span `from`, or from the positions that predict the keys where it is none.
    ///
    /// # Errors
    /// If a node is no head, an example has no key, none has the span, attention isn't finite, or a tensor operation
    /// fails.
    pub fn attention(
        &self,
        heads: &[Node],
        from: Option<&str>,
        patterns: usize,
    ) -> Result<Attention> {
        for example in self.examples {
            check_keys(example)
                .map_err(|error| Error::input(format!("{}: {error}", example.origin)))?;
        }
        let marked = self.marked();
        if let Some(name) = from.filter(|name| !marked.contains(name)) {
            let marked: Vec<&str> = marked.into_iter().collect();
            refuse!(
                "no example has a span `{name}` to look from; marked are: {}",
                marked.join(", ")
            );
        }
        let heads = heads_of(self.model.graph(), heads)?;
        let mut shown_patterns: Vec<(usize, Pattern)> = Vec::new();
        let mut done = 0;
        let names = self.span_names();
        let batches = batches(self.model, self.examples, self.batch_size);
        let of_batches = peers::share(self.peers, batches, |batch| {
            progress::check_stop()?;
            let batch = batch?;
            let places = match from {
                Some(name) => span_places(&batch, name),
                None => key_places(&batch),
            };
            if places.is_empty() {
                return Ok(Vec::new());
            }
            let watch = Watch::new(self.model.graph(), &batch, &places, &heads)?;
            self.model.forward(&watch.pass(Pass::forward_only()), &batch.tokens)?;
            let weights = watch.weights();
            let mut sums = Sums::default();
            sums.add(&batch, &places, &weights);
            for (place, &(example, last)) in places.iter().enumerate() {
                // Examples are told by where they stand: batches take them in another order.
                let example = batch.examples[example];
                let index = self.examples.iter().position(|other| std::ptr::eq(other, example));
                if let Some(index) = index.filter(|&index| index < patterns) {
                    shown_patterns.push((index, pattern(example, last, place, &weights)));
                }
            }
            done += batch.examples.len();
            let total = self.examples.len();
            (self.report)(Progress { stage: "analyze attention", done, total, figure: None });
            Ok(sums.numbers(&names, &heads))
        })?;
        let mut sums = Sums::default();
        of_batches.iter().for_each(|of_batch| sums.join(of_batch, &names, &heads));
        let found = sums.finish(&heads);
        let mut looks = found.heads.iter().flat_map(|head| head.looks.values());
        if looks.any(|look| !look.share.is_finite()) {
            return Err(Error::NotFinite("attention has no finite weights".to_owned()));
        }
        let mut shown_patterns = self.all_patterns(shown_patterns)?;
        shown_patterns.sort_by_key(|(index, _)| *index);
        let patterns = shown_patterns.into_iter().map(|(_, pattern)| pattern).collect();
        Ok(Attention { patterns, ..found })
    }

    /// The patterns that all processes have.
    fn all_patterns(&self, own: Vec<(usize, Pattern)>) -> Result<Vec<(usize, Pattern)>> {
        if self.peers.size() == 1 {
            return Ok(own);
        }
        let misfit = |error| Error::input(format!("patterns can't be exchanged: {error}"));
        let bytes = serde_json::to_vec(&own).map_err(misfit)?;
        let all = peers::give_all(self.peers, &bytes)?;
        let all = all.iter().map(|bytes| serde_json::from_slice::<Vec<_>>(bytes).map_err(misfit));
        Ok(all.collect::<Result<Vec<_>>>()?.concat())
    }
}

/// A place in a batch that is looked from: the index of its example, and its position there.
pub(super) type Place = (usize, usize);

/// The positions that predict a batch's keys.
pub(super) fn key_places(batch: &Batch) -> Vec<Place> {
    batch.keys().map(|(example, _, row)| (example, row as usize % batch.seq)).collect()
}

/// The last tokens of a span, of the examples that have it.
fn span_places(batch: &Batch, name: &str) -> Vec<Place> {
    let last =
        |(index, example): (usize, &&Example)| Some((index, *example.spans.get(name)?.last()?));
    batch.examples.iter().enumerate().filter_map(last).collect()
}

/// The heads of these names in computation order; all where none is named.
pub(super) fn heads_of(graph: &Graph, names: &[Node]) -> Result<Vec<Node>> {
    let all = graph.writers().iter().copied().filter(|node| matches!(node, Node::Head { .. }));
    let heads: Vec<Node> = all.filter(|n| names.is_empty() || names.contains(n)).collect();
    if let Some(other) = names.iter().find(|name| !heads.contains(name)) {
        refuse!("`{other}` is no attention head of this model; heads are head.LAYER.HEAD");
    }
    Ok(heads)
}

/// The attention weights of chosen heads: of each head, of each place a number a token.
pub(super) type Weights = BTreeMap<Node, Vec<Vec<f64>>>;

/// The hook that watches the attention of chosen heads from chosen places of a batch.
pub(super) struct Watch {
    /// The heads of each attention layer, by number.
    layers: Vec<Vec<(usize, Node)>>,
    rows: Tensor,
    shown: Shown<(Node, Vec<Vec<f64>>)>,
}

impl Watch {
    pub(super) fn new(
        graph: &Graph,
        batch: &Batch,
        places: &[Place],
        heads: &[Node],
    ) -> Result<Self> {
        let layer = |site: usize| -> Option<Vec<(usize, Node)>> {
            let writers = &graph.writers()[graph.writers_of(site)];
            let is_attention = writers.iter().any(|node| matches!(node, Node::Head { .. }));
            let chosen = writers.iter().copied().enumerate();
            is_attention.then(|| chosen.filter(|(_, node)| heads.contains(node)).collect())
        };
        let rows: Vec<u32> =
            places.iter().map(|&(example, position)| batch.row(example, position)).collect();
        Ok(Self {
            layers: (0..graph.site_count()).filter_map(layer).collect(),
            rows: Tensor::new(rows, batch.tokens.device())?,
            shown: Shown::new(),
        })
    }

    /// The pass with the hook.
    pub(super) fn pass(&self, pass: Pass) -> Pass {
        let (layers, rows, shown) = (self.layers.clone(), self.rows.clone(), self.shown.handle());
        pass.on_attention(move |layer, probabilities| {
            let chosen = layers.get(layer).map_or(&[][..], |heads| heads);
            for &(head, node) in chosen {
                let own = probabilities.narrow(1, head, 1)?.contiguous()?;
                let (_, _, _, length) = own.dims4()?;
                let own = own.reshape(((), length))?.index_select(&rows, 0)?;
                shown.push((node, own.to_dtype(DType::F64)?.to_vec2()?));
            }
            Ok(())
        })
    }

    /// What was shown.
    pub(super) fn weights(&self) -> Weights {
        self.shown.take().into_iter().collect()
    }
}

/// The tokens of an example that a position sees, by span.
fn visible(example: &Example, last: usize) -> Vec<(&str, Vec<usize>)> {
    let marked = example.spans.iter().map(|(name, span)| {
        let before = span.iter().copied().filter(|&position| position <= last);
        (&name[..], before.collect::<Vec<_>>())
    });
    let always = [(FIRST, vec![0]), (SELF, vec![last])];
    marked.chain(always).filter(|(_, span)| !span.is_empty()).collect()
}

/// The tokens of a span that a place sees.
struct Seen {
    /// The place's index among those of the batch.
    place: usize,
    span: Vec<usize>,
}

/// Sums over examples.
#[derive(Default)]
pub(super) struct Sums {
    examples: BTreeMap<String, usize>,
    looks: BTreeMap<(Node, String), Look>,
}

impl Sums {
    /// Adds a batch's examples, each the mean over its places that see a span.
    pub(super) fn add(&mut self, batch: &Batch, places: &[Place], weights: &Weights) {
        let mut sees: BTreeMap<(usize, &str), Vec<Seen>> = BTreeMap::new();
        for (place, &(example, last)) in places.iter().enumerate() {
            for (name, span) in visible(batch.examples[example], last) {
                sees.entry((example, name)).or_default().push(Seen { place, span });
            }
        }
        for ((_, name), seen) in sees {
            *self.examples.entry(name.to_owned()).or_default() += 1;
            for (node, of_places) in weights {
                let look = self.looks.entry((*node, name.to_owned())).or_default();
                for Seen { place, span } in &seen {
                    let weights = &of_places[*place];
                    let share: f64 = span.iter().map(|&position| weights[position]).sum();
                    look.share += share / seen.len() as f64;
                    let is_there = span.contains(&largest(weights));
                    look.largest += f64::from(is_there) / seen.len() as f64;
                }
            }
        }
    }

    /// All sums as numbers: of each span, how many examples have it and how each head looks at it.
    pub(super) fn numbers(&self, names: &[String], heads: &[Node]) -> Vec<f64> {
        let mut numbers = Vec::new();
        for name in names {
            numbers.push(self.examples.get(name).copied().unwrap_or(0) as f64);
            for head in heads {
                let look = self.looks.get(&(*head, name.clone())).copied().unwrap_or_default();
                numbers.extend([look.share, look.largest]);
            }
        }
        numbers
    }

    /// Adds what [`Sums::numbers`] made of another batch.
    pub(super) fn join(&mut self, numbers: &[f64], names: &[String], heads: &[Node]) {
        for (name, numbers) in names.iter().zip(numbers.chunks(1 + 2 * heads.len())) {
            if numbers[0] == 0.0 {
                continue;
            }
            *self.examples.entry(name.clone()).or_default() += numbers[0] as usize;
            for (head, look) in heads.iter().zip(numbers[1..].chunks(2)) {
                let sum = self.looks.entry((*head, name.clone())).or_default();
                sum.share += look[0];
                sum.largest += look[1];
            }
        }
    }

    /// The means, of `heads` in their order.
    pub(super) fn finish(self, heads: &[Node]) -> Attention {
        let means = |node: &Node| {
            let of_span = |(name, count): (&String, &usize)| {
                let sum = self.looks.get(&(*node, name.clone())).copied().unwrap_or_default();
                let count = *count as f64;
                let look = Look { share: sum.share / count, largest: sum.largest / count };
                (name.clone(), look)
            };
            HeadLooks { node: *node, looks: self.examples.iter().map(of_span).collect() }
        };
        let heads = heads.iter().map(means).collect();
        Attention { heads, spans: self.examples, patterns: Vec::new() }
    }
}

/// Where the largest of weights is, the first of equals.
fn largest(weights: &[f64]) -> usize {
    (1..weights.len())
        .fold(0, |best, index| if weights[index] > weights[best] { index } else { best })
}

fn pattern(example: &Example, last: usize, place: usize, weights: &Weights) -> Pattern {
    let own =
        |(node, of_places): (&Node, &Vec<Vec<f64>>)| (*node, of_places[place][..=last].to_vec());
    Pattern {
        origin: example.origin.clone(),
        tokens: example.tokens[..=last].to_vec(),
        spans: example.spans.clone(),
        heads: weights.iter().map(own).collect(),
    }
}

impl Attention {
    /// The names of the spans that the task marks.
    fn marked(&self) -> BTreeSet<&str> {
        let names = self.spans.keys().map(|name| &name[..]);
        names.filter(|name| is_marked(name)).collect()
    }

    /// A line a head, two columns a span.
    pub(super) fn table(&self) -> Table {
        let marked = self.marked();
        let columns = self.spans.keys().flat_map(|name| [name.clone(), format!("{name} largest")]);
        let cells = |head: &HeadLooks| {
            let looks = head.looks.values();
            let looks = looks.flat_map(|look| [number(look.share), number(look.largest)]);
            std::iter::once(head.node.to_string()).chain(looks).collect()
        };
        let weight = |head: &HeadLooks| {
            let looks = head.looks.iter().filter(|(name, _)| marked.contains(&name[..]));
            looks.map(|(_, look)| look.share).fold(0.0, f64::max)
        };
        Table {
            head: names(["node"]).into_iter().chain(columns).collect(),
            lines: self.heads.iter().map(cells).collect(),
            weights: self.heads.iter().map(weight).collect(),
        }
    }

    /// The share of each span that the task marks, or of all where it marks none.
    pub(super) fn panels(&self, graph: &Graph) -> Vec<Panel> {
        let marked = self.marked();
        let names: BTreeSet<&str> = match marked.is_empty() {
            true => self.spans.keys().map(|name| &name[..]).collect(),
            false => marked,
        };
        let panel = |name: &str| {
            let share = |head: &HeadLooks| Some((head.node, head.looks.get(name)?.share));
            let shares = self.heads.iter().filter_map(share);
            Panel::new(graph, name, shares).with_scale_of(LEAST_SHARE)
        };
        names.into_iter().map(panel).collect()
    }
}
