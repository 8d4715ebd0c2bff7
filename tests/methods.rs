//! Attribution methods: every registered one keeps to the conformance suite, and broken ones don't.

use circuit_framework::attribution::{
    Ablation, AttributionMethod, Discovered, Discovery, Positions, Run, Scoring,
};
use circuit_framework::{
    Batch, Example, PatchingMetric, Result, plugin::conformance, plugin::registry,
};
use proptest::prelude::*;

use crate::support::{examples, few, geometries, plugin};

proptest! {
    #![proptest_config(few(12))]

    #[test]
    fn methods_conform(
        geometry in geometries(),
        seed in any::<u64>(),
        examples in examples(3..5),
        positions in prop::sample::select(vec![Positions::Key, Positions::All]),
        metric in prop::sample::select(vec!["logit_diff", "loss"]),
    ) {
        let model = geometry.model_in_float64(seed);
        let metric: Box<dyn PatchingMetric> = plugin(metric, "");
        let options =
            Discovery { positions, ablation: Ablation::Corrupt, ig_steps: 2, ..Discovery::default() };
        for plugin in registry::all::<dyn AttributionMethod>().unwrap() {
            let method = plugin.build(&toml::Table::new()).unwrap();
            let outcome =
                conformance::attribution_method(&*method, &*model, &*metric, &examples, &options);
            prop_assert_eq!(outcome.map_err(|error| format!("{}: {error}", plugin.name)), Ok(()));
        }
    }
}

/// EAP, but for what `spoil` does to it.
struct Spoilt(Spoil);

#[derive(Clone, Copy)]
enum Spoil {
    /// Each batch counts as if it were all examples.
    BatchMeans,
    /// Edges that are none have scores.
    Everywhere,
    /// The metric is twice the metric.
    Metric,
}

impl AttributionMethod for Spoilt {
    fn add(&self, scoring: &mut Scoring, batch: &Batch) -> Result<Option<Run>> {
        let observation = scoring.observe(batch, false)?;
        let pass = scoring.watching(&observation, scoring.pass_with_gradients()?);
        let readout = scoring.model.forward(&pass, &batch.tokens)?;
        let difference = scoring.difference(observation)?;
        let share = scoring.share_of_mean(&readout, batch)?;
        scoring.count(&share)?;
        let fraction = match self.0 {
            Spoil::BatchMeans => 1.0 / batch.examples.len() as f64,
            _ => 1.0,
        };
        scoring.add_gradients(&pass, &share, batch, &difference, fraction)?;
        Ok(None)
    }

    fn finish(&self, scoring: Scoring, _: &[Vec<&Example>]) -> Result<Discovered> {
        let mut found = scoring.finish()?;
        match self.0 {
            Spoil::BatchMeans => {}
            Spoil::Everywhere => found.scores.values.iter_mut().for_each(|score| *score += 1.0),
            Spoil::Metric => found.metric = 2.0 * found.metric + 1.0,
        }
        Ok(found)
    }
}

#[test]
fn broken_methods_do_not_conform() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let geometries = geometries().prop_filter("deep", |geometry| geometry.layers > 1);
    let model = geometries.new_tree(&mut runner).unwrap().current().model_in_float64(1);
    let examples: Vec<Example> = examples(3..4).new_tree(&mut runner).unwrap().current();
    let metric: Box<dyn PatchingMetric> = plugin("logit_diff", "");
    for (spoil, part) in [
        (Spoil::BatchMeans, "in batches of one the scores are others"),
        (Spoil::Everywhere, "is no edge, but has a score"),
        (Spoil::Metric, "over the clean examples it is"),
    ] {
        let options = Discovery { ablation: Ablation::Zero, ..Discovery::default() };
        let outcome =
            conformance::attribution_method(&Spoilt(spoil), &*model, &*metric, &examples, &options);
        let error = outcome.expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
}
