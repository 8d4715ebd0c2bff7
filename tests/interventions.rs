//! Passes that are watched and changed: ablated edges, replaced writes, what hooks are shown; with
//! gradients, checkpointing, a cache, and composed operations as on a GPU.

use std::sync::{Arc, Mutex};

use circuit_framework::graph::{Reader, Writer};
use circuit_framework::ops::composed::everywhere;
use circuit_framework::ops::cross_entropy::Target;
use circuit_framework::pass::cache::Cache;
use circuit_framework::pass::{Ablated, AblatedEdges, Prefix, Replacement, Written, scalar};
use circuit_framework::plugin::conformance::central_difference;
use circuit_framework::tuning::gradients::Gradients;
use circuit_framework::weights::parameters::Selection;
use circuit_framework::{Device, Model, Pass, Readout, Tensor};
use proptest::prelude::*;

use crate::support::{Geometry, VOCABULARY, few, geometries};

const BATCH: usize = 2;
const SEQ: usize = 4;

/// Numbers that look random, the same for the same seed.
fn noise(shape: impl Into<candle_core::Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let value = |i: usize| ((i as f64 + 1.0) * 12.9898 + seed as f64 * 0.7).sin();
    let values: Vec<f64> = (0..shape.elem_count()).map(value).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn tokens(seed: u64) -> Tensor {
    let token = |i: usize| ((i as u64 * 7 + seed * 3) % VOCABULARY as u64) as u32;
    let ids: Vec<u32> = (0..BATCH * SEQ).map(token).collect();
    Tensor::from_vec(ids, (BATCH, SEQ), &Device::Cpu).unwrap()
}

fn logits(readout: &Readout) -> Vec<f64> {
    let rows: Vec<u32> = (0..(BATCH * SEQ) as u32).collect();
    readout.logits(&rows).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn run(model: &dyn Model, pass: &Pass, tokens: &Tensor) -> Vec<f64> {
    logits(&model.forward(pass, tokens).unwrap())
}

/// The sum of every token's cross-entropy but the first's.
fn loss(model: &dyn Model, pass: &Pass, tokens: &Tensor) -> Tensor {
    let ids = tokens.to_vec2::<u32>().unwrap();
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (sequence, ids) in ids.iter().enumerate() {
        for (position, &token) in ids.iter().enumerate().skip(1) {
            rows.push((sequence * SEQ + position - 1) as u32);
            targets.push(Target { token, weight: 1.0 });
        }
    }
    model.forward(pass, tokens).unwrap().cross_entropy(&rows, targets).unwrap()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let largest = a.iter().fold(1.0f64, |largest, a| largest.max(a.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest
}

/// What ablated edges read, in each of its forms.
fn ablated(model: &dyn Model, form: usize, seed: u64) -> Ablated {
    let writers = model.graph().writers().len();
    let d_model = model.parameters().iter().map(|(_, p)| p.width()).max().unwrap();
    match form {
        0 => Ablated::Zero,
        1 => Ablated::Constant(noise((writers, d_model), seed)),
        2 => Ablated::ByPosition(noise((writers, SEQ, d_model), seed)),
        _ => Ablated::Values(noise((writers, BATCH * SEQ, d_model), seed)),
    }
}

/// About half of the edges, chosen by the bits of a hash.
fn some_edges(seed: u64) -> impl Fn(Writer, Reader) -> bool {
    move |writer, reader| {
        let edge = writer.0 as u64 * 31 + reader.0 as u64 * 17 + seed;
        let hash = edge.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash >> 63 == 1
    }
}

fn edges(model: &dyn Model, form: usize, seed: u64) -> Arc<AblatedEdges> {
    Arc::new(AblatedEdges::new(model.graph(), ablated(model, form, seed), some_edges(seed)))
}

/// Replaces what one writer writes, or all that its site does where it is the only one.
fn replacing(pass: Pass, model: &dyn Model, writer: usize, output: &Tensor, whole: bool) -> Pass {
    let graph = model.graph();
    let site =
        (0..graph.site_count()).find(|&site| graph.writers_of(site).contains(&writer)).unwrap();
    let (index, of) = (writer - graph.writers_of(site).start, graph.writers_of(site).len());
    let output = output.clone();
    pass.replacing(move |written| {
        let at = match written {
            Written::Embedding { site, .. } => *site,
            Written::Projected { writing, .. } => writing.site,
        };
        Ok((at == site).then(|| match whole && of == 1 {
            true => Replacement::Site(output.clone()),
            false => Replacement::Writer { index, of, output: output.clone() },
        }))
    })
}

fn cases() -> impl Strategy<Value = (Geometry, usize, u64)> {
    // A layer norm of two numbers is ±1, and its gradient next to nowhere what a difference says.
    let wide = geometries().prop_filter("wide enough", |g| g.heads * g.d_head >= 4);
    (wide, 0..4usize, 0..1000u64)
}

proptest! {
    #![proptest_config(few(32))]

    #[test]
    fn ablating_no_edge_changes_no_bit((geometry, form, seed) in cases()) {
        let model = geometry.model_in_float64(seed);
        let none = AblatedEdges::new(model.graph(), ablated(&*model, form, seed), |_, _| false);
        let plain = run(&*model, &Pass::forward_only(), &tokens(seed));
        let same = run(&*model, &Pass::forward_only().ablating(Arc::new(none)), &tokens(seed));
        prop_assert!(plain.iter().zip(&same).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    /// Edges into the readers from a random one on, which decides where the pass begins.
    #[test]
    fn a_pass_that_begins_where_edges_change_it_is_the_whole_pass(
        (geometry, form, seed) in cases(), from in any::<prop::sample::Index>()
    ) {
        let model = geometry.model_in_float64(seed);
        let graph = model.graph();
        let first = Reader(from.index(graph.readers().len()));
        let some = some_edges(seed);
        let edges = AblatedEdges::new(graph, ablated(&*model, form, seed), |w, r| r >= first && some(w, r));
        let pass = || Pass::forward_only().ablating(edges.clone().into());
        let plain = Prefix::default();
        let tokens = tokens(seed);
        model.forward(&Pass::forward_only().keeping(&plain), &tokens).unwrap();
        let whole = run(&*model, &pass(), &tokens);
        prop_assert_eq!(&run(&*model, &pass().beginning_from(&plain), &tokens), &whole);
        // A hook that sees sites is shown all of them.
        let sites: Arc<Mutex<Vec<usize>>> = Arc::default();
        let seen = sites.clone();
        let watched = pass().beginning_from(&plain).on_read(move |site, _| {
            seen.lock().unwrap().push(site);
            Ok(())
        });
        prop_assert_eq!(run(&*model, &watched, &tokens), whole);
        let reading = (0..graph.site_count()).filter(|&site| !graph.readers_of(site).is_empty());
        prop_assert_eq!(sites.lock().unwrap().clone(), reading.collect::<Vec<_>>());
        // Attention is shown from where it begins.
        let layers: Arc<Mutex<Vec<usize>>> = Arc::default();
        let seen = layers.clone();
        let watched = pass().beginning_from(&plain).on_attention(move |layer, _| {
            seen.lock().unwrap().push(layer);
            Ok(())
        });
        run(&*model, &watched, &tokens);
        let is_ablated = |(w, r): &(Writer, Reader)| *r >= first && some(*w, *r);
        let led_to = graph.edges().filter(is_ablated).map(|(_, r)| r.0).min();
        // The first reader of each layer; nothing but the readout is left where no edge, or one to the logits, is
        // ablated.
        let layer = |reader: &usize| graph.readers()[*reader].node.layer();
        let readers = 0..graph.readers().len() - 1;
        let blocks = readers.filter(|r| *r == 0 || layer(r) != layer(&(r - 1)));
        let blocks: Vec<usize> = blocks.chain([graph.readers().len() - 1]).collect();
        let begin = blocks.iter().filter(|&&block| led_to.is_none_or(|r| block <= r)).count() - 1;
        let blocks = &blocks[1..];
        prop_assert_eq!(layers.lock().unwrap().clone(), (begin..blocks.len()).collect::<Vec<_>>());
    }

    /// What every reader is given instead of a writer's output might as well have been written.
    #[test]
    fn ablating_all_edges_of_a_writer_replaces_what_it_writes(
        (geometry, form, seed) in cases(), which in any::<prop::sample::Index>(), whole in any::<bool>(),
    ) {
        let model = geometry.model_in_float64(seed);
        let writer = which.index(model.graph().writers().len());
        let by = ablated(&*model, form, seed);
        let d_model = model.parameters().iter().map(|(_, p)| p.width()).max().unwrap();
        let output = match &by {
            Ablated::Zero => Tensor::zeros((BATCH * SEQ, d_model), candle_core::DType::F64, &Device::Cpu).unwrap(),
            Ablated::Constant(vectors) => vectors.get(writer).unwrap().unsqueeze(0).unwrap().repeat((BATCH * SEQ, 1)).unwrap(),
            Ablated::ByPosition(vectors) => vectors.get(writer).unwrap().repeat((BATCH, 1)).unwrap(),
            Ablated::Values(values) => values.get(writer).unwrap(),
        };
        let edges = AblatedEdges::new(model.graph(), by, |w, _| w.0 == writer);
        let by_edges = run(&*model, &Pass::forward_only().ablating(Arc::new(edges)), &tokens(seed));
        let replacing = replacing(Pass::forward_only(), &*model, writer, &output, whole);
        let replaced = run(&*model, &replacing, &tokens(seed));
        prop_assert!(distance(&by_edges, &replaced) < 1e-9, "{}", distance(&by_edges, &replaced));
        // A replacement that is given again is as it was.
        let again = run(&*model, &replacing, &tokens(seed));
        prop_assert!(replaced.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    /// A reader's input, worked out from its definition: the sum of what was written before, along
    /// ablated edges exchanged. Here of the unembedding's, whose logits then follow.
    #[test]
    fn logits_read_the_sum_of_what_is_kept_and_what_is_ablated((geometry, form, seed) in cases()) {
        let model = geometry.model_in_float64(seed);
        let graph = model.graph();
        let last = Reader(graph.readers().len() - 1);
        let is_ablated = some_edges(seed);
        let by = ablated(&*model, form, seed);
        let edges = AblatedEdges::new(graph, by.clone(), |w, r| r == last && is_ablated(w, r));
        let ablating = run(&*model, &Pass::forward_only().ablating(Arc::new(edges)), &tokens(seed));

        let sites: Arc<Mutex<Vec<(usize, Tensor)>>> = Arc::default();
        let (shown, counts) = (sites.clone(), (0..graph.site_count()).map(|s| graph.writers_of(s).len()).collect::<Vec<_>>());
        let pass = Pass::forward_only().on_write(move |written| {
            let outputs = match &written {
                Written::Embedding { output, .. } => output.unsqueeze(0)?,
                Written::Projected { writing, z, output, .. } => {
                    let (rows, writers) = (z.dim(0)?, counts[writing.site]);
                    let z = z.reshape((rows, writers, ()))?.transpose(0, 1)?.contiguous()?;
                    let weight = writing.weight.tensor.reshape((writers, (), writing.weight.tensor.dim(1)?))?;
                    let outputs = z.matmul(&weight)?;
                    let outputs = match &writing.norm {
                        // γ ⊙ W z / rms(Σ W z).
                        Some(norm) => {
                            let rms = (outputs.sum(0)?.sqr()?.mean_keepdim(1)? + norm.epsilon)?.sqrt()?;
                            let gain = (&norm.weight.tensor + norm.offset)?;
                            outputs.broadcast_div(&rms.unsqueeze(0)?)?.broadcast_mul(&gain)?
                        }
                        None => outputs,
                    };
                    assert!(writing.norm.is_none() || distance(
                        &outputs.sum(0)?.flatten_all()?.to_vec1::<f64>()?, &output.flatten_all()?.to_vec1::<f64>()?,
                    ) < 1e-12);
                    match &writing.bias {
                        Some(bias) if writing.bias_is_written => outputs.broadcast_add(&bias.tensor)?,
                        _ => outputs,
                    }
                }
            };
            let site = match written { Written::Embedding { site, .. } => site, Written::Projected { writing, .. } => writing.site };
            shown.lock().unwrap().push((site, outputs));
            Ok(())
        });
        model.forward(&pass, &tokens(seed)).unwrap();
        let mut written = Vec::new();
        for (_, outputs) in sites.lock().unwrap().iter() {
            (0..outputs.dim(0).unwrap()).for_each(|i| written.push(outputs.get(i).unwrap()));
        }
        let mut shift = written[0].zeros_like().unwrap();
        for (writer, own) in written.iter().enumerate().filter(|(w, _)| is_ablated(Writer(*w), last)) {
            let other = match &by {
                Ablated::Zero => own.zeros_like().unwrap(),
                Ablated::Constant(vectors) => vectors.get(writer).unwrap().broadcast_as(own.shape()).unwrap().contiguous().unwrap(),
                Ablated::ByPosition(vectors) => vectors.get(writer).unwrap().repeat((BATCH, 1)).unwrap(),
                Ablated::Values(values) => values.get(writer).unwrap(),
            };
            shift = (shift + (other - own).unwrap()).unwrap();
        }
        // Adding the shift to the last write is the same to the unembedding, and to nobody else.
        let last_site = graph.site_count() - 2;
        let pass = Pass::forward_only().replacing(move |written| match written {
            Written::Projected { writing, output, .. } if writing.site == last_site => {
                let own = match &writing.bias {
                    Some(bias) if writing.bias_is_written => output.broadcast_add(&bias.tensor)?,
                    _ => output.clone(),
                };
                Ok(Some(Replacement::Site((own + &shift)?)))
            }
            _ => Ok(None),
        });
        let expected = run(&*model, &pass, &tokens(seed));
        prop_assert!(distance(&expected, &ablating) < 1e-9, "{}", distance(&expected, &ablating));
    }

    /// Every weight's gradient, with edges ablated and a write replaced in one pass.
    #[test]
    fn gradients_through_interventions_agree_with_central_differences(
        (geometry, form, seed) in cases(), which in any::<prop::sample::Index>(), replaces in any::<bool>(),
        checkpoints in any::<bool>(), ablates in any::<bool>(),
    ) {
        let model = geometry.model_in_float64(seed);
        let graph = model.graph();
        let writer = which.index(graph.writers().len());
        let d_model = model.parameters().iter().map(|(_, p)| p.width()).max().unwrap();
        let output = noise((BATCH * SEQ, d_model), seed + 5);
        // Not by nothing: a norm that reads next to nothing, and another behind it, multiply a step so
        // often that a difference says nothing of the gradient.
        let edges = edges(&*model, 1 + form % 3, seed);
        let changed = |pass: Pass| {
            let pass = pass.with_checkpoints(checkpoints);
            let pass = if ablates { pass.ablating(edges.clone()) } else { pass };
            if replaces { replacing(pass, &*model, writer, &output, false) } else { pass }
        };
        let pass = changed(Pass::with_gradients(&Device::Cpu).unwrap());
        let total = loss(&*model, &pass, &tokens(seed));
        let parameters = model.parameters();
        let mut gradients = Gradients::new(parameters, Selection::blocks(parameters, |_, _| true));
        pass.backward(&total, &mut |left| gradients.accumulate(&left)).unwrap();
        for (index, (id, parameter)) in parameters.iter().enumerate() {
            for block in &parameter.blocks {
                let entries = block.rows.len() * parameter.width();
                let entry = block.rows.start * parameter.width() + (index * 7919 + 5) % entries;
                let expected = central_difference(&parameter.tensor, entry, || {
                    Ok(scalar(&loss(&*model, &changed(Pass::forward_only()), &tokens(seed)))?)
                }).unwrap();
                let found = gradients.get(id).map_or(0.0, |gradient| {
                    gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap()[entry]
                });
                prop_assert!((found - expected).abs() <= 1e-5 * (1.0 + expected.abs()),
                    "{} {:?}: {found}, not {expected}", &parameter.name, block.owner);
            }
        }
    }

    /// As on a GPU; and token by token with a cache.
    #[test]
    fn interventions_are_the_same_composed_and_with_a_cache((geometry, form, seed) in cases()) {
        let model = geometry.model_in_float64(seed);
        // A reader of which all is ablated by nothing reads rounding, 10⁻¹⁶, which its norm multiplies by 1/√ε,
        // about 300, a layer: by the third it is 10⁻⁹. Where norms stand behind sub-layers too, by 10⁵ a layer.
        let is_steep = geometry.family.has_norms_after() || geometry.layers > 2;
        let form = if is_steep { 1 + form % 2 } else { form % 3 };
        let edges = edges(&*model, form, seed);
        let whole = run(&*model, &Pass::forward_only().ablating(edges.clone()), &tokens(seed));
        let composed = everywhere(|| run(&*model, &Pass::forward_only().ablating(edges.clone()), &tokens(seed)));
        prop_assert!(distance(&whole, &composed) < 1e-9, "{}", distance(&whole, &composed));
        let cache = Arc::new(Mutex::new(Cache::new(vec![0; BATCH], SEQ)));
        let width = whole.len() / (BATCH * SEQ);
        for position in 0..SEQ {
            let token = tokens(seed).narrow(1, position, 1).unwrap().contiguous().unwrap();
            let pass = Pass::continuing(cache.clone()).ablating(edges.clone());
            let readout = model.forward(&pass, &token).unwrap();
            let rows: Vec<u32> = (0..BATCH as u32).collect();
            let found = readout.logits(&rows).unwrap().to_vec2::<f64>().unwrap();
            for (sequence, found) in found.iter().enumerate() {
                let expected = &whole[(sequence * SEQ + position) * width..][..width];
                prop_assert!(distance(expected, found) < 1e-9);
            }
        }
    }

    /// The stream that a site reads is the sum of what was written before; attention is a distribution
    /// over the tokens up to the query's own, whose mean of values is z.
    #[test]
    fn hooks_show_what_is_read_and_attended_to((geometry, _, seed) in cases()) {
        let model = geometry.model_in_float64(seed);
        let seen: Arc<Mutex<(Vec<usize>, Vec<Tensor>)>> = Arc::default();
        let (reads, patterns) = (seen.clone(), seen.clone());
        let pass = Pass::forward_only()
            .on_read(move |site, x| {
                assert_eq!(x.dim(0)?, BATCH * SEQ);
                reads.lock().unwrap().0.push(site);
                Ok(())
            })
            .on_attention(move |_, pattern| {
                patterns.lock().unwrap().1.push(pattern.clone());
                Ok(())
            });
        let watched = run(&*model, &pass, &tokens(seed));
        let plain = run(&*model, &Pass::forward_only(), &tokens(seed));
        prop_assert!(watched.iter().zip(&plain).all(|(a, b)| a.to_bits() == b.to_bits()));
        let seen = seen.lock().unwrap();
        let graph = model.graph();
        let reading: Vec<usize> =
            (0..graph.site_count()).filter(|&site| !graph.readers_of(site).is_empty()).collect();
        prop_assert_eq!(&seen.0, &reading);
        prop_assert_eq!(seen.1.len(), geometry.layers);
        for pattern in &seen.1 {
            prop_assert_eq!(pattern.dims(), [BATCH, geometry.heads, SEQ, SEQ]);
            for row in pattern.reshape(((), SEQ)).unwrap().to_vec2::<f64>().unwrap().iter().enumerate() {
                let (index, row) = row;
                prop_assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-9);
                prop_assert!(row[index % SEQ + 1..].iter().all(|&p| p == 0.0));
            }
        }
    }
}
