//! What must hold for every model, circuit and setting, tried on random ones.

use std::collections::BTreeSet;

use circuit_framework::attribution::{Ablation, Discovery, MethodChoice, Positions, discover};
use circuit_framework::graph::pruning::{Pruning, Rule};
use circuit_framework::graph::{Input, Kind, Node, Port, Reader, Writer};
use circuit_framework::peers::Alone;
use circuit_framework::tuning::{Algorithm, Objective, Tuner, Tuning};
use circuit_framework::{
    Batch, Device, Example, Graph, Model, Owner, ParamSelector, Pass, PatchingMetric, Result,
    Scores, progress,
};
use proptest::prelude::*;

use crate::support::{Geometry, examples, few, geometries, plugin, weights};

/// Scores that often tie.
pub fn scores(graph: Graph, seeds: &[i8]) -> Scores {
    let readers = graph.readers().len();
    let mut values = vec![0f32; graph.writers().len() * readers];
    for (index, (writer, reader)) in graph.edges().enumerate() {
        values[writer.0 * readers + reader.0] = f32::from(seeds[index % seeds.len()]) / 8.0;
    }
    Scores { graph, values }
}

fn discovery(
    method: &str,
    ablation: Ablation,
    positions: Positions,
    batch_size: usize,
) -> Discovery {
    let method = MethodChoice::named(method);
    Discovery { method, ablation, positions, batch_size, ig_steps: 3, ..Discovery::default() }
}

fn ways() -> impl Strategy<Value = (&'static str, Ablation, Positions, &'static str)> {
    (
        prop::sample::select(vec![
            "eap",
            "eap-ig",
            "clean-corrupted",
            "eap-ig-activations",
            "relp",
        ]),
        prop::sample::select(vec![
            Ablation::Mean,
            Ablation::MeanPositional,
            Ablation::Zero,
            Ablation::Corrupt,
        ]),
        prop::sample::select(vec![Positions::Key, Positions::All]),
        prop::sample::select(vec!["logit_diff", "log_prob_diff", "loss"]),
    )
}

