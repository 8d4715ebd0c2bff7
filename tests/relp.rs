//! Relevance patching beside its reference cases: what relevance propagation promises of any model, and
//! that tuning is none the wiser.

use circuit_framework::attribution::{Ablation, Discovery, MethodChoice, Positions, discover};
use circuit_framework::graph::{Input, Node, Port};
use circuit_framework::ops::composed::everywhere;
use circuit_framework::peers::Alone;
use circuit_framework::tuning::{Objective, Tuner, Tuning};
use circuit_framework::{Example, Model, ParamSelector, PatchingMetric, Pruning, Scores, progress};
use proptest::prelude::*;

use crate::support::{Family, Geometry, examples, few, geometries, plugin, weights};

fn relp(attention: &str) -> MethodChoice {
    let options = toml::Table::from_iter([("attention".to_owned(), attention.into())]);
    MethodChoice { name: "relp".to_owned(), options }
}

/// Where every bias is missing, a zero-ablated edge's score is the relevance that runs along it.
fn relevance(model: &dyn Model, examples: &[Example], attention: &str) -> (f64, Scores) {
    let discovery = Discovery {
        method: relp(attention),
        ablation: Ablation::Zero,
        positions: Positions::All,
        ..Discovery::default()
    };
    let metric: Box<dyn PatchingMetric> = plugin("logit_diff", "");
    let all: Vec<&Example> = examples.iter().collect();
    let found = discover(model, &all, &*metric, &discovery, &Alone, &progress::silent).unwrap();
    (found.metric, found.scores)
}

/// The relevance that the readers for which `of` holds receive together.
fn into(scores: &Scores, of: impl Fn(Input) -> bool) -> f64 {
    let graph = &scores.graph;
    let edges = graph.edges().filter(|(_, reader)| of(graph.readers()[reader.0]));
    edges.map(|(writer, reader)| f64::from(scores.of(writer, reader))).sum()
}

/// The relevance that is passed on by the writers for which `of` holds.
fn out_of(scores: &Scores, of: impl Fn(Node) -> bool) -> f64 {
    let graph = &scores.graph;
    let edges = graph.edges().filter(|(writer, _)| of(graph.writers()[writer.0]));
    edges.map(|(writer, reader)| f64::from(scores.of(writer, reader))).sum()
}

/// Families without biases, in norms before sublayers and behind them.
fn without_biases() -> impl Strategy<Value = Geometry> {
    use Family::{Gemma3, Llama, Mistral, Olmo2, Qwen3};
    let family = prop::sample::select(vec![Llama, Mistral, Qwen3, Gemma3, Olmo2]);
    (geometries(), family).prop_map(|(geometry, family)| Geometry { family, ..geometry })
}

/// Up to what float32 holds of numbers of this size.
fn close(a: f64, b: f64, scores: &Scores) -> bool {
    let size: f64 = scores.values.iter().map(|score| f64::from(score.abs())).sum();
    (a - b).abs() <= 1e-6 * size
}

proptest! {
    #![proptest_config(few(32))]

    /// Without biases the metric is what the logits receive and what the embedding gives, and every
    /// node passes on what it receives, an MLP half of it through its gate and half through its up
    /// projection, a group of heads through its values. Fused and composed.
    #[test]
    fn relevance_is_conserved(
        geometry in without_biases(), seed in any::<u64>(), examples in examples(1..4), as_on_a_gpu in any::<bool>(),
    ) {
        let model = geometry.model_in_float64(seed);
        let find = || relevance(&*model, &examples, "constant");
        let (metric, scores) = if as_on_a_gpu { everywhere(find) } else { find() };
        let group = geometry.heads / geometry.kv_heads;
        prop_assert!(close(metric, into(&scores, |input| input.node == Node::Logits), &scores));
        prop_assert!(close(metric, out_of(&scores, |node| node == Node::Embed), &scores));
        prop_assert_eq!(into(&scores, |input| matches!(input.port, Port::Query | Port::Key)), 0.0);
        for &input in scores.graph.readers() {
            let (share, passed_on) = match (input.port, input.node) {
                (Port::Gate | Port::Up, mlp) => (0.5, out_of(&scores, |node| node == mlp)),
                (Port::Value, Node::KeyValueHead { layer, head: of }) => (1.0, out_of(&scores, |node| {
                    matches!(node, Node::Head { layer: l, head } if l == layer && head / group == of)
                })),
                (Port::Value, head) => (1.0, out_of(&scores, |node| node == head)),
                _ => continue,
            };
            let received = into(&scores, |other| other == input);
            prop_assert!(close(received, share * passed_on, &scores), "{input}: {received}, {passed_on}");
        }
    }

    /// With attention's gradient what a head passes on still comes through its values; what comes through
    /// queries and keys is the same on both ways, Σ score · ∂m/∂score, and not nothing.
    #[test]
    fn queries_and_keys_receive_the_same(
        geometry in without_biases(), seed in any::<u64>(), examples in examples(1..4),
    ) {
        let model = geometry.model_in_float64(seed);
        let (metric, scores) = relevance(&*model, &examples, "gradient");
        prop_assert!(close(metric, into(&scores, |input| input.node == Node::Logits), &scores));
        // Of one token, or of several that are the same, every attention makes the same.
        let attends = examples.iter().any(|Example { tokens, keys, .. }| {
            keys.iter().any(|key| tokens[..key.position].iter().any(|token| *token != tokens[0]))
        });
        let through = |port, layer| into(&scores, |input: Input| {
            input.port == port && input.node.layer() == Some(layer)
        });
        for layer in 0..geometry.layers {
            let heads = out_of(&scores, |node| {
                matches!(node, Node::Head { layer: l, .. } if l == layer)
            });
            prop_assert!(close(through(Port::Value, layer), heads, &scores));
            let queries = through(Port::Query, layer);
            prop_assert!(close(queries, through(Port::Key, layer), &scores));
            prop_assert!(queries != 0.0 || !attends);
        }
    }

    /// Where all parameters are tuned the circuit doesn't matter, and whether it was found by gradient or
    /// by relevance: the loss's gradient is formed anew from the same forward pass, to the same bits.
    #[test]
    fn tuning_goes_on_with_the_gradient(
        geometry in geometries(),
        examples in examples(2..5),
        metric in prop::sample::select(vec!["loss", "logit_diff"]),
        positions in prop::sample::select(vec![Positions::Key, Positions::All]),
        objective in prop::sample::select(vec![Objective::Standard, Objective::Weighted]),
    ) {
        let metric: Box<dyn PatchingMetric> = plugin(metric, "");
        let selector: Box<dyn ParamSelector> = plugin("all", "");
        let tuned = |method: MethodChoice| {
            let model = geometry.model(3);
            let discovery = Discovery { method, positions, ..Discovery::default() };
            let tuning = Tuning { steps: Some(2), batch_size: 4, objective, ..Tuning::default() };
            let pruning = Pruning { top_n: Some(1), ..Pruning::default() };
            let tuner = Tuner {
                model: &*model,
                metric: &*metric,
                selector: &*selector,
                discovery: &discovery,
                pruning: &pruning,
                tuning: &tuning,
                matched: None,
                seed: 0,
                peers: &Alone,
            };
            tuner.run(&examples, &mut |_| Ok(())).unwrap();
            weights(&*model)
        };
        prop_assert!(tuned(relp("constant")) == tuned(MethodChoice::named("eap")));
    }
}
