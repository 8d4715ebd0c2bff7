//! What must hold of the graph of every model, and of the edges that pruning keeps, tried on random ones.

use std::collections::BTreeSet;

use circuit_framework::graph::pruning::{Pruning, Rule};
use circuit_framework::graph::{Input, Kind, Node, Port, Reader, Writer};
use circuit_framework::{Graph, Owner, Scores};
use proptest::prelude::*;

use crate::support::{Geometry, few, geometries};

/// Scores that often tie.
pub fn scores(graph: Graph, seeds: &[i8]) -> Scores {
    let readers = graph.readers().len();
    let mut values = vec![0f32; graph.writers().len() * readers];
    for (index, (writer, reader)) in graph.edges().enumerate() {
        values[writer.0 * readers + reader.0] = f32::from(seeds[index % seeds.len()]) / 8.0;
    }
    Scores { graph, values }
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
