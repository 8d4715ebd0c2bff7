//! A plugin: an attribution method that scores nodes. Each edge is worth what its writer is: the sum of
//! the scores that edge attribution patching (Syed et al., 2023, arXiv 2310.10348) gives the edges out of
//! it.

use circuit_framework::attribution::{AttributionMethod, Discovered, Run, Scoring};
use circuit_framework::{Batch, Example, Result, Scores, register};

/// How a writer's edges are summed.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct NodeSums {
    /// Sum |score|: then edges that help and edges that harm don't cancel.
    absolute: bool,
}

impl AttributionMethod for NodeSums {
    fn add(&self, scoring: &mut Scoring, batch: &Batch) -> Result<Option<Run>> {
        let observation = scoring.observe(batch, false)?;
        let pass = scoring.watching(&observation, scoring.pass_with_gradients()?);
        let readout = scoring.model.forward(&pass, &batch.tokens)?;
        let difference = scoring.difference(observation)?;
        let share = scoring.share_of_mean(&readout, batch)?;
        scoring.count(&share)?;
        let captured = scoring.add_gradients(&pass, &share, batch, &difference, 1.0)?;
        Ok(Some(Run { pass, readout, share, captured }))
    }

    fn finish(&self, scoring: Scoring, _: &[Vec<&Example>]) -> Result<Discovered> {
        let mut discovered = scoring.finish()?;
        spread(&mut discovered.scores, self.absolute);
        Ok(discovered)
    }
}

/// Gives every edge the sum over its writer's edges.
fn spread(scores: &mut Scores, absolute: bool) {
    let columns = scores.graph.readers().len();
    let mut sums = vec![0f64; scores.graph.writers().len()];
    for (writer, reader) in scores.graph.edges() {
        let score = f64::from(scores.of(writer, reader));
        sums[writer.0] += if absolute { score.abs() } else { score };
    }
    for (writer, reader) in scores.graph.edges() {
        scores.values[writer.0 * columns + reader.0] = sums[writer.0] as f32;
    }
}

register!(
    dyn AttributionMethod,
    NodeSums,
    "node_sums",
    "each edge is worth the sum of its writer's edges"
);

#[cfg(test)]
mod tests {
    use circuit_framework::graph::{Graph, Input, Node, Port};
    use circuit_framework::plugin::registry;

    use super::*;

    #[test]
    fn every_edge_of_a_writer_is_worth_their_sum() {
        let [embed, mlp] = [Node::Embed, Node::Mlp { layer: 0, part: None }];
        let reads = |node| vec![Input { node, port: Port::Input }];
        let graph = Graph::new([
            (vec![], vec![embed]),
            (reads(mlp), vec![mlp]),
            (reads(Node::Logits), vec![]),
        ]);
        // embed → mlp.0, embed → logits; mlp.0 → logits.
        let mut scores = Scores { graph, values: vec![2.0, -3.0, 0.0, 4.0] };
        spread(&mut scores, true);
        assert_eq!(scores.values, [5.0, 5.0, 0.0, 4.0]);
    }

    #[test]
    fn it_is_registered() {
        let plugin = registry::find::<dyn AttributionMethod>("node_sums").unwrap();
        assert!(plugin.build(&Default::default()).is_ok());
    }
}
