//! Where a drawing's nodes and edges are. It is laid out along the layers and across them; along is to
//! the right in landscape, else up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::graph::circuit::Edge;
use crate::graph::{Graph, Input, Node, Port};

/// Between the MLPs' lane and the heads'.
const BETWEEN_LANES: f64 = 150.0;
/// Between two boxes, along and across.
const GAP: [f64; 2] = [11.0, 8.0];
/// Around the heads in a frame.
const FRAME: f64 = 3.0;
/// What the names of inputs take of a box on the side where it is read: up to "gate".
pub(super) const PORT_NAMES: f64 = 15.0;
/// What k and v take of a frame there. Heads in a frame are so much smaller.
const FRAME_PORT_NAMES: f64 = 8.0;

/// A point of the picture, y downwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub x: f64,
    pub y: f64,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} {:.1}", self.x, self.y)
    }
}

/// A box or a frame.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub low: Point,
    pub high: Point,
    pub in_use: bool,
    /// The inputs in use that have a name.
    pub ports: Vec<Port>,
    /// Heads in it, of a frame.
    pub heads: usize,
    /// The middle and half the size, each along and across.
    middle: [f64; 2],
    half: [f64; 2],
}

pub(super) struct Layout {
    landscape: bool,
    places: BTreeMap<Node, Place>,
}

/// Nodes that stand one beside the other across the layers: a layer's heads, or its MLP or its parts.
type Column = Vec<Block>;

/// What keeps together in a column: a node, or a key/value head with its group of heads.
struct Block {
    node: Node,
    heads: Vec<Node>,
}

/// Which part of the picture a node is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lane {
    Mlps,
    Heads,
    Ends,
}

fn lane(node: Node) -> Lane {
    match node {
        Node::Mlp { .. } => Lane::Mlps,
        Node::Head { .. } | Node::KeyValueHead { .. } => Lane::Heads,
        Node::Embed | Node::Logits => Lane::Ends,
    }
}

/// Columns in computation order: the heads of a layer, then its MLP.
fn column_of(node: Node) -> (usize, usize) {
    match node {
        Node::Embed => (0, 0),
        Node::Head { layer, .. } | Node::KeyValueHead { layer, .. } => (layer + 1, 0),
        Node::Mlp { layer, .. } => (layer + 1, 1),
        Node::Logits => (usize::MAX, 0),
    }
}

/// What stands in a node's box.
pub(super) fn label(node: Node) -> String {
    match node {
        Node::Head { layer, head } => format!("{layer}.{head}"),
        Node::KeyValueHead { layer, head } => format!("{layer}.kv{head}"),
        Node::Mlp { layer, part: None } => format!("m{layer}"),
        Node::Mlp { layer, part: Some(part) } => format!("m{layer}.{part}"),
        Node::Embed | Node::Logits => node.to_string(),
    }
}

impl Layout {
    pub(super) fn new(
        edges: &[Edge],
        all_of: Option<&Graph>,
        heads_per_group: usize,
        landscape: bool,
    ) -> Self {
        let mut in_use = BTreeSet::new();
        let mut ports: BTreeMap<Node, BTreeSet<Port>> = BTreeMap::new();
        for Edge { writer, reader, .. } in edges {
            in_use.extend([*writer, reader.node]);
            if reader.port != Port::Input {
                ports.entry(reader.node).or_default().insert(reader.port);
            }
        }
        let mut nodes = in_use.clone();
        if let Some(graph) = all_of {
            nodes.extend(graph.writers());
            nodes.extend(graph.readers().iter().map(|input| input.node));
        }
        let columns = columns(&nodes, heads_per_group);
        let size = size_of_box(&nodes, landscape);
        let mut layout = Self { landscape, places: BTreeMap::new() };
        let mut along = 0.0;
        let mut before: Option<Node> = None;
        for column in columns.values() {
            let Some(first) = column.first().map(|block| block.node) else { continue };
            along += match before {
                None => 0.0,
                // An MLP is in another lane than its layer's heads and the next's.
                Some(before) if lane(before) != lane(first) && lane(before) != Lane::Ends => {
                    (size[0] + GAP[0]) / 2.0
                }
                Some(_) => size[0] + GAP[0],
            };
            before = Some(first);
            layout.place_column(column, along, size, &in_use, &ports);
        }
        layout
    }

