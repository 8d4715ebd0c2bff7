//! A circuit as an SVG drawing. Layers follow one another from left to right, or from bottom to top; MLPs
//! are on one side, heads on the other. An edge's width is its |score|, its colour its sign, or in which of
//! two circuits it is, and where it ends the input it reads through is named: q, k, v, gate, up. Keys and values that heads share are an
//! input of the frame around those heads. Where things are is `layout`'s.

mod layout;

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::graph::circuit::Edge;
use crate::graph::{Graph, Input, Node, Port};
use crate::results::provenance::Provenance;
use crate::text::escape;
use layout::{Layout, Place, Point};

/// What a drawing shows, and how.
#[derive(Clone, Debug)]
pub struct Drawing<'a> {
    pub title: String,
    /// What the circuit is of: its metric, method, ablation, number of examples; empty where nobody knows.
    pub subtitle: String,
    /// Best first.
    pub edges: &'a [Edge],
    /// At most so many edges are drawn, the strongest; a caption says how many are left out.
    pub most_edges: usize,
    /// Where given, all nodes of this graph are drawn, pale where the circuit leaves them alone; else the
    /// nodes in use.
    pub all_of: Option<&'a Graph>,
    /// How many heads share a key/value head; 0 where nobody knows.
    pub heads_per_group: usize,
    /// From left to right instead of from bottom to top.
    pub landscape: bool,
    /// Where given, an edge's colour isn't its sign's.
    pub colours: Option<Colours<'a>>,
}

/// Colours of edges, and what they mean.
#[derive(Clone, Debug)]
pub struct Colours<'a> {
    /// Each colour, as SVG writes it, with its meaning.
    pub legend: Vec<(&'static str, &'a str)>,
    /// Each edge's colour, by its place in the legend.
    pub of: BTreeMap<(Node, Input), usize>,
}

/// How many edges a drawing shows at the most where nobody says.
pub const MOST_EDGES: usize = 300;

const MARGIN: f64 = 24.0;
/// For the title and what stands under it.
const HEADER: f64 = 90.0;
/// The title needs so much, however small the circuit is.
const LEAST_WIDTH: f64 = 680.0;
/// From a label's middle line to its base.
const BASE: f64 = 3.5;

const POSITIVE: &str = "#2166ac";
const NEGATIVE: &str = "#b2182b";

impl<'a> Drawing<'a> {
    /// The drawing of a circuit's edges: the nodes at their ends, from bottom to top.
    pub fn of(edges: &'a [Edge], title: &str, provenance: &Provenance) -> Self {
        Self {
            title: title.to_owned(),
            subtitle: provenance.to_string(),
            edges,
            most_edges: MOST_EDGES,
            all_of: None,
            heads_per_group: provenance.model.heads_per_group(),
            landscape: false,
            colours: None,
        }
    }

    /// The whole SVG document.
    pub fn svg(&self) -> String {
        let mut strongest: Vec<Edge> = self.edges.to_vec();
        strongest.sort_by(|a, b| b.score.abs().total_cmp(&a.score.abs()));
        strongest.truncate(self.most_edges);
        let layout = Layout::new(&strongest, self.all_of, self.heads_per_group, self.landscape);
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out, &layout, &strongest);
        out
    }

    fn write(&self, out: &mut String, layout: &Layout, strongest: &[Edge]) -> std::fmt::Result {
        let (low, high) = layout.extent(strongest);
        let width = (high.x - low.x + 2.0 * MARGIN).max(LEAST_WIDTH);
        let height = high.y - low.y + 2.0 * MARGIN + HEADER;
        let (left, top) = ((low.x + high.x - width) / 2.0, low.y - MARGIN - HEADER);
        writeln!(
            out,
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" viewBox="{left:.0} {top:.0} {width:.0} {height:.0}" font-family="Helvetica, Arial, sans-serif">"#
        )?;
        writeln!(
            out,
            r#"<rect x="{left:.0}" y="{top:.0}" width="{width:.0}" height="{height:.0}" fill="white"/>"#
        )?;
        let frames = layout.frames().count() > 0;
        self.write_header(out, Point { x: left + MARGIN, y: top + 26.0 }, strongest.len(), frames)?;
        self.write_edges(out, layout, strongest)?;
        for (&node, place) in layout.frames() {
            write_frame(out, node, place)?;
        }
        for (&node, place) in layout.boxes() {
            write_box(out, node, place, self.landscape)?;
        }
        for (node, place) in layout.frames().chain(layout.boxes()) {
            write_ports(out, layout, *node, place, self.landscape)?;
        }
        writeln!(out, "</svg>")
    }

    fn write_header(
        &self,
        out: &mut String,
        at: Point,
        drawn: usize,
        frames: bool,
    ) -> std::fmt::Result {
        let edges = match self.edges.len() - drawn {
            0 => format!("{drawn} edges"),
            rest => format!("the {drawn} strongest edges; {rest} weaker ones are left out"),
        };
        let subtitle = match &self.subtitle[..] {
            "" => edges,
            subtitle => format!("{subtitle}; {edges}"),
        };
        let frame = if frames { "; dashed: heads that share keys and values" } else { "" };
        let Point { x, y } = at;
        writeln!(
            out,
            r##"<text x="{x:.0}" y="{y:.0}" font-size="15" fill="#222">{}</text>"##,
            escape(&self.title)
        )?;
        writeln!(
            out,
            r##"<text x="{x:.0}" y="{:.0}" font-size="12" fill="#444">{}</text>"##,
            y + 19.0,
            escape(&subtitle)
        )?;
        let signs = [(POSITIVE, "blue: supports the metric"), (NEGATIVE, "red: works against it")];
        let legend = self.colours.as_ref().map_or(&signs[..], |colours| &colours.legend);
        let legend: Vec<String> = (legend.iter())
            .map(|(colour, text)| format!(r#"<tspan fill="{colour}">{}</tspan>"#, escape(text)))
            .collect();
        writeln!(
            out,
            r##"<text x="{x:.0}" y="{:.0}" font-size="11" fill="#666">width: |score|; {}</text>"##,
            y + 37.0,
            legend.join(", ")
        )?;
        writeln!(
            out,
            r##"<text x="{x:.0}" y="{:.0}" font-size="11" fill="#666">3.1: head 1 of layer 3; m3: MLP of layer 3{frame}</text>"##,
            y + 53.0
        )
    }

    fn write_edges(
        &self,
        out: &mut String,
        layout: &Layout,
        strongest: &[Edge],
    ) -> std::fmt::Result {
        let largest = strongest.first().map_or(1.0, |edge| f64::from(edge.score.abs()));
        // The strongest last, so that they lie on top.
        for edge in strongest.iter().rev() {
            let Some([from, first, second, to]) = layout.curve(edge.writer, edge.reader) else {
                continue;
            };
            let share = f64::from(edge.score.abs()) / largest.max(f64::MIN_POSITIVE);
            writeln!(
                out,
                r#"<path d="M{from} C{first} {second} {to}" fill="none" stroke="{}" stroke-width="{:.2}" stroke-opacity="{:.2}"><title>{} → {}: {:.4e}</title></path>"#,
                self.colour(edge),
                0.8 + 4.2 * share,
                0.45 + 0.45 * share,
                edge.writer,
                edge.reader,
                edge.score,
            )?;
        }
        Ok(())
    }

    fn colour(&self, edge: &Edge) -> &'static str {
        let given = self.colours.as_ref().and_then(|Colours { legend, of }| {
            Some(legend.get(*of.get(&(edge.writer, edge.reader))?)?.0)
        });
        given.unwrap_or(if edge.score >= 0.0 { POSITIVE } else { NEGATIVE })
    }
}

