//! Faithfulness over the share of edges as an SVG plot: lines of circuits of growing size, on a
//! logarithmic axis, on which 0 stands at the left end.

use std::fmt::{Result, Write};

/// What a plot shows.
#[derive(Clone, Debug)]
pub struct Plot {
    pub title: String,
    /// What was measured, and how.
    pub subtitle: String,
    pub lines: Vec<Line>,
}

/// A line of a plot, or a single point of it.
#[derive(Clone, Debug)]
pub struct Line {
    pub label: String,
    /// Each the share of edges, from 0 to 1, and the faithfulness.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 680.0;
const HEIGHT: f64 = 440.0;
/// The frame of the axes.
const LEFT: f64 = 64.0;
const RIGHT: f64 = WIDTH - 24.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = HEIGHT - 56.0;

/// Blue, orange, green, purple: told apart by those who see no red either.
const COLOURS: [&str; 4] = ["#2166ac", "#e08214", "#1b7837", "#762a83"];

/// Where values stand in the frame.
struct Axes {
    /// The smallest share on the logarithmic axis; shares below stand there too.
    least: f64,
    low: f64,
    high: f64,
    /// Faithfulness between two marks.
    step: f64,
}

impl Axes {
    fn new(lines: &[Line]) -> Self {
        let points = || lines.iter().flat_map(|line| &line.points);
        let positive = points().map(|point| point.0).filter(|&share| share > 0.0);
        let smallest = positive.fold(0.1, f64::min);
        let has_zero = points().any(|point| point.0 == 0.0);
        // 0 stands apart from the smallest share.
        let least = if has_zero { smallest / 2.0 } else { smallest };
        let (low, high) = points()
            .fold((0.0f64, 1.0f64), |(low, high), point| (low.min(point.1), high.max(point.1)));
        let rough = (high - low) / 6.0;
        let magnitude = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude);
        let step = step.into_iter().find(|&step| step >= rough).unwrap_or(rough);
        Self { least, low: (low / step).floor() * step, high: (high / step).ceil() * step, step }
    }

    fn x(&self, share: f64) -> f64 {
        let along = share.max(self.least).log10() - self.least.log10();
        LEFT + (RIGHT - LEFT) * along / -self.least.log10()
    }

    fn y(&self, faithfulness: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * (faithfulness - self.low) / (self.high - self.low)
    }
}

impl Plot {
    /// The whole SVG document.
    pub fn svg(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> Result {
        writeln!(
            out,
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="Helvetica, Arial, sans-serif">"#
        )?;
        writeln!(out, r#"<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>"#)?;
        text(out, (LEFT, 26.0), 15, "start", "#222", &self.title)?;
        text(out, (LEFT, 45.0), 12, "start", "#444", &self.subtitle)?;
        let axes = Axes::new(&self.lines);
        write_axes(out, &axes)?;
        for (index, line) in self.lines.iter().enumerate() {
            write_line(out, &axes, line, index)?;
        }
        writeln!(out, "</svg>")
    }
}

fn write_axes(out: &mut String, axes: &Axes) -> Result {
    let marks = ((axes.high - axes.low) / axes.step).round() as usize;
    for mark in 0..=marks {
        let value = axes.low + mark as f64 * axes.step;
        let y = axes.y(value);
        let colour = if value.abs() < axes.step / 2.0 { "#888" } else { "#ddd" };
        stroke(out, (LEFT, y), (RIGHT, y), colour, "")?;
        let digits = (-axes.step.log10().floor()).max(0.0) as usize;
        // Not −0.
        let value = if value.abs() < axes.step / 2.0 { 0.0 } else { value };
        text(out, (LEFT - 8.0, y + 4.0), 11, "end", "#444", &format!("{value:.digits$}"))?;
    }
    // Where the whole model is.
    stroke(out, (LEFT, axes.y(1.0)), (RIGHT, axes.y(1.0)), "#888", "4 3")?;
    let shares = [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0];
    for share in shares.into_iter().filter(|&share| share >= axes.least) {
        let x = axes.x(share);
        stroke(out, (x, TOP), (x, BOTTOM), "#eee", "")?;
        text(out, (x, BOTTOM + 17.0), 11, "middle", "#444", &format!("{} %", 100.0 * share))?;
    }
    let middle = (LEFT + RIGHT) / 2.0;
    text(
        out,
        (middle, HEIGHT - 14.0),
        12,
        "middle",
        "#222",
        "edges in the circuit, of the graph's",
    )?;
    let y = (TOP + BOTTOM) / 2.0;
    writeln!(
        out,
        r##"<text transform="translate(18 {y:.1}) rotate(-90)" font-size="12" text-anchor="middle" fill="#222">faithfulness</text>"##
    )
}

fn write_line(out: &mut String, axes: &Axes, line: &Line, index: usize) -> Result {
    let colour = COLOURS[index % COLOURS.len()];
    let mut points = line.points.clone();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let places: Vec<(f64, f64)> = points.iter().map(|&(s, f)| (axes.x(s), axes.y(f))).collect();
    if places.len() > 1 {
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        writeln!(
            out,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
            path.join(" ")
        )?;
    }
    for ((x, y), (share, faithfulness)) in places.iter().zip(&points) {
        writeln!(
            out,
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{colour}"><title>{}: {:.4} % of the edges, faithfulness {faithfulness:.4}</title></circle>"#,
            escape(&line.label),
            100.0 * share
        )?;
    }
    let x = LEFT + 190.0 * index as f64;
    writeln!(out, r#"<circle cx="{:.1}" cy="62" r="4" fill="{colour}"/>"#, x + 4.0)?;
    text(out, (x + 14.0, 66.0), 12, "start", "#222", &line.label)
}

fn stroke(
    out: &mut String,
    from: (f64, f64),
    to: (f64, f64),
    colour: &str,
    dashes: &str,
) -> Result {
    writeln!(
        out,
        r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" stroke="{colour}" stroke-dasharray="{dashes}"/>"#,
        from.0, from.1, to.0, to.1
    )
}

/// A line of text.
pub(crate) fn text(
    out: &mut String,
    (x, y): (f64, f64),
    size: usize,
    anchor: &str,
    colour: &str,
    text: &str,
) -> Result {
    writeln!(
        out,
        r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{}</text>"#,
        escape(text)
    )
}

/// Text with what SVG would read as a tag or an entity written out.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
