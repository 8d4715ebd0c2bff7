//! A number a node as an SVG heat map, layers down and heads across, the MLPs in a column of their own.
//! Panels of one column share their scale, so that a model before and after tuning can be compared.

use std::collections::BTreeMap;
use std::fmt::{Result, Write};

use crate::evaluation::plot::text;
use crate::graph::{Graph, Node};
use crate::text::escape;

/// Panels in a grid: a line a model, a column a number.
#[derive(Clone, Debug)]
pub struct HeatMap {
    pub title: String,
    /// What was measured, and how.
    pub subtitle: String,
    /// Each line's name, empty where there is only one, and its panels.
    pub lines: Vec<(String, Vec<Panel>)>,
}

/// A number a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    pub title: String,
    /// The columns' names.
    columns: Vec<String>,
    /// By layer, then column; none where there is no such node or it has no number.
    cells: Vec<Vec<Option<f64>>>,
    /// What the end of the scale is at least, so that what is next to nothing looks so.
    least: f64,
}

/// The side of a cell.
const CELL: f64 = 22.0;
/// Around a panel, for its title and the names of layers and columns.
const LEFT: f64 = 44.0;
const ABOVE: f64 = 44.0;
const RIGHT: f64 = 22.0;
const BELOW: f64 = 16.0;
/// Above the panels, for the title.
const TOP: f64 = 62.0;

/// What the ends of the scale look like, below and above 0.
const ENDS: [[f64; 3]; 2] = [[178.0, 24.0, 43.0], [33.0, 102.0, 172.0]];

impl Panel {
    /// The numbers of heads and MLPs; those of an MLP's parts are added up.
    pub fn new(graph: &Graph, title: &str, numbers: impl IntoIterator<Item = (Node, f64)>) -> Self {
        let numbers: BTreeMap<Node, f64> = numbers.into_iter().collect();
        let nodes = graph.writers();
        let layers = nodes.iter().filter_map(|node| node.layer()).max().map_or(0, |last| last + 1);
        let heads = nodes.iter().filter_map(|node| match node {
            Node::Head { head, .. } => Some(head + 1),
            _ => None,
        });
        let heads = heads.max().unwrap_or(0);
        let has_mlps = numbers.keys().any(|node| matches!(node, Node::Mlp { .. }));
        let mut cells = vec![vec![None; heads + usize::from(has_mlps)]; layers];
        for (node, number) in numbers {
            match node {
                Node::Head { layer, head } => cells[layer][head] = Some(number),
                Node::Mlp { layer, .. } => {
                    let cell = &mut cells[layer][heads];
                    *cell = Some(cell.unwrap_or(0.0) + number);
                }
                _ => {}
            }
        }
        let columns = (0..heads).map(|head| head.to_string());
        let columns = columns.chain(has_mlps.then(|| "MLP".to_owned())).collect();
        Self { title: title.to_owned(), columns, cells, least: 0.0 }
    }

    /// This panel with a scale that ends at `least` or above.
    pub fn with_scale_of(self, least: f64) -> Self {
        Self { least, ..self }
    }

    fn width(&self) -> f64 {
        // Wide enough for its title.
        let title = 7.0 * (self.title.chars().count() + " (±1.23e-4)".len()) as f64;
        LEFT + (CELL * self.columns.len() as f64).max(title) + RIGHT
    }

    fn height(&self) -> f64 {
        ABOVE + CELL * self.cells.len() as f64 + BELOW
    }

    /// The largest magnitude.
    fn largest(&self) -> f64 {
        let cells = self.cells.iter().flatten().flatten();
        cells.fold(self.least, |largest, cell| largest.max(cell.abs()))
    }

    fn write(&self, out: &mut String, (left, top): (f64, f64), largest: f64) -> Result {
        let title = format!("{} (±{})", self.title, shown(largest));
        text(out, (left + LEFT, top + 16.0), 12, "start", "#222", &title)?;
        for (column, name) in self.columns.iter().enumerate() {
            let x = left + LEFT + CELL * (column as f64 + 0.5);
            text(out, (x, top + ABOVE - 6.0), 9, "middle", "#444", name)?;
        }
        for (layer, cells) in self.cells.iter().enumerate() {
            let y = top + ABOVE + CELL * layer as f64;
            text(out, (left + LEFT - 6.0, y + 15.0), 9, "end", "#444", &layer.to_string())?;
            for (column, cell) in cells.iter().enumerate() {
                let x = left + LEFT + CELL * column as f64;
                let (colour, value) = match cell {
                    Some(value) => (colour(value / largest), shown(*value)),
                    None => ("none".to_owned(), "none".to_owned()),
                };
                let name = &self.columns[column];
                writeln!(
                    out,
                    r##"<rect x="{x:.1}" y="{y:.1}" width="{CELL}" height="{CELL}" fill="{colour}" stroke="#ddd" stroke-width="0.5"><title>layer {layer}, {}: {value}</title></rect>"##,
                    escape(name)
                )?;
            }
        }
        Ok(())
    }
}

/// A number with three figures that count.
fn shown(value: f64) -> String {
    match value == 0.0 || (0.01..1000.0).contains(&value.abs()) {
        true => format!("{value:.3}"),
        false => format!("{value:.2e}"),
    }
}

/// White at 0, red at −1, blue at 1.
fn colour(share: f64) -> String {
    let share = if share.is_finite() { share.clamp(-1.0, 1.0) } else { 0.0 };
    let end = ENDS[usize::from(share > 0.0)];
    let [red, green, blue] = end.map(|end| (255.0 + (end - 255.0) * share.abs()).round() as u8);
    format!("#{red:02x}{green:02x}{blue:02x}")
}

impl HeatMap {
    /// The whole SVG document.
    pub fn svg(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> Result {
        let wide = |(_, panels): &(String, Vec<Panel>)| panels.iter().map(Panel::width).sum();
        let high = |(_, panels): &(String, Vec<Panel>)| {
            panels.iter().map(Panel::height).fold(0.0, f64::max) + 18.0
        };
        let titles = [(&self.title, 9.0), (&self.subtitle, 7.0)];
        let titles = titles.map(|(title, size)| LEFT + size * title.chars().count() as f64);
        let width = self.lines.iter().map(wide).chain(titles).fold(0.0, f64::max);
        let height = TOP + self.lines.iter().map(high).sum::<f64>();
        writeln!(
            out,
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}" font-family="Helvetica, Arial, sans-serif">"#
        )?;
        writeln!(out, r#"<rect width="{width:.0}" height="{height:.0}" fill="white"/>"#)?;
        text(out, (LEFT, 26.0), 15, "start", "#222", &self.title)?;
        text(out, (LEFT, 45.0), 12, "start", "#444", &self.subtitle)?;
        let mut top = TOP;
        for line in &self.lines {
            let (name, panels) = line;
            text(out, (LEFT, top + 14.0), 13, "start", "#222", name)?;
            let mut left = 0.0;
            for (column, panel) in panels.iter().enumerate() {
                let of_column = self.lines.iter().filter_map(|(_, panels)| panels.get(column));
                let largest = of_column.map(Panel::largest).fold(0.0, f64::max);
                panel.write(out, (left, top + 18.0), largest)?;
                left += panel.width();
            }
            top += high(line);
        }
        writeln!(out, "</svg>")
    }
}