/// The largest difference as a share of the largest score. Where all scores are nothing but rounding, as
/// when a mean is over one example, they are no different.
pub fn distance(a: &Scores, b: &Scores) -> f32 {
    let largest = a.values.iter().fold(1e-9f32, |largest, score| largest.max(score.abs()));
    let difference = a.values.iter().zip(&b.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    difference / largest
}

pub fn find(model: &dyn Model, examples: &[Example], metric: &str, options: &Discovery) -> Scores {
    let metric: Box<dyn PatchingMetric> = plugin(metric, "");
    let all: Vec<&Example> = examples.iter().collect();
    discover(model, &all, &*metric, options, &Alone, &progress::silent).unwrap().scores
}

proptest! {
    #![proptest_config(few(64))]

    /// Acyclic, and every edge goes forward in computation order.
    #[test]
    fn edges_go_forward(geometry in geometries()) {
        let model = geometry.model(0);
        let graph = model.graph();
        let time = |node: Node| match node {
            Node::Embed => 0,
            Node::Head { layer, .. } | Node::KeyValueHead { layer, .. } => 1 + 2 * layer,
            Node::Mlp { layer, .. } => 2 + 2 * layer,
            Node::Logits => usize::MAX,
        };
        let mut edges = 0;
        for (writer, reader) in graph.edges() {
            prop_assert!(time(graph.writers()[writer.0]) < time(graph.readers()[reader.0].node));
            prop_assert!(graph.has_edge(writer, reader));
            edges += 1;
        }
        let all = (0..graph.writers().len()).flat_map(|w| (0..graph.readers().len()).map(move |r| (Writer(w), Reader(r))));
        prop_assert_eq!(all.filter(|&(w, r)| graph.has_edge(w, r)).count(), edges);
        prop_assert_eq!(graph.edge_count(), edges);
    }

    /// Keys and values that a group of heads shares are named after their key/value head, and found by
    /// their former names too; where nothing is shared, they are named after the head.
    #[test]
    fn shared_keys_and_values_have_names_of_their_own(geometry in geometries()) {
        let model = geometry.model(0);
        let graph = model.graph();
        let shares = geometry.kv_heads < geometry.heads;
        for (index, input) in graph.readers().iter().enumerate() {
            let name = input.to_string();
            prop_assert_eq!(graph.reader(&name).unwrap(), Reader(index));
            let is_key_or_value = matches!(input.port, Port::Key | Port::Value);
            prop_assert_eq!(name.contains(".kv"), shares && is_key_or_value, "{}", name);
            let former = name.replace(".kv", ".");
            prop_assert_eq!(graph.reader(&former).unwrap(), Reader(index), "{}", former);
        }
    }

    /// Without embedding and logits: layer l's attention has (heads + 2·kv_heads) readers of the
    /// l·(heads + mlps) writers before it, its MLP as many more writers as there are heads, unless it
    /// stands beside the attention.
    #[test]
    fn counts_have_a_closed_form(geometry in geometries()) {
        let graph = geometry.model(0).graph().subset(&[Kind::Head, Kind::Mlp]);
        let Geometry { layers, heads, kv_heads, .. } = geometry;
        let mlps = if geometry.split_mlp { geometry.mlp_heads } else { 1 };
        let mlp_readers = if geometry.family.has_gate() { 2 * mlps } else { mlps };
        prop_assert_eq!(graph.writers().len(), layers * (heads + mlps));
        prop_assert_eq!(graph.readers().len(), layers * (heads + 2 * kv_heads + mlp_readers));
        let pairs = layers * (layers - 1) / 2 * (heads + mlps);
        let within = if geometry.family.is_parallel() { 0 } else { layers * heads * mlp_readers };
        let expected = pairs * (heads + 2 * kv_heads + mlp_readers) + within;
        prop_assert_eq!(graph.edge_count(), expected);
    }

    #[test]
    fn names_parse_back(geometry in geometries()) {
        let model = geometry.model(0);
        let graph = model.graph();
        for (index, node) in graph.writers().iter().enumerate() {
            prop_assert_eq!(node.to_string().parse::<Node>().unwrap(), *node);
            prop_assert_eq!(graph.writer(&node.to_string()).unwrap(), Writer(index));
        }
        for (index, input) in graph.readers().iter().enumerate() {
            prop_assert_eq!(input.to_string().parse::<Input>().unwrap(), *input);
            prop_assert_eq!(graph.reader(&input.to_string()).unwrap(), Reader(index));
        }
    }

    /// Every row in exactly one block; every head and MLP owns some; nothing else owns any.
    #[test]
    fn every_row_has_one_owner(geometry in geometries()) {
        let model = geometry.model(0);
        let mut owners = BTreeSet::new();
        for (_, parameter) in model.parameters().iter() {
            let mut next = 0;
            for block in &parameter.blocks {
                prop_assert_eq!(block.rows.start, next, "{}", &parameter.name);
                prop_assert!(block.rows.end > block.rows.start);
                next = block.rows.end;
                owners.insert(block.owner);
            }
            prop_assert_eq!(next, parameter.rows(), "{}", &parameter.name);
        }
        owners.remove(&Owner::Shared);
        let graph = model.graph().subset(&[Kind::Head, Kind::Mlp]);
        let writers = graph.writers().iter().map(|&node| Owner::Writer(node));
        let nodes: BTreeSet<Owner> =
            writers.chain(graph.readers().iter().map(|&input| Owner::Reader(input))).collect();
        prop_assert_eq!(owners, nodes);
    }

    /// The top-n edges are the n best, sorted, deterministic, and a prefix of the top-(n+1).
    #[test]
    fn the_best_edges_are_the_best(
        geometry in geometries(),
        seeds in prop::collection::vec(any::<i8>(), 1..40),
        rule in prop::sample::select(vec![Rule::TopEdges, Rule::TopNodes]),
        share in 0f64..1.0,
    ) {
        let scores = scores(geometry.model(0).graph().clone(), &seeds);
        let graph = &scores.graph;
        let n = ((graph.edge_count() - 1) as f64 * share) as usize;
        let pruning = Pruning { rule, ..Pruning::default() };
        let cut = |n| pruning.prune(&scores, &scores.magnitudes(), n);
        let (circuit, next) = (cut(n), cut(n + 1));
        prop_assert_eq!(&circuit, &cut(n));
        prop_assert_eq!(circuit.edges.len(), n);
        prop_assert_eq!(&circuit.edges[..], &next.edges[..n]);
        // By the definition, written out plainly.
        let sum = |which: &dyn Fn((Writer, Reader)) -> bool| -> f64 {
            graph.edges().filter(|&e| which(e)).map(|(w, r)| f64::from(scores.of(w, r).abs())).sum()
        };
        let worth = |w: Writer, r: Reader| {
            let own = f64::from(scores.of(w, r).abs());
            match rule {
                Rule::TopEdges => own,
                Rule::TopNodes => own * sum(&|e| e.0 == w) * sum(&|e| e.1 == r),
            }
        };
        let index = |edge: &circuit_framework::graph::circuit::Edge| {
            (graph.writer(&edge.writer.to_string()).unwrap(), graph.reader(&edge.reader.to_string()).unwrap())
        };
        let chosen: Vec<_> = circuit.edges.iter().map(index).collect();
        let key = |&(w, r): &(Writer, Reader)| (-worth(w, r), w, r);
        for pair in chosen.windows(2) {
            prop_assert!(key(&pair[0]) < key(&pair[1]));
        }
        if let Some(last) = chosen.last() {
            let inside: BTreeSet<_> = chosen.iter().copied().collect();
            prop_assert!(graph.edges().filter(|edge| !inside.contains(edge)).all(|edge| key(last) < key(&edge)));
        }
    }

    #[test]
    fn thresholds_and_layers_limit_the_edges(geometry in geometries(), seeds in prop::collection::vec(any::<i8>(), 1..40)) {
        let scores = scores(geometry.model(0).graph().clone(), &seeds);
        let pruning = Pruning { threshold: 4.0, same_layer: true, ..Pruning::default() };
        let circuit = pruning.prune(&scores, &scores.magnitudes(), usize::MAX);
        let wanted = scores.graph.edges().filter(|&(w, r)| {
            let layers = (scores.graph.writers()[w.0].layer(), scores.graph.readers()[r.0].node.layer());
            scores.of(w, r).abs() >= 4.0 && layers.0.is_some() && layers.0 == layers.1
        });
        prop_assert_eq!(circuit.edges.len(), wanted.count());
    }
}

proptest! {
    #![proptest_config(few(24))]

    /// A score is in the metric's unit: examples that are there twice change nothing.
    #[test]
    fn doubling_the_examples_changes_no_score(
        geometry in geometries(),
        examples in examples(1..4),
        (method, ablation, positions, metric) in ways(),
    ) {
        let model = geometry.model_in_float64(1);
        let options = discovery(method, ablation, positions, 16);
        let once = find(&*model, &examples, metric, &options);
        let twice = find(&*model, &[&examples[..], &examples].concat(), metric, &options);
        prop_assert!(distance(&once, &twice) < 1e-5, "{}", distance(&once, &twice));
    }

    /// How the examples are split into batches, and so how they are padded, changes no score.
    #[test]
    fn batches_and_padding_change_nothing(
        geometry in geometries(),
        examples in examples(2..6),
        (method, ablation, positions, metric) in ways(),
        extra in 0..5usize,
    ) {
        let model = geometry.model(1);
        let one = find(&*model, &examples, metric, &discovery(method, ablation, positions, 1));
        let all = find(&*model, &examples, metric, &discovery(method, ablation, positions, 100));
        let some = find(&*model, &examples, metric, &discovery(method, ablation, positions, 2));
        prop_assert!(distance(&one, &all) < 1e-3, "{}", distance(&one, &all));
        prop_assert!(distance(&one, &some) < 1e-3, "{}", distance(&one, &some));
        // Logits at real tokens are the same behind whatever padding.
        let batch = Batch::new(examples.iter().collect(), &Device::Cpu).unwrap();
        let mut longer = examples[0].clone();
        longer.tokens.resize(batch.seq + extra, 1);
        let padded = Batch::new(examples.iter().chain([&longer]).collect(), &Device::Cpu).unwrap();
        let logits = |batch: &Batch| {
            let readout = model.forward(&Pass::forward_only(), &batch.tokens).unwrap();
            let rows: Vec<u32> = (examples.iter().enumerate())
                .flat_map(|(index, example)| (0..example.tokens.len()).map(move |position| (index, position)))
                .map(|(index, position)| batch.row(index, position))
                .collect();
            readout.logits(&rows).unwrap()
        };
        let difference = (logits(&batch) - logits(&padded)).unwrap().abs().unwrap();
        let worst = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
        prop_assert!(worst < 1e-3, "{worst}");
    }
}

pub fn tune(
    model: &dyn Model,
    examples: &[Example],
    selector: &str,
    metric: &str,
    tuning: &Tuning,
) -> Result<BTreeSet<String>> {
    let metric: Box<dyn PatchingMetric> = plugin(metric, "");
    let selector: Box<dyn ParamSelector> = plugin(selector, "");
    let tuner = Tuner {
        model,
        metric: &*metric,
        selector: &*selector,
        discovery: &Discovery {
            activation_checkpointing: tuning.activation_checkpointing,
            ..Discovery::default()
        },
        pruning: &Pruning { top_n: Some(2.min(model.graph().edge_count())), ..Pruning::default() },
        tuning,
        matched: None,
        seed: 7,
        peers: &Alone,
    };
    let tuned = tuner.run(examples, &mut |_| Ok(()))?;
    let mut entries = BTreeSet::new();
    for (id, parameter) in model.parameters().iter() {
        for row in tuned.tuned.ranges(id).iter().cloned().flatten() {
            entries.insert(format!("{}#{row}", parameter.name));
        }
    }
    Ok(entries)
}

pub fn geometry_with_edges() -> impl Strategy<Value = Geometry> {
    geometries()
        .prop_filter("tuning needs two edges", |geometry| geometry.layers > 1 || geometry.heads > 1)
}

proptest! {
    #![proptest_config(few(24))]

    /// What no step selected is bit for bit what it was; of what was selected, something moved.
    #[test]
    fn entries_outside_the_selection_stay(
        geometry in geometry_with_edges(),
        examples in examples(3..6),
        selector in prop::sample::select(vec!["nodes", "modules", "all", "random", "random_parameters"]),
        optimizer in prop::sample::select(vec![Algorithm::Sgd, Algorithm::Adam, Algorithm::AdamW]),
    ) {
        let model = geometry.model(2);
        let before = model.parameters().snapshot().unwrap();
        let tuning = Tuning { steps: Some(3), batch_size: 2, optimizer, weight_decay: 0.1, lr: 0.01, ..Tuning::default() };
        let selected = tune(&*model, &examples, selector, "logit_diff", &tuning).unwrap();
        let mut moved = 0;
        for ((_, parameter), before) in model.parameters().iter().zip(&before) {
            let rows = |tensor: &circuit_framework::Tensor| tensor.to_vec2::<f32>().unwrap();
            for (row, (before, after)) in rows(before).iter().zip(rows(&parameter.tensor)).enumerate() {
                let same = before.iter().zip(&after).all(|(a, b)| a.to_bits() == b.to_bits());
                if selected.contains(&format!("{}#{row}", parameter.name)) {
                    moved += usize::from(!same);
                } else {
                    prop_assert!(same, "{} row {row} is not selected", parameter.name);
                }
            }
        }
        prop_assert!(moved > 0);
    }

    /// Micro-batches add up to the batch: loss, regulariser and clipping included.
    #[test]
    fn micro_batches_equal_the_batch(
        geometry in geometry_with_edges(),
        examples in examples(4..5),
        objective in prop::sample::select(vec![
            Objective::Standard, Objective::Weighted, Objective::Alone, Objective::Set,
        ]),
        metric in prop::sample::select(vec!["logit_diff", "loss"]),
    ) {
        // SGD, because Adam makes whole steps of rounding differences in vanishing gradients.
        let tuning = |micro_batch_size| Tuning {
            steps: Some(2), batch_size: 4, micro_batch_size, objective, key_weight_p: 0.5,
            metric_penalty: 0.3, max_grad_norm: Some(0.5), optimizer: Algorithm::Sgd, lr: 0.1, ..Tuning::default()
        };
        let run = |micro_batch_size| {
            let model = geometry.model(3);
            // All rows, so that no near tie between edges decides what is tuned.
            tune(&*model, &examples, "all", metric, &tuning(micro_batch_size)).unwrap();
            weights(&*model)
        };
        let start = weights(&*geometry.model(3));
        let (whole, parts) = (run(None), run(Some(1)));
        let (mut largest, mut worst) = (0f32, 0f32);
        for (name, whole) in &whole {
            for ((a, b), start) in whole.iter().zip(&parts[name]).zip(&start[name]) {
                largest = largest.max((a - start).abs());
                worst = worst.max((a - b).abs());
            }
        }
        prop_assert!(worst <= 2e-3 * largest, "{worst} of {largest}");
    }
}

proptest! {
    #![proptest_config(few(24))]

    /// Activations that are formed again are the same bits, and so is all that comes of them.
    #[test]
    fn activation_checkpointing_changes_no_bit(
        geometry in geometry_with_edges(),
        examples in examples(2..6),
        (method, ablation, positions, metric) in ways(),
        selector in prop::sample::select(vec!["nodes", "all"]),
    ) {
        let scores = |activation_checkpointing| {
            let options = Discovery {
                activation_checkpointing,
                ..discovery(method, ablation, positions, 4)
            };
            let found = find(&*geometry.model(1), &examples, metric, &options);
            found.values.iter().map(|score| score.to_bits()).collect::<Vec<_>>()
        };
        prop_assert_eq!(scores(false), scores(true));
        let tuned = |activation_checkpointing| {
            let model = geometry.model(1);
            let tuning = Tuning {
                steps: Some(2), batch_size: 4, activation_checkpointing, ..Tuning::default()
            };
            tune(&*model, &examples, selector, metric, &tuning).unwrap();
            let weights = weights(&*model);
            let bits = |values: &Vec<f32>| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            weights.iter().map(|(name, values)| (name.clone(), bits(values))).collect::<Vec<_>>()
        };
        prop_assert_eq!(tuned(false), tuned(true));
    }
}

/// Rerunning gives the same bits, on one thread or two.
#[test]
fn results_are_the_same_bits_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let run = |threads: &str, arguments: &[&str], out: &str| {
        let out = folder.path().join(format!("{threads} {out}"));
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_circuit-tuning"))
            .args(arguments)
            .arg(&out)
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        out
    };
    let scores = |threads| {
        let discover = [
            "discover",
            "--force",
            "--set",
            "task.train_examples=64",
            "--positions",
            "all",
            "--scores",
        ];
        std::fs::read(run(threads, &discover, "scores.safetensors")).unwrap()
    };
    let one = scores("1");
    assert!(one == scores("2") && one == scores("2"), "the scores' files differ");
    let weights = |threads| {
        let tune = ["tune", "--steps", "3", "--batch-size", "64", "--out"];
        std::fs::read(run(threads, &tune, "run").join("model/model.safetensors")).unwrap()
    };
    assert!(weights("1") == weights("2"), "the tuned weights differ");
}
