//! A circuit as an SVG drawing: layers as rows, bottom to top in computation order, an MLP above
//! its layer's heads; an edge's width is its |score|, its colour its sign.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::circuit::Circuit;
use crate::graph::{Graph, Node};

/// Edges drawn at the most; a caption says how many are left out.
const MOST_EDGES: usize = 300;
/// Rows of more nodes than this show only the circuit's.
const MOST_NODES: usize = 40;

const NODE_WIDTH: f64 = 46.0;
const NODE_HEIGHT: f64 = 20.0;
const COLUMN: f64 = 58.0;
const ROW: f64 = 62.0;
const MARGIN: f64 = 28.0;
const LABELS: f64 = 76.0;
const HEADER: f64 = 64.0;

/// The drawing as a whole SVG document.
pub fn svg(circuit: &Circuit, graph: &Graph, title: &str) -> String {
    let layout = Layout::new(circuit, graph);
    let mut out = String::new();
    let drawn = circuit.edges.len().min(MOST_EDGES);
    let left_out = circuit.edges.len() - drawn;
    let caption = match left_out {
        0 => format!("{drawn} edges"),
        _ => format!("the {drawn} strongest edges; {left_out} weaker ones are left out"),
    };
    // Writing to a String cannot fail.
    let _ = layout.write(&mut out, circuit, title, &caption);
    out
}

struct Layout {
    /// Each row's label and nodes, bottom to top.
    rows: Vec<(String, Vec<Node>)>,
    places: BTreeMap<Node, (f64, f64)>,
    in_circuit: BTreeSet<Node>,
    width: f64,
    height: f64,
}

/// Rows in computation order: the heads of a layer, then its MLP.
fn row_of(node: Node) -> (usize, usize) {
    match node {
        Node::Embed => (0, 0),
        Node::Head { layer, .. } | Node::KeyValueHead { layer, .. } => (layer + 1, 0),
        Node::Mlp { layer, .. } => (layer + 1, 1),
        Node::Logits => (usize::MAX, 0),
    }
}

fn row_label(node: Node) -> String {
    match node {
        Node::Head { layer, .. } | Node::KeyValueHead { layer, .. } => {
            format!("layer {layer} heads")
        }
        Node::Mlp { layer, .. } => format!("layer {layer} MLP"),
        Node::Embed | Node::Logits => String::new(),
    }
}

fn node_label(node: Node) -> String {
    match node {
        Node::Head { layer, head } => format!("{layer}.{head}"),
        Node::KeyValueHead { layer, head } => format!("{layer}.kv{head}"),
        Node::Mlp { layer, part: Some(part) } => format!("m{layer}.{part}"),
        other => other.to_string(),
    }
}

impl Layout {
    fn new(circuit: &Circuit, graph: &Graph) -> Self {
        let writers = circuit.edges.iter().map(|edge| edge.writer);
        let in_circuit: BTreeSet<Node> =
            writers.chain(circuit.edges.iter().map(|edge| edge.reader.node)).collect();
        let readers = graph.readers().iter().map(|input| input.node);
        let nodes: BTreeSet<Node> = graph.writers().iter().copied().chain(readers).collect();
        let mut by_row: BTreeMap<(usize, usize), Vec<Node>> = BTreeMap::new();
        for node in nodes {
            by_row.entry(row_of(node)).or_default().push(node);
        }
        let rows: Vec<(String, Vec<Node>)> = (by_row.into_values())
            .map(|mut nodes| {
                let label = row_label(nodes[0]);
                if nodes.len() > MOST_NODES {
                    nodes.retain(|node| in_circuit.contains(node));
                }
                (label, nodes)
            })
            .collect();
        let columns = rows.iter().map(|(_, nodes)| nodes.len()).max().unwrap_or(0).max(8);
        let width = LABELS + columns as f64 * COLUMN + 2.0 * MARGIN;
        let height = HEADER + rows.len() as f64 * ROW + MARGIN;
        let mut places = BTreeMap::new();
        for (row, (_, nodes)) in rows.iter().enumerate() {
            let y = height - MARGIN - (row as f64 + 0.5) * ROW;
            let free = columns as f64 * COLUMN / nodes.len().max(1) as f64;
            for (column, &node) in nodes.iter().enumerate() {
                places.insert(node, (MARGIN + LABELS + (column as f64 + 0.5) * free, y));
            }
        }
        Self { rows, places, in_circuit, width, height }
    }

