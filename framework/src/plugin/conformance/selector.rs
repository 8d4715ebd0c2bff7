//! What a parameter selector must keep to.

use crate::graph::circuit::{Circuit, Edge};
use crate::graph::scores::NodeScores;
use crate::model::Model;
use crate::tuning::selector::{ParamSelector, Reference};
use crate::weights::parameters::{Owner, Parameters, Selection};
use crate::{Result, refuse};

/// Checks that a selector answers the same again, names only rows there are, survives a circuit
/// without edges, and, where it depends on the circuit, selects nothing for that one, never what no
/// node owns, and no less for a larger circuit. As a control it is held to the first two, and to what no node
/// owns.
///
/// # Errors
/// Saying what is broken.
pub fn selector(selector: &dyn ParamSelector, model: &dyn Model, seed: u64) -> Result<()> {
    let parameters = model.parameters();
    let mut smaller: Option<Selection> = None;
    for circuit in growing(model) {
        let edges = circuit.edges.len();
        control(selector, &circuit, model, seed)?;
        if selector.is_control() {
            continue;
        }
        let selection = selector.select(&circuit, model, seed)?;
        if selection != selector.select(&circuit, model, seed)? {
            refuse!("with a circuit of {edges} edges, the same arguments give another selection");
        }
        check_rows(&selection, parameters)?;
        if !selector.needs_circuit() {
            continue;
        }
        if edges == 0 && selection.count(parameters) > 0 {
            refuse!("an empty circuit selects {} parameters", selection.count(parameters));
        }
        check_owned(&selection, parameters, edges)?;
        if let Some(smaller) = &smaller {
            let mut both = smaller.clone();
            both.extend(&selection);
            if both.count(parameters) != selection.count(parameters) {
                refuse!("a circuit of {edges} edges selects less than a part of it does");
            }
        }
        smaller = Some(selection);
    }
    Ok(())
}

/// Checks a selector as a control of a run that tunes what the circuit's nodes own.
fn control(
    selector: &dyn ParamSelector,
    circuit: &Circuit,
    model: &dyn Model,
    seed: u64,
) -> Result<()> {
    let (parameters, owners) = (model.parameters(), circuit.owners());
    let owned = Selection::blocks(parameters, |_, block| owners.contains(&block.owner));
    let graph = model.graph();
    let importance: Vec<f32> = (0..graph.writers().len() * graph.readers().len())
        .map(|index| 1.0 / (1.0 + index as f32))
        .collect();
    let nodes = NodeScores::of(graph, &importance);
    let tuned = Reference { circuit, selection: &owned, first: &owned, nodes: Some(&nodes) };
    let selection = selector.control(&tuned, model, seed)?;
    let edges = circuit.edges.len();
    if selection != selector.control(&tuned, model, seed)? {
        refuse!(
            "as a control, with a circuit of {edges} edges, the same arguments give another selection"
        );
    }
    check_rows(&selection, parameters)?;
    match selector.needs_circuit() {
        true => check_owned(&selection, parameters, edges),
        false => Ok(()),
    }
}

/// Refuses rows that are no node's own.
fn check_owned(selection: &Selection, parameters: &Parameters, edges: usize) -> Result<()> {
    for (id, parameter) in parameters.iter() {
        let shared = parameter.blocks.iter().filter(|block| block.owner == Owner::Shared);
        for block in shared {
            let mut ranges = selection.ranges(id).iter();
            if ranges.any(|r| r.start < block.rows.end && block.rows.start < r.end) {
                refuse!(
                    "with a circuit of {edges} edges, rows of `{}` are selected that no node owns",
                    parameter.name
                );
            }
        }
    }
    Ok(())
}

/// Circuits of the model, each with all edges of the one before: none, then ever more.
fn growing(model: &dyn Model) -> Vec<Circuit> {
    let graph = model.graph();
    let edges: Vec<Edge> = (graph.edges().enumerate())
        .map(|(index, (writer, reader))| {
            let ends = (graph.writers()[writer.0], graph.readers()[reader.0]);
            Edge::new(ends.0, ends.1, 1.0 / (1.0 + index as f32))
        })
        .collect();
    [0, 1, edges.len().div_ceil(3), edges.len()]
        .map(|count| Circuit { edges: edges[..count.min(edges.len())].to_vec() })
        .into()
}

fn check_rows(selection: &Selection, parameters: &Parameters) -> Result<()> {
    for (id, parameter) in parameters.iter() {
        let mut free = 0;
        for range in selection.ranges(id) {
            if range.start < free || range.is_empty() || range.end > parameter.rows() {
                refuse!(
                    "rows {range:?} of `{}`: ranges must be sorted, apart, and within 0..{}",
                    parameter.name,
                    parameter.rows()
                );
            }
            free = range.end + 1;
        }
    }
    Ok(())
}