    fn place_column(
        &mut self,
        column: &Column,
        along: f64,
        size: [f64; 2],
        in_use: &BTreeSet<Node>,
        ports: &BTreeMap<Node, BTreeSet<Port>>,
    ) {
        let half = size.map(|size| size / 2.0);
        let step = size[1] + GAP[1];
        let mut add = |node: Node, middle: [f64; 2], half: [f64; 2], heads: usize| {
            let ends = [0, 1].map(|end| {
                let sign = if end == 0 { -1.0 } else { 1.0 };
                point(self.landscape, middle[0] + sign * half[0], middle[1] + sign * half[1])
            });
            let place = Place {
                low: Point { x: ends[0].x.min(ends[1].x), y: ends[0].y.min(ends[1].y) },
                high: Point { x: ends[0].x.max(ends[1].x), y: ends[0].y.max(ends[1].y) },
                in_use: in_use.contains(&node),
                ports: ports.get(&node).into_iter().flatten().copied().collect(),
                heads,
                middle,
                half,
            };
            self.places.insert(node, place);
        };
        let mut across = 0.0;
        for Block { node, heads } in column {
            match lane(*node) {
                Lane::Ends => add(*node, [along, -BETWEEN_LANES / 2.0], half, 0),
                Lane::Mlps => {
                    add(*node, [along, -BETWEEN_LANES - across], half, 0);
                    across += step;
                }
                Lane::Heads if matches!(node, Node::KeyValueHead { .. }) => {
                    let inner = heads.len().max(1) as f64 * step - GAP[1];
                    let middle = across + FRAME + (inner - size[1]) / 2.0;
                    add(
                        *node,
                        [along, middle],
                        [half[0] + FRAME, inner / 2.0 + FRAME],
                        heads.len(),
                    );
                    across += FRAME;
                    for head in heads {
                        let along = along + FRAME_PORT_NAMES / 2.0;
                        add(*head, [along, across], [half[0] - FRAME_PORT_NAMES / 2.0, half[1]], 0);
                        across += step;
                    }
                    across += if heads.is_empty() { step } else { 0.0 } + FRAME;
                }
                Lane::Heads => {
                    add(*node, [along, across], half, 0);
                    across += step;
                }
            }
        }
    }

    /// Key/value heads with the heads that share them.
    pub(super) fn frames(&self) -> impl Iterator<Item = (&Node, &Place)> {
        self.places.iter().filter(|(node, _)| matches!(node, Node::KeyValueHead { .. }))
    }

    pub(super) fn boxes(&self) -> impl Iterator<Item = (&Node, &Place)> {
        self.places.iter().filter(|(node, _)| !matches!(node, Node::KeyValueHead { .. }))
    }

    /// Where edges into an input end.
    pub(super) fn entry(&self, node: Node, port: Port) -> Option<Point> {
        self.entry_at(Input { node, port })
            .map(|[along, across]| point(self.landscape, along, across))
    }

    fn entry_at(&self, Input { node, port }: Input) -> Option<[f64; 2]> {
        let Place { middle, half, ports, .. } = self.places.get(&node)?;
        let offset = ports
            .iter()
            .position(|&other| other == port)
            .map_or(0.0, |index| half[1] * ((2 * index + 1) as f64 / ports.len() as f64 - 1.0));
        Some([middle[0] - half[0], middle[1] + offset])
    }

