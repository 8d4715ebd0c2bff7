//! What GPT-2 and Llama have in common: alternating attention and MLP layers around a residual
//! stream, and which node owns which rows of their projections. What differs is left to their own
//! files: the names and layouts of the weights, the norm, the positions, the activation.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use circuit_framework::graph::{Graph, Input, Node, Port};
use circuit_framework::model::Projection;
use circuit_framework::ops::activation::Activation;
use circuit_framework::ops::attention::Attention;
use circuit_framework::pass::{Embedding, Reading, Unembedding, Writing};
use circuit_framework::weights::parameters::Parameter;
use circuit_framework::{Model, Owner, Parameters, Pass, Readout, Result, Tensor, refuse};

/// A layer: an attention site and an MLP site.
pub(crate) struct Layer {
    pub(crate) attention_in: Arc<Reading>,
    pub(crate) attention_out: Arc<Writing>,
    pub(crate) mlp_in: Arc<Reading>,
    pub(crate) mlp_out: Arc<Writing>,
}

/// The projections stacked in a parameter, as Hugging Face names them: each with its rows.
pub(crate) type Names = fn(&Parameter, &Attention) -> Vec<(String, Range<usize>)>;

/// A parameter as Hugging Face's files have it: one or more names, each with its tensor.
pub(crate) type Export = fn(&Parameter, &Attention) -> Result<Vec<(String, Tensor)>>;

/// A decoder-only transformer.
pub(crate) struct Transformer {
    /// Hugging Face's config.json.
    pub(crate) config: serde_json::Value,
    pub(crate) vocabulary: usize,
    pub(crate) context: usize,
    pub(crate) graph: Graph,
    pub(crate) parameters: Parameters,
    pub(crate) embedding: Arc<Embedding>,
    pub(crate) attention: Attention,
    pub(crate) layers: Vec<Layer>,
    /// What an MLP does between reading and writing.
    pub(crate) activation: Activation,
    pub(crate) unembedding: Arc<Unembedding>,
    pub(crate) export: Export,
    /// Of the parameters that `attention_in`, `attention_out`, `mlp_in` and `mlp_out` hold.
    pub(crate) names: Names,
    /// Whether Hugging Face keeps projections [in, out].
    pub(crate) fan_in_fan_out: bool,
}

impl Model for Transformer {
    fn graph(&self) -> &Graph {
        &self.graph
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn forward(&self, pass: &Pass, tokens: &Tensor) -> Result<Readout> {
        let mut x = pass.embed(&self.embedding, tokens)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let qkv = pass.read(&layer.attention_in, &x)?;
            let z = pass.attend(index, &self.attention, &qkv)?;
            x = pass.write(&layer.attention_out, &x, &z)?;
            let hidden = pass.read(&layer.mlp_in, &x)?;
            let z = pass.activate(self.activation, &hidden)?;
            x = pass.write(&layer.mlp_out, &x, &z)?;
        }
        pass.finish(&self.unembedding, &x)
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn context(&self) -> usize {
        self.context
    }

    fn config(&self) -> &serde_json::Value {
        &self.config
    }

    fn projections(&self) -> Vec<Projection> {
        let parameters = self.layers.iter().flat_map(|layer| {
            let reading = [&layer.attention_in, &layer.mlp_in].map(|r| (r.weight.id, true));
            let writing = [&layer.attention_out, &layer.mlp_out].map(|w| (w.weight.id, false));
            [reading[0], writing[0], reading[1], writing[1]]
        });
        (parameters)
            .flat_map(|(parameter, reads)| {
                let names = (self.names)(self.parameters.get(parameter), &self.attention);
                names.into_iter().map(move |(name, rows)| Projection {
                    name,
                    parameter,
                    rows,
                    reads,
                    fan_in_fan_out: self.fan_in_fan_out,
                })
            })
            .collect()
    }

    fn state_dict(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for (_, parameter) in self.parameters.iter() {
            tensors.extend((self.export)(parameter, &self.attention)?);
        }
        Ok(tensors)
    }
}

/// How an MLP of some hidden width is split into nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MlpHeads {
    /// How many heads; none where the MLP is one node.
    count: Option<usize>,
}

impl MlpHeads {
    /// Heads of `head_width` of an MLP's `width` neurons.
    pub(crate) fn new(width: usize, head_width: Option<usize>) -> Result<Self> {
        let Some(head_width) = head_width else {
            return Ok(Self { count: None });
        };
        if head_width == 0 || !width.is_multiple_of(head_width) {
            refuse!(
                "mlp_head_width is {head_width}, which does not divide the MLP's {width} neurons"
            );
        }
        Ok(Self { count: Some(width / head_width) })
    }

    /// The MLP's nodes, in the order of their rows.
    pub(crate) fn nodes(&self, layer: usize) -> Vec<Node> {
        match self.count {
            None => vec![Node::Mlp { layer, part: None }],
            Some(count) => (0..count).map(|part| Node::Mlp { layer, part: Some(part) }).collect(),
        }
    }

    /// The MLP's inputs in the order of its stacked projections, one a port.
    pub(crate) fn inputs(&self, layer: usize, ports: &[Port]) -> Vec<Input> {
        let nodes = self.nodes(layer);
        (ports.iter())
            .flat_map(|&port| nodes.iter().map(move |&node| Input { node, port }))
            .collect()
    }
}

/// An attention layer's nodes.
pub(crate) fn attention_nodes(layer: usize, heads: usize) -> Vec<Node> {
    (0..heads).map(|head| Node::Head { layer, head }).collect()
}

/// An attention layer's inputs in the order of its stacked projections: queries, keys, values.
pub(crate) fn attention_inputs(layer: usize, heads: usize, kv_heads: usize) -> Vec<Input> {
    let key_value = |head| match kv_heads == heads {
        true => Node::Head { layer, head },
        false => Node::KeyValueHead { layer, head },
    };
    let queries = attention_nodes(layer, heads);
    let keys: Vec<Node> = (0..kv_heads).map(key_value).collect();
    [(Port::Query, &queries), (Port::Key, &keys), (Port::Value, &keys)]
        .into_iter()
        .flat_map(|(port, nodes)| nodes.iter().map(move |&node| Input { node, port }))
        .collect()
}

/// Each input as the owner of its rows; the module is its place among the stacked projections.
pub(crate) fn reader_rows(inputs: &[Input]) -> Vec<(Owner, usize)> {
    let mut ports: Vec<Port> = inputs.iter().map(|input| input.port).collect();
    ports.dedup();
    let module = |input: &Input| ports.iter().position(|port| *port == input.port).unwrap_or(0);
    inputs.iter().map(|input| (Owner::Reader(*input), module(input))).collect()
}

/// Each node as the owner of its rows of the projection it writes through.
pub(crate) fn writer_rows(nodes: &[Node]) -> Vec<(Owner, usize)> {
    nodes.iter().map(|&node| (Owner::Writer(node), 0)).collect()
}

/// Embedding, then an attention site and an MLP site a layer, then the unembedding.
pub(crate) fn transformer_graph(
    layers: usize,
    heads: usize,
    kv_heads: usize,
    mlp: &MlpHeads,
    mlp_ports: &[Port],
) -> Graph {
    let mut sites = vec![(Vec::new(), vec![Node::Embed])];
    for layer in 0..layers {
        sites.push((attention_inputs(layer, heads, kv_heads), attention_nodes(layer, heads)));
        sites.push((mlp.inputs(layer, mlp_ports), mlp.nodes(layer)));
    }
    let logits = Input { node: Node::Logits, port: Port::Input };
    sites.push((vec![logits], Vec::new()));
    Graph::new(sites)
}
