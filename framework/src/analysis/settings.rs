//! Analyses by name: what is asked for, what is found, and how that is written as a table and a heat map.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Analysis, Attention, Logits, NodeEffect, Panel, Paths, Roles};
use crate::evaluation::answers::{check_keys, check_wrong_answers};
use crate::graph::circuit::Circuit;
use crate::graph::{Graph, Input, Node, Port};
use crate::{Error, Result, refuse};

/// Shares of attention below this are next to nothing in a heat map.
const LEAST_SHARE: f64 = 0.01;

/// An analysis.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Name {
    /// Direct effects on the logit difference, and the logit lens.
    Logits,
    /// Where heads look.
    Attention,
    /// Path patching.
    Paths,
    /// A table of what a circuit's nodes do.
    Roles,
}

impl Name {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Name::Logits => "logits",
            Name::Attention => "attention",
            Name::Paths => "paths",
            Name::Roles => "roles",
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Request {
    Logits,
    /// Of these heads, all where there are none, and the patterns of the first examples.
    Attention {
        heads: Vec<Node>,
        patterns: usize,
    },
    /// To these readers.
    Paths {
        to: Vec<Input>,
    },
    /// To this input of the heads with the strongest direct effects, so many.
    PathsToStrongest {
        count: usize,
        port: Port,
    },
    /// Of this circuit.
    Roles(Circuit),
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Findings {
    Logits(Logits),
    Attention(Attention),
    Paths(Paths),
    Roles(Roles),
}

/// A line a node: its name, and a number or a word a column.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The columns' names.
    pub head: Vec<String>,
    pub lines: Vec<Vec<String>>,
    /// How much each line matters, by which the first are chosen.
    pub weights: Vec<f64>,
}

impl Analysis<'_> {
    /// Refuses an analysis that can't be done on the examples. `why` is a task's reason for having no
    /// counterfactuals.
    ///
    /// # Errors
    /// Naming the first example that doesn't fit, and what it lacks.
    pub fn check(&self, name: Name, why: Option<&str>) -> Result<()> {
        for example in self.examples {
            let fits = match name {
                Name::Attention => check_keys(example),
                Name::Logits | Name::Paths | Name::Roles => check_wrong_answers(example),
            };
            fits.map_err(|error| Error::input(format!("{}: {error}", example.origin)))?;
            if matches!(name, Name::Paths | Name::Roles) {
                self.ablation.check(example, why)?;
            }
        }
        Ok(())
    }

    /// Runs an analysis.
    ///
    /// # Errors
    /// As the analysis'.
    pub fn run(&self, request: &Request) -> Result<Findings> {
        Ok(match request {
            Request::Logits => Findings::Logits(self.logits()?),
            Request::Attention { heads, patterns } => {
                Findings::Attention(self.attention(heads, *patterns)?)
            }
            Request::Paths { to } => Findings::Paths(self.paths(to)?),
            Request::PathsToStrongest { count, port } => {
                let graph = self.model.graph();
                let to = strongest(graph, &self.logits()?.nodes, *count, *port)?;
                Findings::Paths(self.paths(&to)?)
            }
            Request::Roles(circuit) => Findings::Roles(self.roles(circuit)?),
        })
    }
}

/// The inputs through `port` of the `count` heads whose effects are of the largest magnitude, strongest first;
/// of keys and values that heads share, the shared ones.
///
/// # Errors
/// If no head is among the effects, or heads have no such port.
pub fn strongest(
    graph: &Graph,
    effects: &[NodeEffect],
    count: usize,
    port: Port,
) -> Result<Vec<Input>> {
    let is_head = |of: &&NodeEffect| matches!(of.node, Node::Head { .. });
    let mut heads: Vec<&NodeEffect> = effects.iter().filter(is_head).collect();
    heads.sort_by(|a, b| b.effect.abs().total_cmp(&a.effect.abs()));
    let mut inputs: Vec<Input> = Vec::new();
    for of in heads.into_iter().take(count) {
        let input = input_of(graph, of.node, port)?;
        if !inputs.contains(&input) {
            inputs.push(input);
        }
    }
    if inputs.is_empty() {
        refuse!("no head's effect is known, so none is the strongest");
    }
    Ok(inputs)
}

/// What a head reads through a port.
fn input_of(graph: &Graph, head: Node, port: Port) -> Result<Input> {
    let own = Input { node: head, port };
    let Node::Head { layer, head: number } = head else { return Ok(own) };
    if graph.readers().contains(&own) {
        return Ok(own);
    }
    let heads = graph
        .writers()
        .iter()
        .filter(|node| matches!(node, Node::Head { .. }) && node.layer() == Some(layer));
    let shared: Vec<&Input> = (graph.readers().iter())
        .filter(|input| {
            let is_shared = matches!(input.node, Node::KeyValueHead { .. });
            is_shared && input.port == port && input.node.layer() == Some(layer)
        })
        .collect();
    let group = heads.count() / shared.len().max(1);
    match shared.get(number / group.max(1)) {
        Some(&&input) => Ok(input),
        None => refuse!("`{own}` is no input of this model's heads; they have q, k and v"),
    }
}

impl Findings {
    /// What a heat map of it is called.
    pub fn title(&self) -> String {
        match self {
            Findings::Logits(_) => "direct effects on the logit difference".to_owned(),
            Findings::Attention(_) => "attention from the key positions".to_owned(),
            Findings::Paths(paths) => {
                let to: Vec<String> = paths.to.iter().map(Input::to_string).collect();
                format!("paths to {}", to.join(", "))
            }
            Findings::Roles(_) => "the circuit's nodes".to_owned(),
        }
    }

