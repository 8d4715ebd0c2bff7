//! Analyses held against slow, direct computations on small models of every family, an example at a time;
//! and what must add up.

use std::sync::{Arc, Mutex};

use circuit_framework::analysis::{Analysis, strongest};
use circuit_framework::evaluation::ablation::{Ablation, values_of};
use circuit_framework::evaluation::answers;
use circuit_framework::graph::circuit::{Circuit, Edge};
use circuit_framework::graph::{Input, Node, Port, Reader, Writer};
use circuit_framework::pass::{Ablated, AblatedEdges, Replacement, scalar, values};
use circuit_framework::peers::Alone;
use circuit_framework::{Batch, Example, Model, Pass, PatchingMetric, Tensor};
use proptest::prelude::*;

use crate::support::{Geometry, examples, few, geometries, plugin};

/// A few examples, every second with a span "mark" of its first tokens and one that stands at its end.
fn marked() -> impl Strategy<Value = Vec<Example>> {
    examples(2..5).prop_map(|mut examples| {
        for example in examples.iter_mut().step_by(2) {
            let last = example.tokens.len() - 1;
            example.spans.insert("mark".to_owned(), vec![0, 1]);
            example.spans.insert("last".to_owned(), vec![last]);
        }
        examples
    })
}

pub fn cases() -> impl Strategy<Value = (Geometry, Vec<Example>, u64, usize)> {
    // A layer norm of two numbers is ±1.
    let wide = geometries().prop_filter("wide enough", |g| g.heads * g.d_head >= 4);
    (wide, marked(), 0..1000u64, 1..4usize)
}

/// A model whose biases and norms' weights say something too: a random model's are 0 and 1.
pub fn model_of(geometry: &Geometry, seed: u64) -> Box<dyn Model> {
    let model = geometry.model_in_float64(seed);
    let vectors = model.parameters().iter().map(|(_, parameter)| parameter);
    for (index, parameter) in
        vectors.filter(|parameter| parameter.width() == 1 || parameter.rows() == 1).enumerate()
    {
        let tensor = &parameter.tensor;
        let noise: Vec<f64> = (0..tensor.elem_count())
            .map(|i| 0.5 * ((i + 7 * index) as f64 * 12.9898 + seed as f64).sin())
            .collect();
        let noise = Tensor::from_vec(noise, tensor.shape(), tensor.device()).unwrap();
        tensor.slice_set(&(tensor + noise).unwrap(), 0, 0).unwrap();
    }
    model
}

pub fn analyse<T>(
    model: &dyn Model,
    examples: &[Example],
    batch_size: usize,
    ablation: Ablation,
    of: impl FnOnce(&Analysis) -> T,
) -> T {
    let metric = metric();
    of(&Analysis {
        model,
        metric: &*metric,
        examples,
        ablation,
        batch_size,
        report: &|_| (),
        peers: &Alone,
    })
}

fn metric() -> Box<dyn PatchingMetric> {
    plugin::<dyn PatchingMetric>("logit_diff", "")
}

/// A batch of one example.
pub fn alone<'e>(example: &'e Example, model: &dyn Model) -> Batch<'e> {
    Batch::new(vec![example], &model.device()).unwrap()
}

pub fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-8 * (1.0 + a.abs().max(b.abs()))
}

/// The metric of one example under a pass.
fn measure(model: &dyn Model, example: &Example, pass: &Pass) -> f64 {
    let batch = alone(example, model);
    let readout = model.forward(pass, &batch.tokens).unwrap();
    scalar(&metric().sum(&readout, &batch).unwrap()).unwrap()
}

pub fn vector(tensor: &Tensor) -> Vec<f64> {
    values(&tensor.flatten_all().unwrap()).unwrap()
}

/// The streams that the sites read, in computation order, of one example [seq, d_model].
fn streams(model: &dyn Model, example: &Example) -> Vec<(usize, Tensor)> {
    let seen: Arc<Mutex<Vec<(usize, Tensor)>>> = Arc::default();
    let shown = seen.clone();
    let pass = Pass::forward_only().on_read(move |site, x| {
        shown.lock().unwrap().push((site, x.copy().unwrap()));
        Ok(())
    });
    model.forward(&pass, &alone(example, model).tokens).unwrap();
    std::mem::take(&mut *seen.lock().unwrap())
}

