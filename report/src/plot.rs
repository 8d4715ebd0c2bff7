//! A small plot as SVG, for readers without a script: lines over steps, with the ends of the axes named.

use crate::table::number;
use circuit_framework::text::escape;

/// A line and its class, which the page's style gives a colour.
pub struct Line {
    pub class: &'static str,
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 150.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = WIDTH - 10.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = HEIGHT - 24.0;

/// The plot under its title; nothing where no line has two points.
pub fn plot(title: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    if lines.iter().all(|line| line.points.len() < 2) {
        return String::new();
    }
    let range = |of: fn(&(f64, f64)) -> f64| {
        let ends = points().map(of).fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(v), b.max(v)));
        if ends.0 == ends.1 { (ends.0 - 0.5, ends.1 + 0.5) } else { ends }
    };
    let (x, y) = (range(|point| point.0), range(|point| point.1));
    let place = |&(step, value): &(f64, f64)| {
        let along = LEFT + (RIGHT - LEFT) * (step - x.0) / (x.1 - x.0);
        let up = BOTTOM - (BOTTOM - TOP) * (value - y.0) / (y.1 - y.0);
        format!("{along:.1},{up:.1}")
    };
    let mut out = format!(
        "<figure class=\"plot\"><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\">",
        escape(title)
    );
    let text = |x: f64, y: f64, anchor: &str, text: &str| {
        format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>")
    };
    let (aside, below) = (LEFT - 6.0, BOTTOM + 16.0);
    out.push_str(&format!("<path class=\"axis\" d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\"/>"));
    out.push_str(&text(aside, TOP + 9.0, "end", &number(y.1)));
    out.push_str(&text(aside, BOTTOM, "end", &number(y.0)));
    out.push_str(&text(LEFT, below, "start", &number(x.0)));
    out.push_str(&text(RIGHT, below, "end", &format!("step {}", number(x.1))));
    for line in lines {
        let points: Vec<String> = line.points.iter().map(place).collect();
        let points = points.join(" ");
        out.push_str(&format!("<polyline class=\"{}\" points=\"{points}\"/>", line.class));
    }
    out.push_str("</svg></figure>\n");
    out
}
