//! Lines as an SVG plot: faithfulness over the share of edges, on a logarithmic axis on which 0 stands at the
//! left end, or shares over a run's steps.

use std::fmt::{Result, Write};

use crate::text::escape;

/// What a plot shows.
#[derive(Clone, Debug)]
pub struct Plot {
    pub title: String,
    /// What was measured, and how.
    pub subtitle: String,
    pub across: Across,
    /// What the values are.
    pub values: String,
    pub lines: Vec<Line>,
}

/// What a plot goes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Across {
    /// Circuits of growing size: their shares of the graph's edges, by their logarithm.
    Sizes,
    /// A run's steps.
    Steps,
}

/// A line of a plot, or a single point of it.
#[derive(Clone, Debug)]
pub struct Line {
    pub label: String,
    /// Each the share of edges, from 0 to 1, or the step, and the value.
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
    across: Across,
    /// The smallest share on the logarithmic axis; shares below stand there too.
    least: f64,
    /// The first and the last step.
    ends: [f64; 2],
    low: f64,
    high: f64,
    /// The value between two marks.
    step: f64,
}

impl Axes {
    fn new(across: Across, lines: &[Line]) -> Self {
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
        let ends = points().fold([f64::MAX, f64::MIN], |[first, last], &(place, _)| {
            [first.min(place), last.max(place)]
        });
        let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        Self { across, least, ends, low, high, step }
    }

    fn x(&self, place: f64) -> f64 {
        let along = match self.across {
            Across::Sizes => {
                (place.max(self.least).log10() - self.least.log10()) / -self.least.log10()
            }
            Across::Steps => (place - self.ends[0]) / (self.ends[1] - self.ends[0]).max(1.0),
        };
        LEFT + (RIGHT - LEFT) * along
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * (value - self.low) / (self.high - self.low)
    }

    /// Where a mark stands, and its name.
    fn marks(&self) -> Vec<(f64, String)> {
        match self.across {
            Across::Sizes => {
                let shares = [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0].into_iter();
                let shares = shares.filter(|&share| share >= self.least);
                shares.map(|share| (share, format!("{} %", 100.0 * share))).collect()
            }
            Across::Steps => {
                let [first, last] = self.ends;
                let quarters =
                    (0..=4).map(|quarter| first + (last - first) * f64::from(quarter) / 4.0);
                let mut steps: Vec<f64> = quarters.map(f64::round).collect();
                steps.dedup();
                steps.into_iter().map(|step| (step, format!("{step}"))).collect()
            }
        }
    }

    /// A point's place in words.
    fn place(&self, place: f64) -> String {
        match self.across {
            Across::Sizes => format!("{:.4} % of the edges", 100.0 * place),
            Across::Steps => format!("step {place}"),
        }
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
        let axes = Axes::new(self.across, &self.lines);
        self.write_axes(out, &axes)?;
        for (index, line) in self.lines.iter().enumerate() {
            self.write_line(out, &axes, line, index)?;
        }
        writeln!(out, "</svg>")
    }

    fn write_axes(&self, out: &mut String, axes: &Axes) -> Result {
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
        // Where the whole model is, or all of a circuit.
        stroke(out, (LEFT, axes.y(1.0)), (RIGHT, axes.y(1.0)), "#888", "4 3")?;
        for (place, name) in axes.marks() {
            let x = axes.x(place);
            stroke(out, (x, TOP), (x, BOTTOM), "#eee", "")?;
            text(out, (x, BOTTOM + 17.0), 11, "middle", "#444", &name)?;
        }
        let across = match self.across {
            Across::Sizes => "edges in the circuit, of the graph's",
            Across::Steps => "step",
        };
        text(out, ((LEFT + RIGHT) / 2.0, HEIGHT - 14.0), 12, "middle", "#222", across)?;
        let y = (TOP + BOTTOM) / 2.0;
        writeln!(
            out,
            r##"<text transform="translate(18 {y:.1}) rotate(-90)" font-size="12" text-anchor="middle" fill="#222">{}</text>"##,
            escape(&self.values)
        )
    }

    fn write_line(&self, out: &mut String, axes: &Axes, line: &Line, index: usize) -> Result {
        let colour = COLOURS[index % COLOURS.len()];
        let mut points = line.points.clone();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let places: Vec<(f64, f64)> = points.iter().map(|&(x, y)| (axes.x(x), axes.y(y))).collect();
        if places.len() > 1 {
            let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            writeln!(
                out,
                r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
                path.join(" ")
            )?;
        }
        for ((x, y), (place, value)) in places.iter().zip(&points) {
            writeln!(
                out,
                r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{colour}"><title>{}: {}, {} {value:.4}</title></circle>"#,
                escape(&line.label),
                axes.place(*place),
                escape(&self.values)
            )?;
        }
        let x = LEFT + 190.0 * index as f64;
        writeln!(out, r#"<circle cx="{:.1}" cy="62" r="4" fill="{colour}"/>"#, x + 4.0)?;
        text(out, (x + 14.0, 66.0), 12, "start", "#222", &line.label)
    }
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
