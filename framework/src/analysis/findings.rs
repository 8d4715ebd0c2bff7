//! What an analysis found, and how that is written as a table and a heat map. Each analysis knows its own.

use serde::Serialize;

use super::{Attention, Logits, Panel, Paths, Roles};
use crate::graph::{Graph, Input};
use crate::text;

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
            Findings::Logits(logits) => logits.table(),
            Findings::Attention(attention) => attention.table(),
            Findings::Paths(paths) => paths.table(),
            Findings::Roles(roles) => roles.table(),
        }
    }

    /// The numbers as panels of a heat map.
    pub fn panels(&self, graph: &Graph) -> Vec<Panel> {
        match self {
            Findings::Logits(logits) => vec![logits.panel(graph)],
            Findings::Attention(attention) => attention.panels(graph),
            Findings::Paths(paths) => paths.panels(graph),
            Findings::Roles(roles) => roles.panels(graph),
        }
    }
}

impl Table {
    /// Comma-separated values under a line of names; `of` is a first column, called model, where it isn't
    /// empty.
    pub fn csv(&self, of: &str) -> String {
        let lines = std::iter::once(("model", &self.head));
        let lines = lines.chain(self.lines.iter().map(|line| (of, line)));
        let line = |(name, line): (&str, &Vec<String>)| {
            let first = (!of.is_empty()).then_some(name);
            let cells = first.into_iter().chain(line.iter().map(String::as_str));
            cells.map(text::csv).collect::<Vec<_>>().join(",") + "\n"
        };
        lines.map(line).collect()
    }
}

/// A number with six decimals, and 0 without a sign.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    if text == "-0.000000" { "0.000000".to_owned() } else { text }
}

/// The names of columns.
pub(super) fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).into()
}