/// Of one key, the direct effect of each writer, by the formula of the final norm, number by number.
fn slow_effects(model: &dyn Model, example: &Example, key: &circuit_framework::Key) -> Vec<f64> {
    let batch = alone(example, model);
    let readout = model.forward(&Pass::forward_only(), &batch.tokens).unwrap();
    let unembedding = readout.unembedding();
    let row = key.position - 1;
    let stream = vector(&streams(model, example).last().unwrap().1.get(row).unwrap());
    let n = stream.len() as f64;
    let is_centred = unembedding.norm.bias.is_some();
    let mean = |x: &[f64]| if is_centred { x.iter().sum::<f64>() / n } else { 0.0 };
    let centre = mean(&stream);
    let variance = stream.iter().map(|x| (x - centre).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + unembedding.norm.epsilon).sqrt();
    let gain: Vec<f64> = vector(&unembedding.norm.weight.tensor)
        .iter()
        .map(|g| g + unembedding.norm.offset)
        .collect();
    let row_of = |token: u32| vector(&unembedding.weight.tensor.get(token as usize).unwrap());
    let logit = |output: &[f64], token: u32| -> f64 {
        let centre = mean(output);
        let products = output.iter().zip(&gain).zip(row_of(token));
        products.map(|((x, gain), w)| (x - centre) * scale * gain * w).sum()
    };
    let written = values_of(model, &batch.tokens).unwrap();
    (0..model.graph().writers().len())
        .map(|writer| {
            let output = vector(&written.get(writer).unwrap().get(row).unwrap());
            let of = |tokens: &[u32]| {
                tokens.iter().map(|&token| logit(&output, token)).sum::<f64>() / tokens.len() as f64
            };
            of(&key.correct) - of(&key.wrong)
        })
        .collect()
}

/// The mean over examples of the mean over keys.
fn mean_over_keys(
    examples: &[Example],
    of: impl Fn(&Example, &circuit_framework::Key) -> Vec<f64>,
) -> Vec<f64> {
    let mut means: Vec<f64> = Vec::new();
    for example in examples {
        for key in &example.keys {
            let own = of(example, key);
            means.resize(own.len(), 0.0);
            for (mean, own) in means.iter_mut().zip(own) {
                *mean += own / (example.keys.len() * examples.len()) as f64;
            }
        }
    }
    means
}

