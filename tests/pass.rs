//! The pass's way back, for models that do between reading and writing what it doesn't know.

use std::collections::BTreeMap;
use std::sync::Arc;

use circuit_framework::graph::{Input, Node, Port};
use circuit_framework::ops::activation::Activation;
use circuit_framework::ops::norm::Norm;
use circuit_framework::pass::{Backward, Embedding, Reading, Unembedding, Writing};
use circuit_framework::{
    Device, Graph, Model, Owner, Parameters, Pass, Readout, Result, Tensor, plugin::conformance,
};

const VOCABULARY: usize = 7;
const D_MODEL: usize = 4;
const WIDTH: usize = 6;

/// What of one or two readings becomes what is written.
type Between = fn(&Pass, &[Tensor; 2]) -> Result<Tensor>;

/// Two MLPs, of which the second may look at what the first read too.
struct Mlps {
    graph: Graph,
    parameters: Parameters,
    embedding: Arc<Embedding>,
    layers: Vec<(Arc<Reading>, Arc<Writing>)>,
    unembedding: Arc<Unembedding>,
    between: [Between; 2],
    /// Doubles the stream behind the pass's back.
    meddles: bool,
    config: serde_json::Value,
}

fn noise(shape: (usize, usize), seed: f64) -> Tensor {
    let values = (0..shape.0 * shape.1).map(|i| (i as f64 * 12.9898 + seed * 78.233).sin());
    Tensor::from_vec(values.collect(), shape, &Device::Cpu).unwrap()
}

impl Mlps {
    fn new(between: [Between; 2]) -> Self {
        let mut parameters = Parameters::default();
        let shared = |parameters: &mut Parameters, name: &str, rows: usize, seed: f64| {
            parameters.add_shared(name, noise((rows, D_MODEL), seed)).unwrap()
        };
        let tokens = shared(&mut parameters, "embed", VOCABULARY, 0.1);
        let mut sites = vec![(vec![], vec![Node::Embed])];
        let layers = (0..2)
            .map(|layer| {
                let node = Node::Mlp { layer, part: None };
                let input = Input { node, port: Port::Input };
                sites.push((vec![input], vec![node]));
                let seed = 1.0 + layer as f64;
                let gain = shared(&mut parameters, &format!("norm {layer}"), 1, seed + 0.1);
                let mut owned = |name: &str, owner: Owner, seed: f64| {
                    let tensor = noise((WIDTH, D_MODEL), seed);
                    parameters.add(format!("{name} {layer}"), tensor, &[(owner, 0)]).unwrap()
                };
                let site = 1 + layer;
                let reading = Reading {
                    site,
                    norm: Some(Norm { weight: gain, bias: None, epsilon: 1e-3, offset: 0.0 }),
                    weight: owned("in", Owner::Reader(input), seed + 0.2),
                    bias: None,
                };
                let weight = owned("out", Owner::Writer(node), seed + 0.3);
                let writing =
                    Writing { site, weight, bias: None, bias_is_written: false, norm: None };
                (Arc::new(reading), Arc::new(writing))
            })
            .collect();
        sites.push((vec![Input { node: Node::Logits, port: Port::Input }], vec![]));
        let weight = shared(&mut parameters, "unembed", VOCABULARY, 0.4);
        let gain = shared(&mut parameters, "final norm", 1, 0.5);
        let norm = Norm { weight: gain, bias: None, epsilon: 1e-3, offset: 0.0 };
        Self {
            graph: Graph::new(sites),
            parameters,
            embedding: Arc::new(Embedding { tokens, positions: None, scale: 1.0 }),
            layers,
            unembedding: Arc::new(Unembedding { site: 3, norm, weight, cap: None }),
            between,
            meddles: false,
            config: serde_json::json!({}),
        }
    }
}