/// The frame around the heads that share a key/value head; its name where they aren't known.
fn write_frame(out: &mut String, node: Node, place: &Place) -> std::fmt::Result {
    let Place { low, high, .. } = place;
    writeln!(
        out,
        r##"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" rx="6" fill="#eef4fb" stroke="#7a94b8" stroke-dasharray="3 2"><title>{node}</title></rect>"##,
        low.x,
        low.y,
        high.x - low.x,
        high.y - low.y,
    )?;
    match place.heads {
        0 => write_label(out, node, place, "#222", 0.0),
        _ => Ok(()),
    }
}

fn write_box(out: &mut String, node: Node, place: &Place, landscape: bool) -> std::fmt::Result {
    let Place { low, high, .. } = place;
    let (fill, stroke, colour) = match place.in_use {
        true => ("#fff7dd", "#8a6d1d", "#222"),
        false => ("#f6f6f6", "#ccc", "#999"),
    };
    writeln!(
        out,
        r#"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" rx="5" fill="{fill}" stroke="{stroke}"><title>{node}</title></rect>"#,
        low.x,
        low.y,
        high.x - low.x,
        high.y - low.y,
    )?;
    // The names of its inputs stand on the side where it is read.
    let aside = if place.ports.is_empty() { 0.0 } else { layout::PORT_NAMES / 2.0 };
    write_label(out, node, place, colour, if landscape { aside } else { -aside / 2.0 })
}

/// A node's label in the middle of its box, moved aside: to the right, or where negative up.
fn write_label(
    out: &mut String,
    node: Node,
    Place { low, high, .. }: &Place,
    colour: &str,
    aside: f64,
) -> std::fmt::Result {
    writeln!(
        out,
        r#"<text x="{:.1}" y="{:.1}" font-size="10" text-anchor="middle" fill="{colour}">{}</text>"#,
        (low.x + high.x) / 2.0 + aside.max(0.0),
        (low.y + high.y) / 2.0 + BASE + aside.min(0.0),
        layout::label(node),
    )
}

fn write_ports(
    out: &mut String,
    layout: &Layout,
    node: Node,
    place: &Place,
    landscape: bool,
) -> std::fmt::Result {
    for &port in &place.ports {
        let Some(Point { x, y }) = layout.entry(node, port) else { continue };
        let (x, y, anchor) = match landscape {
            true => (x + 2.5, y + 2.5, "start"),
            false => (x, y - 2.5, "middle"),
        };
        writeln!(
            out,
            r##"<text x="{x:.1}" y="{y:.1}" font-size="7" text-anchor="{anchor}" fill="#555">{}</text>"##,
            port_name(port)
        )?;
    }
    Ok(())
}

fn port_name(port: Port) -> &'static str {
    match port {
        Port::Query => "q",
        Port::Key => "k",
        Port::Value => "v",
        Port::Gate => "gate",
        Port::Up => "up",
        Port::Input => "",
    }
}