    /// An edge as a cubic Bézier curve.
    pub(super) fn curve(&self, writer: Node, reader: Input) -> Option<[Point; 4]> {
        let Place { middle, half, .. } = self.places.get(&writer)?;
        let from = [middle[0] + half[0], middle[1]];
        let to = self.entry_at(reader)?;
        let length = to[0] - from[0];
        let reach = (0.4 * length).max(12.0);
        let bow = self.bow(writer, reader.node, length);
        let points = [from, [from[0] + reach, from[1] + bow], [to[0] - reach, to[1] + bow], to];
        Some(points.map(|[along, across]| point(self.landscape, along, across)))
    }

    /// How far an edge is bent: one within a lane goes round the nodes between, away from the other lane.
    fn bow(&self, writer: Node, reader: Node, length: f64) -> f64 {
        let outward = match (lane(writer), lane(reader)) {
            (Lane::Mlps, Lane::Mlps) => -1.0,
            (Lane::Heads, Lane::Heads) => 1.0,
            _ => return 0.0,
        };
        if length <= GAP[0] + 1.0 {
            return 0.0;
        }
        outward * (0.22 * length).min(30.0 + 0.16 * length)
    }

    /// The corners of the whole: of boxes, frames and these edges.
    pub(super) fn extent(&self, edges: &[Edge]) -> (Point, Point) {
        // A Bézier curve at half its way, where it is bent the most.
        let middle = |[a, b, c, d]: [Point; 4]| Point {
            x: (a.x + 3.0 * b.x + 3.0 * c.x + d.x) / 8.0,
            y: (a.y + 3.0 * b.y + 3.0 * c.y + d.y) / 8.0,
        };
        let curves = edges.iter().filter_map(|edge| self.curve(edge.writer, edge.reader));
        let corners = self.places.values().flat_map(|place| [place.low, place.high]);
        let points: Vec<Point> = corners.chain(curves.map(middle)).collect();
        let (mut low, mut high) = (Point { x: 0.0, y: 0.0 }, Point { x: 0.0, y: 0.0 });
        for Point { x, y } in points {
            low = Point { x: low.x.min(x), y: low.y.min(y) };
            high = Point { x: high.x.max(x), y: high.y.max(y) };
        }
        (low, high)
    }
}

/// A point by its place along the layers and across them.
fn point(landscape: bool, along: f64, across: f64) -> Point {
    match landscape {
        true => Point { x: along, y: across },
        false => Point { x: across, y: -along },
    }
}

/// A box's size along and across, by the longest label of a head or an MLP.
fn size_of_box(nodes: &BTreeSet<Node>, landscape: bool) -> [f64; 2] {
    let labelled = |node: &&Node| matches!(node, Node::Head { .. } | Node::Mlp { .. });
    let labels = nodes.iter().filter(labelled).map(|&node| label(node));
    let longest = labels.map(|label| label.chars().count()).max().unwrap_or(0);
    let width = 5.5 * longest as f64 + 6.0;
    match landscape {
        true => [(width + PORT_NAMES).max(40.0), 22.0],
        false => [27.0, width.max(40.0)],
    }
}

/// The columns in computation order, what is in them by index.
fn columns(nodes: &BTreeSet<Node>, heads_per_group: usize) -> BTreeMap<(usize, usize), Column> {
    let group = |node: &Node| match *node {
        Node::KeyValueHead { layer, head } => {
            let heads = head * heads_per_group..(head + 1) * heads_per_group;
            heads.map(|head| Node::Head { layer, head }).collect()
        }
        _ => Vec::new(),
    };
    let framed: BTreeSet<Node> = nodes.iter().flat_map(group).collect();
    let mut columns: BTreeMap<(usize, usize), Column> = BTreeMap::new();
    for node in nodes.iter().filter(|node| !framed.contains(node)) {
        let block = Block { node: *node, heads: group(node) };
        columns.entry(column_of(*node)).or_default().push(block);
    }
    for column in columns.values_mut() {
        // A group stands where its first head would.
        column.sort_by_key(|block| block.heads.first().copied().unwrap_or(block.node));
    }
    columns
}
