//! All edges as a table for other programs: comma-separated values under a line of names, which pandas and
//! R read as they are.

use std::collections::BTreeSet;

use crate::graph::circuit::Circuit;
use crate::graph::scores::Scores;

/// A line an edge, by writer, then reader: their names, the reader's layer (none for the logits), the
/// score, and whether the edge is in the circuit.
pub fn edges(scores: &Scores, circuit: &Circuit) -> String {
    let graph = &scores.graph;
    let kept: BTreeSet<_> = circuit.edges.iter().map(|edge| (edge.writer, edge.reader)).collect();
    let mut table = "writer,reader,layer,score,in_circuit\n".to_owned();
    for (writer, reader) in graph.edges() {
        let score = scores.of(writer, reader);
        let (writer, reader) = (graph.writers()[writer.0], graph.readers()[reader.0]);
        let layer = reader.node.layer().map_or_else(String::new, |layer| layer.to_string());
        let in_circuit = kept.contains(&(writer, reader));
        table.push_str(&format!("{writer},{reader},{layer},{score},{in_circuit}\n"));
    }
    table
}