proptest! {
    #![proptest_config(few(24))]

    #[test]
    fn direct_effects_are_the_formula_and_sum_to_the_logit_difference(
        (geometry, examples, seed, batch_size) in cases()
    ) {
        let model = model_of(&geometry, seed);
        let found = analyse(&*model, &examples, batch_size, Ablation::Zero, |a| a.logits().unwrap());
        let sum: f64 = found.nodes.iter().map(|of| of.effect).sum();
        prop_assert!(close(sum + found.biases, found.difference), "{} {}", sum + found.biases, found.difference);
        // A soft cap is no part of the sum.
        let is_capped = model.forward(&Pass::forward_only(), &alone(&examples[0], &*model).tokens)
            .unwrap().unembedding().cap.is_some();
        if !is_capped {
            let metric = examples.iter().map(|e| measure(&*model, e, &Pass::forward_only())).sum::<f64>();
            prop_assert!(close(found.difference, metric / examples.len() as f64));
        }
        let slow = mean_over_keys(&examples, |example, key| slow_effects(&*model, example, key));
        for ((of, slow), node) in found.nodes.iter().zip(slow).zip(model.graph().writers()) {
            prop_assert!(of.node == *node && close(of.effect, slow), "{node}: {} {slow}", of.effect);
        }
    }

    #[test]
    fn the_lens_reads_the_stream_after_each_layer((geometry, examples, seed, batch_size) in cases()) {
        let model = model_of(&geometry, seed);
        let found = analyse(&*model, &examples, batch_size, Ablation::Zero, |a| a.logits().unwrap());
        let layers: Vec<Option<usize>> = found.lens.iter().map(|lens| lens.layer).collect();
        prop_assert_eq!(layers, std::iter::once(None).chain((0..geometry.layers).map(Some)).collect::<Vec<_>>());
        // What all writers up to a layer wrote, and the biases; the last is what the model predicts.
        let slow = mean_over_keys(&examples, |example, key| {
            let batch = alone(example, &*model);
            let readout = model.forward(&Pass::forward_only(), &batch.tokens).unwrap();
            let streams = streams(&*model, example);
            let first_of = |layer: usize| {
                let graph = model.graph();
                let site = (0..graph.site_count()).find(|&site| {
                    graph.readers()[graph.readers_of(site)].first().is_some_and(|r| r.node.layer() == Some(layer))
                });
                streams.iter().find(|(at, _)| Some(*at) == site).map(|(_, x)| x.clone())
            };
            let after = |layer: usize| first_of(layer).unwrap_or_else(|| streams.last().unwrap().1.clone());
            let mut figures = Vec::new();
            for layer in 0..=geometry.layers {
                let x = after(layer).get(key.position - 1).unwrap().unsqueeze(0).unwrap();
                let logits = match layer == geometry.layers {
                    true => readout.logits(&[key.position as u32 - 1]).unwrap(),
                    false => readout.unembedding().logits(&x).unwrap(),
                };
                let p = vector(&answers::log_probs(&logits).unwrap());
                for side in [&key.correct, &key.wrong] {
                    figures.push(side.iter().map(|&t| p[t as usize].exp()).sum());
                    let best = side.iter().map(|&t| p[t as usize]).fold(f64::MIN, f64::max);
                    figures.push(1.0 + p.iter().filter(|&&p| p > best).count() as f64);
                }
            }
            figures
        });
        let fast = found.lens.iter().flat_map(|lens| {
            [lens.right.probability, lens.right.rank, lens.wrong.probability, lens.wrong.rank]
        });
        for (fast, slow) in fast.zip(slow) {
            prop_assert!(close(fast, slow), "{fast} {slow}");
        }
    }

    #[test]
    fn all_paths_from_a_node_are_the_node((geometry, examples, seed, batch_size) in cases()) {
        let model = model_of(&geometry, seed);
        let graph = model.graph();
        let all = graph.readers().to_vec();
        let found = analyse(&*model, &examples, batch_size, Ablation::Corrupt, |a| a.paths(&[], &all).unwrap());
        prop_assert_eq!(found.nodes.len(), graph.writers().len());
        // Of chosen writers the same, and no other.
        let chosen: Vec<Node> = graph.writers().iter().copied().step_by(2).collect();
        let few = analyse(&*model, &examples, batch_size, Ablation::Corrupt, |a| a.paths(&chosen, &all).unwrap());
        prop_assert_eq!(few.nodes, found.nodes.iter().filter(|of| chosen.contains(&of.node)).cloned().collect::<Vec<_>>());
        for (writer, of) in found.nodes.iter().enumerate() {
            let site = (0..graph.site_count()).find(|&s| graph.writers_of(s).contains(&writer)).unwrap();
            let (index, count) = (writer - graph.writers_of(site).start, graph.writers_of(site).len());
            let change = |example: &Example| {
                let corrupt = Tensor::new(&example.counterfactual.as_ref().unwrap().tokens[..], &model.device())
                    .unwrap().unsqueeze(0).unwrap();
                let output = values_of(&*model, &corrupt).unwrap().get(writer).unwrap();
                let replaced = Pass::forward_only().replacing(move |written| {
                    let new = || Replacement::Writer { index, of: count, output: output.clone() };
                    Ok((written.site() == site).then(new))
                });
                measure(&*model, example, &replaced) - measure(&*model, example, &Pass::forward_only())
            };
            let slow = examples.iter().map(change).sum::<f64>() / examples.len() as f64;
            prop_assert!(close(of.effect, slow), "{}: {} {slow}", of.node, of.effect);
        }
    }

    #[test]
    fn a_path_is_an_edge_patched_and_what_its_head_looks_at(
        (geometry, examples, seed, batch_size) in cases(), which in any::<prop::sample::Index>()
    ) {
        let model = model_of(&geometry, seed);
        let graph = model.graph();
        let reader = Reader(which.index(graph.readers().len()));
        let input = graph.readers()[reader.0];
        let found = analyse(&*model, &examples, batch_size, Ablation::Corrupt, |a| a.paths(&[], &[input]).unwrap());
        let writers: Vec<Writer> =
            (0..graph.writers().len()).map(Writer).filter(|&w| graph.has_edge(w, reader)).collect();
        prop_assert_eq!(found.nodes.len(), writers.len());
        // The heads of the reader, and how much they look at the first token from the keys.
        let group = geometry.heads / geometry.kv_heads;
        let layer = input.node.layer().unwrap_or(0);
        let heads: Vec<usize> = match input.node {
            Node::Head { head, .. } => vec![head],
            Node::KeyValueHead { head, .. } => (head * group..(head + 1) * group).collect(),
            _ => Vec::new(),
        };
        let run = |edge: Option<Writer>| -> (f64, f64) {
            let (mut metric, mut share) = (0.0, 0.0);
            for example in &examples {
                let corrupt = Tensor::new(&example.counterfactual.as_ref().unwrap().tokens[..], &model.device())
                    .unwrap().unsqueeze(0).unwrap();
                let by = Ablated::Values(values_of(&*model, &corrupt).unwrap());
                let edges = AblatedEdges::new(graph, by, |w, r| Some(w) == edge && r == reader);
                let seen: Arc<Mutex<Vec<Tensor>>> = Arc::default();
                let shown = seen.clone();
                let pass = Pass::forward_only().ablating(Arc::new(edges)).on_attention(move |_, p| {
                    shown.lock().unwrap().push(p.copy().unwrap());
                    Ok(())
                });
                metric += measure(&*model, example, &pass) / examples.len() as f64;
                let p = vector(&seen.lock().unwrap()[layer]);
                let seq = example.tokens.len();
                for key in &example.keys {
                    for head in &heads {
                        let weight = p[(head * seq + key.position - 1) * seq];
                        share += weight / (examples.len() * example.keys.len() * heads.len()) as f64;
                    }
                }
            }
            (metric, share)
        };
        let clean = run(None);
        prop_assert!(close(found.metric, clean.0));
        for (of, &writer) in found.nodes.iter().zip(&writers) {
            let (metric, share) = run(Some(writer));
            prop_assert!(close(of.effect, metric - clean.0), "{} → {input}", of.node);
            prop_assert_eq!(of.attention.is_empty(), heads.is_empty());
            if !heads.is_empty() {
                prop_assert!(close(found.attention["(first)"], clean.1));
                prop_assert!(close(of.attention["(first)"], share - clean.1), "{} → {input}", of.node);
            }
        }
    }

    #[test]
    fn roles_put_the_analyses_together((geometry, examples, seed, batch_size) in cases()) {
        let model = model_of(&geometry, seed);
        let graph = model.graph();
        // Every third edge, with scores of both signs.
        let edges = graph.edges().step_by(3).enumerate().map(|(index, (writer, reader))| {
            let score = ((index * 7 + 3) % 11) as f32 - 5.0;
            Edge::new(graph.writers()[writer.0], graph.readers()[reader.0], score)
        });
        let circuit = Circuit { edges: edges.collect() };
        let (roles, logits, attention, from_last, patched) =
            analyse(&*model, &examples, batch_size, Ablation::Zero, |a| {
                let all = graph.readers().to_vec();
                (a.roles(&circuit).unwrap(), a.logits().unwrap(), a.attention(&[], None, 0).unwrap(), a.attention(&[], Some("last"), 0).unwrap(), a.paths(&[], &all).unwrap())
            });
        let nodes: Vec<Node> = graph.writers().iter().copied().filter(|n| circuit.writers().contains(n)).collect();
        prop_assert_eq!(roles.nodes.iter().map(|role| role.node).collect::<Vec<_>>(), nodes);
        for role in &roles.nodes {
            let own = || circuit.edges.iter().filter(|edge| edge.writer == role.node);
            prop_assert_eq!(role.score, own().map(|edge| f64::from(edge.score)).sum::<f64>());
            let direct = logits.nodes.iter().find(|of| of.node == role.node).unwrap();
            let effect = patched.nodes.iter().find(|of| of.node == role.node).unwrap();
            prop_assert!(role.direct == direct.effect && close(role.effect, effect.effect));
            prop_assert!(own().any(|edge| edge.reader == role.moves && f64::from(edge.score) == role.moves_by));
            prop_assert!(own().all(|edge| f64::from(edge.score.abs()) <= role.moves_by.abs()));
            let looks = attention.heads.iter().find(|head| head.node == role.node);
            prop_assert_eq!(role.looks_at.is_some(), looks.is_some());
            if let (Some((name, share)), Some(looks)) = (&role.looks_at, looks) {
                prop_assert_eq!(looks.looks[name].share, *share);
                prop_assert!(looks.looks.values().all(|look| look.share <= *share));
                // Of the two spans the last token sees the first ones, not the other way round.
                let between = role.between.as_ref().unwrap();
                prop_assert_eq!((&between.from[..], &between.to[..]), ("last", "mark"));
                let of = from_last.heads.iter().find(|head| head.node == role.node).unwrap();
                prop_assert_eq!(between.share, of.looks["mark"].share);
            }
        }
        // The strongest heads' inputs are the model's, of shared keys and values the shared ones.
        for port in [Port::Query, Port::Key, Port::Value] {
            let inputs = strongest(graph, &logits.nodes, 2, port).unwrap();
            prop_assert!(inputs.iter().all(|input: &Input| graph.readers().contains(input)));
        }
        prop_assert!(strongest(graph, &logits.nodes, 1, Port::Gate).is_err());
    }
}
