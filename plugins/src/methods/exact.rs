//! Exact edge effects: what the metric loses when one edge is ablated, m(M) − m(M∖e), by a forward pass an edge,
//! from the block that reads it upwards. EAP is its first-order estimate. At all positions only, and slow: for
//! small models, and to judge the others by.

use circuit_framework::attribution::{AttributionMethod, Discovered, Needs, Run, Scoring};
use circuit_framework::pass::{AblatedEdges, Prefix};
use circuit_framework::{Batch, Example, Pass, Result, pass, register};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Exact {}

impl AttributionMethod for Exact {
    fn needs(&self) -> Needs {
        Needs { all_positions: true, ..Needs::default() }
    }

    fn add(&self, scoring: &mut Scoring, batch: &Batch) -> Result<Option<Run>> {
        let readout = scoring.model.forward(&Pass::forward_only(), &batch.tokens)?;
        let share = scoring.share_of_mean(&readout, batch)?;
        scoring.weigh(batch)?;
        scoring.count(&share)?;
        Ok(None)
    }

    /// Means are known when all examples are, so the work is done here.
    fn finish(&self, mut scoring: Scoring, batches: &[Vec<&Example>]) -> Result<Discovered> {
        let (model, graph) = (scoring.model, scoring.graph().clone());
        let own = || batches.iter().map(|examples| Batch::new(examples.clone(), &model.device()));
        let ablated = scoring.ablated_values(own())?;
        let edges: Vec<_> = graph.edges().filter(|&edge| scoring.wants(edge)).collect();
        let columns = graph.readers().len();
        let mut of_batches = Vec::new();
        for batch in own() {
            let batch = &batch?;
            let mut effects = vec![0f64; graph.writers().len() * columns];
            let by = ablated.of(model, batch)?;
            scoring.begin_examples(batch)?;
            let plain = Prefix::default();
            let whole = shares(&scoring, batch, Pass::forward_only().keeping(&plain))?;
            for &(writer, reader) in &edges {
                let ends = (graph.writers()[writer.0], graph.readers()[reader.0]);
                let edges = AblatedEdges::only(model.graph(), by.clone(), ends)?;
                let pass = Pass::forward_only().ablating(edges.into()).beginning_from(&plain);
                let without = shares(&scoring, batch, pass)?;
                effects[writer.0 * columns + reader.0] += whole.0 - without.0;
                for (example, (whole, without)) in whole.1.iter().zip(without.1).enumerate() {
                    scoring.add_of_example(example, writer, reader, whole - without);
                }
            }
            of_batches.push(effects);
        }
        scoring.finish_with(of_batches)
    }
}

/// A batch's share of the mean metric and, where they are asked for, its examples' shares.
fn shares(scoring: &Scoring, batch: &Batch, pass: Pass) -> Result<(f64, Vec<f64>)> {
    let readout = scoring.model.forward(&pass, &batch.tokens)?;
    let share = pass::scalar(&scoring.share_of_mean(&readout, batch)?)?;
    let of_examples = match scoring.scores_examples() {
        true => scoring.shares_of_mean(&readout, batch)?,
        false => Vec::new(),
    };
    Ok((share, of_examples))
}

register!(
    dyn AttributionMethod,
    Exact,
    "exact",
    "what the metric loses when each edge is ablated, by a pass an edge; all positions"
);