    fn write(
        &self,
        out: &mut String,
        circuit: &Circuit,
        title: &str,
        caption: &str,
    ) -> std::fmt::Result {
        let (width, height) = (self.width, self.height);
        writeln!(
            out,
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}" font-family="Helvetica, Arial, sans-serif">"#
        )?;
        writeln!(out, r#"<rect width="100%" height="100%" fill="white"/>"#)?;
        writeln!(
            out,
            r##"<text x="{MARGIN}" y="26" font-size="15" fill="#222">{}</text>"##,
            escape(title)
        )?;
        writeln!(
            out,
            r##"<text x="{MARGIN}" y="46" font-size="11" fill="#555">{caption}; width: |score|; <tspan fill="{POSITIVE}">blue: supports the metric</tspan>, <tspan fill="{NEGATIVE}">red: works against it</tspan></text>"##
        )?;
        self.write_edges(out, circuit)?;
        self.write_nodes(out)?;
        writeln!(out, "</svg>")
    }

    fn write_edges(&self, out: &mut String, circuit: &Circuit) -> std::fmt::Result {
        let mut edges: Vec<_> = circuit.edges.iter().collect();
        edges.sort_by(|a, b| b.score.abs().total_cmp(&a.score.abs()));
        edges.truncate(MOST_EDGES);
        let largest =
            edges.first().map_or(1.0, |edge| f64::from(edge.score.abs())).max(f64::MIN_POSITIVE);
        // The strongest last, so that they lie on top.
        for edge in edges.into_iter().rev() {
            let (Some(&(x1, y1)), Some(&(x2, y2))) =
                (self.places.get(&edge.writer), self.places.get(&edge.reader.node))
            else {
                continue;
            };
            let share = f64::from(edge.score.abs()) / largest;
            let stroke = if edge.score >= 0.0 { POSITIVE } else { NEGATIVE };
            let (y1, y2) = (y1 - NODE_HEIGHT / 2.0, y2 + NODE_HEIGHT / 2.0);
            let bend = (y1 - y2) / 2.0;
            writeln!(
                out,
                r#"<path d="M{x1:.1} {y1:.1} C{x1:.1} {:.1} {x2:.1} {:.1} {x2:.1} {y2:.1}" fill="none" stroke="{stroke}" stroke-width="{:.2}" stroke-opacity="{:.2}"><title>{} → {}: {:.4e}</title></path>"#,
                y1 - bend,
                y2 + bend,
                0.4 + 4.6 * share,
                0.3 + 0.55 * share,
                edge.writer,
                edge.reader,
                edge.score,
            )?;
        }
        Ok(())
    }

    fn write_nodes(&self, out: &mut String) -> std::fmt::Result {
        for (label, nodes) in &self.rows {
            let Some(&(_, y)) = nodes.first().and_then(|node| self.places.get(node)) else {
                continue;
            };
            writeln!(
                out,
                r##"<text x="{MARGIN}" y="{:.1}" font-size="10" fill="#777">{label}</text>"##,
                y + 4.0
            )?;
            for node in nodes {
                let (x, y) = self.places[node];
                let used = self.in_circuit.contains(node);
                let (fill, stroke, text) =
                    if used { ("#fff7dd", "#8a6d1d", "#222") } else { ("#f6f6f6", "#ddd", "#bbb") };
                writeln!(
                    out,
                    r#"<rect x="{:.1}" y="{:.1}" width="{NODE_WIDTH}" height="{NODE_HEIGHT}" rx="5" fill="{fill}" stroke="{stroke}"/><text x="{x:.1}" y="{:.1}" font-size="10" text-anchor="middle" fill="{text}">{}</text>"#,
                    x - NODE_WIDTH / 2.0,
                    y - NODE_HEIGHT / 2.0,
                    y + 3.5,
                    node_label(*node),
                )?;
            }
        }
        Ok(())
    }
}

const POSITIVE: &str = "#2166ac";
const NEGATIVE: &str = "#b2182b";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