    /// The numbers as a table, a line a node.
    pub fn table(&self) -> Table {
        match self {
            Findings::Logits(logits) => {
                let lines =
                    logits.nodes.iter().map(|of| vec![of.node.to_string(), number(of.effect)]);
                let biases = vec!["biases".to_owned(), number(logits.biases)];
                let weights = logits.nodes.iter().map(|of| of.effect.abs());
                Table {
                    head: names(["node", "effect"]),
                    weights: weights.chain([logits.biases.abs()]).collect(),
                    lines: lines.chain([biases]).collect(),
                }
            }
            Findings::Attention(attention) => {
                let spans: Vec<&String> = attention.spans.keys().collect();
                let of_span = |name: &&String| [name.to_string(), format!("{name} largest")];
                let marked = attention.marked();
                let cells = |head: &super::HeadLooks| {
                    let looks = head.looks.values();
                    let looks = looks.flat_map(|look| [number(look.share), number(look.largest)]);
                    std::iter::once(head.node.to_string()).chain(looks).collect()
                };
                let weight = |head: &super::HeadLooks| {
                    let looks = head.looks.iter();
                    let looks = looks.filter(|(name, _)| marked.contains(&name[..]));
                    looks.map(|(_, look)| look.share).fold(0.0, f64::max)
                };
                Table {
                    head: names(["node"])
                        .into_iter()
                        .chain(spans.iter().flat_map(of_span))
                        .collect(),
                    lines: attention.heads.iter().map(cells).collect(),
                    weights: attention.heads.iter().map(weight).collect(),
                }
            }
            Findings::Paths(paths) => {
                let spans: Vec<String> = paths.attention.keys().cloned().collect();
                let cells = |of: &super::PathEffect| {
                    let own = [of.node.to_string(), number(of.effect)];
                    own.into_iter().chain(of.attention.values().copied().map(number)).collect()
                };
                Table {
                    head: names(["node", "effect"]).into_iter().chain(spans).collect(),
                    lines: paths.nodes.iter().map(cells).collect(),
                    weights: paths.nodes.iter().map(|of| of.effect.abs()).collect(),
                }
            }
            Findings::Roles(roles) => roles.table(),
        }
    }

    /// The numbers as panels of a heat map.
    pub fn panels(&self, graph: &Graph) -> Vec<Panel> {
        match self {
            Findings::Logits(logits) => {
                let effects = logits.nodes.iter().map(|of| (of.node, of.effect));
                vec![Panel::new(graph, "direct effect", effects)]
            }
            Findings::Attention(attention) => {
                let marked = attention.marked();
                let names: BTreeSet<&str> = match marked.is_empty() {
                    true => attention.spans.keys().map(|name| &name[..]).collect(),
                    false => marked,
                };
                let panel = |name: &str| {
                    let share =
                        |head: &super::HeadLooks| Some((head.node, head.looks.get(name)?.share));
                    let shares = attention.heads.iter().filter_map(share);
                    Panel::new(graph, name, shares).with_scale_of(LEAST_SHARE)
                };
                names.into_iter().map(panel).collect()
            }
            Findings::Paths(paths) => {
                let effects = paths.nodes.iter().map(|of| (of.node, of.effect));
                let spans = paths.attention.keys().filter(|name| !name.starts_with('('));
                let of_span = |name: &String| {
                    let change = |of: &super::PathEffect| Some((of.node, *of.attention.get(name)?));
                    let changes = paths.nodes.iter().filter_map(change);
                    let title = format!("attention to {name}");
                    Panel::new(graph, &title, changes).with_scale_of(LEAST_SHARE)
                };
                let metric = Panel::new(graph, "metric", effects);
                std::iter::once(metric).chain(spans.map(of_span)).collect()
            }
            Findings::Roles(roles) => {
                let nodes = || roles.nodes.iter();
                vec![
                    Panel::new(graph, "direct effect", nodes().map(|of| (of.node, of.direct))),
                    Panel::new(graph, "patched", nodes().map(|of| (of.node, of.effect))),
                ]
            }
        }
    }
}

impl Roles {
    fn table(&self) -> Table {
        let cells = |of: &super::Role| {
            let layer = of.node.layer().map_or_else(String::new, |layer| layer.to_string());
            let kind = serde_json::to_value(of.node.kind()).unwrap_or_default();
            let (span, share) = match &of.looks_at {
                Some((name, share)) => (name.clone(), number(*share)),
                None => (String::new(), String::new()),
            };
            vec![
                of.node.to_string(),
                layer,
                kind.as_str().unwrap_or_default().to_owned(),
                number(of.score),
                number(of.direct),
                number(of.effect),
                span,
                share,
                of.moves.to_string(),
                number(of.moves_by),
            ]
        };
        Table {
            head: names([
                "node", "layer", "kind", "score", "direct", "patched", "looks at", "share",
                "moves", "by",
            ]),
            lines: self.nodes.iter().map(cells).collect(),
            weights: self.nodes.iter().map(|of| of.effect.abs()).collect(),
        }
    }
}

/// A number with six decimals, and 0 without a sign.
fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    if text == "-0.000000" { "0.000000".to_owned() } else { text }
}

fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).into()
}

impl Table {
    /// Comma-separated values under a line of names; `of` is a first column, called model, where it isn't
    /// empty.
    pub fn csv(&self, of: &str) -> String {
        let lines = std::iter::once(("model", &self.head));
        let lines = lines.chain(self.lines.iter().map(|line| (of, line)));
        let first = |first: &str| if of.is_empty() { String::new() } else { format!("{first},") };
        lines.map(|(name, line)| first(name) + &line.join(",") + "\n").collect()
    }
}