impl Model for Mlps {
    fn graph(&self) -> &Graph {
        &self.graph
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn forward(&self, pass: &Pass, tokens: &Tensor) -> Result<Readout> {
        let mut x = pass.embed(&self.embedding, tokens)?;
        let mut read: Vec<Tensor> = Vec::new();
        for ((reading, writing), between) in self.layers.iter().zip(self.between) {
            if self.meddles {
                x = (x * 2.0)?;
            }
            read.push(pass.read(reading, &x)?);
            let (first, last) = (read[0].clone(), read[read.len() - 1].clone());
            let z = between(pass, &[first, last])?;
            x = pass.write(writing, &x, &z)?;
        }
        pass.finish(&self.unembedding, &x)
    }

    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn context(&self) -> usize {
        16
    }

    fn config(&self) -> &serde_json::Value {
        &self.config
    }

    fn state_dict(&self) -> Result<BTreeMap<String, Tensor>> {
        Ok(BTreeMap::new())
    }
}

fn gelu(pass: &Pass, [_, own]: &[Tensor; 2]) -> Result<Tensor> {
    pass.activate(Activation::GeluTanh, own)
}

fn tanh(_: &Pass, [_, own]: &[Tensor; 2]) -> Result<Tensor> {
    Ok(own.tanh()?)
}

fn scaled_gelu(pass: &Pass, [_, own]: &[Tensor; 2]) -> Result<Tensor> {
    Ok((pass.activate(Activation::GeluTanh, own)? * 0.5)?)
}

fn gelu_of_the_first(pass: &Pass, [first, _]: &[Tensor; 2]) -> Result<Tensor> {
    pass.activate(Activation::GeluTanh, first)
}

fn product_with_the_first(pass: &Pass, [first, own]: &[Tensor; 2]) -> Result<Tensor> {
    Ok((pass.activate(Activation::GeluTanh, own)? * first.tanh()?)?)
}

/// A reading may be used by the pass's own operations, by candle's, by both, and more than once.
#[test]
fn gradients_are_whole_whatever_stands_between() {
    let cases: [(&str, [Between; 2]); 7] = [
        ("the pass's own", [gelu, gelu]),
        ("candle's", [tanh, tanh]),
        ("one behind the other", [scaled_gelu, gelu]),
        ("twice by the pass's own", [gelu, gelu_of_the_first]),
        ("by both", [gelu, product_with_the_first]),
        ("twice by candle's", [tanh, product_with_the_first]),
        ("by candle's, then by its own", [scaled_gelu, gelu_of_the_first]),
    ];
    for (name, between) in cases {
        let model = Mlps::new(between);
        // A second reading that nothing is made of has no gradient to agree with.
        let outcome = match name.contains("twice by the pass's") || name.ends_with("its own") {
            true => gradients_but_of_the_second_reading(&model),
            false => conformance::model(&model, 3),
        };
        assert!(outcome.is_ok(), "{name}: {}", outcome.unwrap_err());
    }
}

/// The first reading's weight gradient against central differences.
fn gradients_but_of_the_second_reading(model: &Mlps) -> Result<()> {
    use circuit_framework::tuning::gradients::Gradients;
    use circuit_framework::weights::parameters::Selection;
    let tokens = Tensor::new(&[[1u32, 4, 2]], &Device::Cpu)?;
    let sum = |pass: &Pass| -> Result<Tensor> {
        Ok(model.forward(pass, &tokens)?.logits_of(&[0, 2], &[3, 5])?.sum_all()?)
    };
    let pass = Pass::with_gradients(&Device::Cpu)?;
    let parameters = model.parameters();
    let mut gradients = Gradients::new(parameters, Selection::blocks(parameters, |_, _| true));
    pass.backward(&sum(&pass)?, &mut |captured| gradients.accumulate(&captured))?;
    let weight = &model.layers[0].0.weight;
    let found: Vec<f64> = gradients.get(weight.id).unwrap().flatten_all()?.to_vec1()?;
    for (entry, found) in found.iter().enumerate() {
        let expected = conformance::central_difference(&weight.tensor, entry, || {
            Ok(sum(&Pass::forward_only())?.to_scalar::<f64>()?)
        })?;
        assert!((found - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{found} for {expected}");
    }
    Ok(())
}

#[test]
fn a_stream_changed_behind_the_pass_is_refused() {
    let model = Mlps { meddles: true, ..Mlps::new([gelu, gelu]) };
    let tokens = Tensor::new(&[[1u32, 4, 2]], &Device::Cpu).unwrap();
    let error = model.forward(&Pass::forward_only(), &tokens).err().unwrap().to_string();
    assert!(error.contains("not the residual stream"), "{error}");
}

#[test]
fn a_pass_is_used_up_unless_it_is_retained() {
    let model = Mlps::new([gelu, tanh]);
    let tokens = Tensor::new(&[[1u32, 4, 2]], &Device::Cpu).unwrap();
    let pass = Pass::with_gradients(&Device::Cpu).unwrap();
    let sum = model.forward(&pass, &tokens).unwrap().logits(&[0, 2]).unwrap().sum_all().unwrap();
    let mut left = Vec::new();
    pass.backward_retaining(&sum, Backward::default(), &mut |_| {
        left.push("retaining");
        Ok(())
    })
    .unwrap();
    pass.backward(&sum, &mut |_| {
        left.push("last");
        Ok(())
    })
    .unwrap();
    let count = |which: &str| left.iter().filter(|way| **way == which).count();
    assert!(count("last") > 5 && count("last") == count("retaining"), "{left:?}");
    let error = pass.backward(&sum, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("used this pass up"), "{error}");
}
