//! All edges as a table for other programs: comma-separated values under a line of names, which pandas and
//! R read as they are.

use std::collections::BTreeSet;

use crate::attribution::Certainty;
use crate::graph::circuit::Circuit;
use crate::graph::scores::Scores;

/// A line an edge, by writer, then reader: their names, the reader's layer (none for the logits), the
/// score, its standard error and the share of resamples in whose circuit the edge is (both empty without a
/// bootstrap), and whether it is in the circuit.
pub fn edges(scores: &Scores, circuit: &Circuit, certainty: Option<&Certainty>) -> String {
    let graph = &scores.graph;
    let columns = graph.readers().len();
    let kept: BTreeSet<_> = circuit.edges.iter().map(|edge| (edge.writer, edge.reader)).collect();
    let mut table =
        "writer,reader,layer,score,standard_error,resample_share,in_circuit\n".to_owned();
    for (writer, reader) in graph.edges() {
        let score = scores.of(writer, reader);
        let place = writer.0 * columns + reader.0;
        let (error, share) = match certainty {
            Some(Certainty { standard_errors, resample_shares, .. }) => {
                (standard_errors[place].to_string(), resample_shares[place].to_string())
            }
            None => Default::default(),
        };
        let (writer, reader) = (graph.writers()[writer.0], graph.readers()[reader.0]);
        let layer = reader.node.layer().map_or_else(String::new, |layer| layer.to_string());
        let in_circuit = kept.contains(&(writer, reader));
        table
            .push_str(&format!("{writer},{reader},{layer},{score},{error},{share},{in_circuit}\n"));
    }
    table
}
