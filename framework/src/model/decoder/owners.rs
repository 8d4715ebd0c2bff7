//! A decoder's nodes: the order of its sites, and which node owns which rows of a projection.

use super::{Decoder, Layer};
use crate::graph::{Graph, Input, Node, Port};
use crate::memory::product;
use crate::weights::parameters::Owner;
use crate::{Result, refuse};

/// The nodes of one layer.
pub(super) struct LayerNodes {
    layer: usize,
    heads: usize,
    kv_heads: usize,
    has_mlp: bool,
    /// How many nodes the MLP is; none where it is one.
    mlp_parts: Option<usize>,
    mlp_ports: &'static [Port],
}

impl LayerNodes {
    pub(super) fn new(decoder: &Decoder, index: usize, layer: &Layer) -> Result<Self> {
        let width = layer.mlp.as_ref().map_or(0, |mlp| mlp.width);
        let mlp_parts = match decoder.mlp_head_width {
            None => None,
            Some(part) if part > 0 && width.is_multiple_of(part) => Some(width / part),
            Some(part) => {
                refuse!("mlp_head_width is {part}, which does not divide the MLP's {width} neurons")
            }
        };
        let mlp_ports: &[Port] =
            match layer.mlp.as_ref().is_some_and(|mlp| mlp.activation.is_gated()) {
                true => &[Port::Gate, Port::Up],
                false => &[Port::Input],
            };
        let (heads, kv_heads) = (layer.attention.heads, layer.attention.kv_heads);
        let has_mlp = layer.mlp.is_some();
        Ok(Self { layer: index, heads, kv_heads, has_mlp, mlp_parts, mlp_ports })
    }

    /// How many writers and readers there are in the layer.
    pub(super) fn counts(&self) -> [u64; 2] {
        let parts = self.mlp_parts.unwrap_or(1) * usize::from(self.has_mlp);
        let readers =
            product(&[self.kv_heads, 2]).saturating_add(product(&[parts, self.mlp_ports.len()]));
        [self.heads.saturating_add(parts) as u64, readers.saturating_add(self.heads as u64)]
    }

    /// The heads, in the order of their rows.
    pub(super) fn heads(&self) -> Vec<Node> {
        (0..self.heads).map(|head| Node::Head { layer: self.layer, head }).collect()
    }

    /// The attention's inputs in the order of the stacked projections: queries, keys, values.
    pub(super) fn attention_inputs(&self) -> Vec<Input> {
        let layer = self.layer;
        let key_value = |head| match self.kv_heads == self.heads {
            true => Node::Head { layer, head },
            false => Node::KeyValueHead { layer, head },
        };
        let queries = self.heads();
        let keys: Vec<Node> = (0..self.kv_heads).map(key_value).collect();
        [(Port::Query, &queries), (Port::Key, &keys), (Port::Value, &keys)]
            .into_iter()
            .flat_map(|(port, nodes)| nodes.iter().map(move |&node| Input { node, port }))
            .collect()
    }

    /// The MLP's nodes, in the order of their rows.
    pub(super) fn mlp(&self) -> Vec<Node> {
        let layer = self.layer;
        match self.mlp_parts {
            None => vec![Node::Mlp { layer, part: None }],
            Some(count) => (0..count).map(|part| Node::Mlp { layer, part: Some(part) }).collect(),
        }
    }

    /// The MLP's inputs in the order of its stacked projections, one a port.
    pub(super) fn mlp_inputs(&self) -> Vec<Input> {
        let nodes = self.mlp();
        (self.mlp_ports.iter())
            .flat_map(|&port| nodes.iter().map(move |&node| Input { node, port }))
            .collect()
    }
}

/// Each input as the owner of its rows; the module is its place among the stacked projections.
pub(super) fn reader_rows(inputs: &[Input]) -> Vec<(Owner, usize)> {
    let mut ports: Vec<Port> = inputs.iter().map(|input| input.port).collect();
    ports.dedup();
    let module = |input: &Input| ports.iter().position(|port| *port == input.port).unwrap_or(0);
    inputs.iter().map(|input| (Owner::Reader(*input), module(input))).collect()
}

/// Each node as the owner of its rows of the projection it writes through.
pub(super) fn writer_rows(nodes: &[Node]) -> Vec<(Owner, usize)> {
    nodes.iter().map(|&node| (Owner::Writer(node), 0)).collect()
}

/// Embedding, then an attention site and an MLP site a layer, then the unembedding. In a parallel layer both
/// read before either writes: sites that only read, then sites that only write.
pub(super) fn graph(layers: &[LayerNodes], is_parallel: bool) -> Graph {
    let mut sites = vec![(Vec::new(), vec![Node::Embed])];
    for layer in layers {
        let (reads, writes) = (layer.attention_inputs(), layer.heads());
        match (is_parallel, layer.has_mlp) {
            (_, false) => sites.push((reads, writes)),
            (false, true) => sites.extend([(reads, writes), (layer.mlp_inputs(), layer.mlp())]),
            (true, true) => sites.extend([
                (reads, Vec::new()),
                (layer.mlp_inputs(), Vec::new()),
                (Vec::new(), writes),
                (Vec::new(), layer.mlp()),
            ]),
        }
    }
    sites.push((vec![Input { node: Node::Logits, port: Port::Input }], Vec::new()));
    Graph::new(sites)
}
