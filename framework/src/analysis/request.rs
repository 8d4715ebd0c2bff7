//! What is asked of an analysis: by name, and with what heads, readers or circuit.

use serde::{Deserialize, Serialize};

use super::{Analysis, Findings, NodeEffect};
use crate::evaluation::answers::{check_keys, check_wrong_answers};
use crate::graph::circuit::Circuit;
use crate::graph::edge_set::served;
use crate::graph::{Graph, Input, Node, Port, Writer};
use crate::{Error, Result, refuse};

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
    /// The name by which the command line and experiments ask for it.
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
    /// Where these heads look, all of them where none are named, from a span or where none is named from the
    /// key positions, and the patterns of so many examples, the first ones.
    Attention {
        heads: Vec<Node>,
        from: Option<String>,
        patterns: usize,
    },
    /// Path patching to these readers, from these writers or from all where none are named.
    Paths {
        from: Vec<Node>,
        to: Vec<Input>,
    },
    /// Path patching to this input of so many heads, those with the strongest direct effects.
    PathsToStrongest {
        from: Vec<Node>,
        count: usize,
        port: Port,
    },
    /// The roles of this circuit's nodes.
    Roles(Circuit),
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
    /// As [`Analysis::logits`], [`Analysis::attention`], [`Analysis::paths`] and [`Analysis::roles`].
    pub fn run(&self, request: &Request) -> Result<Findings> {
        Ok(match request {
            Request::Logits => Findings::Logits(self.logits()?),
            Request::Attention { heads, from, patterns } => {
                Findings::Attention(self.attention(heads, from.as_deref(), *patterns)?)
            }
            Request::Paths { from, to } => Findings::Paths(self.paths(from, to)?),
            Request::PathsToStrongest { from, count, port } => {
                let graph = self.model.graph();
                let to = strongest(graph, &self.logits()?.nodes, *count, *port)?;
                Findings::Paths(self.paths(from, &to)?)
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

/// What a head reads through a port: its own input, or the one that it shares.
fn input_of(graph: &Graph, head: Node, port: Port) -> Result<Input> {
    let writer = graph.writer_of(head);
    let reads = |(input, serves): &(&Input, Vec<Writer>)| {
        input.port == port && serves.iter().any(|&served| Some(served) == writer)
    };
    match graph.readers().iter().zip(served(graph)).find(reads) {
        Some((&input, _)) => Ok(input),
        None => {
            let own = Input { node: head, port };
            refuse!("`{own}` is no input of this model's heads; they have q, k and v")
        }
    }
}
