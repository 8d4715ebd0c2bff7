//! What stands in each panel without a script: tables, and drawings that the framework makes. The script
//! puts what is interactive in their place.

use circuit_framework::Figures;
use circuit_framework::evaluation::{Across, Line as CurveLine, Plot};
use circuit_framework::results::circuit_file::CircuitFile;
use circuit_framework::results::drawing::Drawing;
use circuit_framework::text::escape;
use serde_json::Value;

use crate::circuits::Stop;
use crate::comparison::Row;
use crate::folder::Run;
use crate::plot::{Line, plot};
use crate::table::{estimate, number, percent, table};

/// How many edges a table has without a script.
const MOST_EDGES: usize = 50;

/// How many examples, or nodes.
const MOST_EXAMPLES: usize = 20;

/// A panel of the page.
pub struct Panel {
    /// Its anchor.
    pub id: &'static str,
    pub title: &'static str,
    /// What it tells, in a sentence.
    pub about: &'static str,
    pub content: String,
}

/// The panels of a run; the comparison is of all `runs`, with the `means` over their seeds.
pub fn of(run: &Run, rows: &[Row], means: &[Row], runs: usize) -> Vec<Panel> {
    let panel = |id, title, about, content| Panel { id, title, about, content };
    let mut panels = Vec::new();
    if runs > 1 {
        panels.push(panel(
            "runs",
            "The runs side by side",
            "Of several seeds the mean, ± half its 95 % interval. Choose a run by its name; the panels below are of that run.",
            figures(&[means, rows].concat(), true),
        ));
    }
    let own: Vec<Row> = rows.iter().filter(|row| row.name == run.name).cloned().collect();
    panels.extend([
        panel("figures", "Before and after", "The task's figures on held-out examples, and those of side tasks.", figures(&own, false)),
        panel("curves", "On the way", "What tuning did, step by step.", curves(run)),
        panel("circuit", "The circuit", "Layers from bottom to top, heads left, MLPs right. A line is an edge: what one node writes and another reads; its width is the size of its score.", circuit(run)),
        panel("nodes", "Nodes", "What single nodes do, before tuning and after it.", nodes(run)),
        panel("edges", "Edges and nodes as tables", "", edges(run)),
        panel("faithfulness", "Is the circuit faithful?", "The metric with every edge outside a circuit ablated, on a scale from 0, without any edge, to 1, the whole model.", faithfulness(run)),
        panel("examples", "Examples", "Held-out examples, the most changed first: how likely the right and the wrong answers are after each layer.", examples(run)),
        panel("settings", "Settings", "Everything this run was asked for, as its config.toml has it.", settings(run)),
    ]);
    panels
}

/// A line a figure, a column a model; or with `across` a line a model, a column a figure.
fn figures(rows: &[Row], across: bool) -> String {
    let mut names: Vec<&String> = rows.iter().flat_map(|row| row.figures.keys()).collect();
    names.sort();
    names.dedup();
    let cell = |figures: &Figures, margins: &Figures, name: &String| {
        let margin = margins.get(name).copied();
        figures.get(name).map_or_else(String::new, |mean| estimate(*mean, margin))
    };
    let own = |row: &Row, name: &String| cell(&row.figures, &row.margins, name);
    let text = |text: &str| text.to_owned();
    if across {
        let head = ["run", "model", "tuned"].map(text).into_iter();
        let head: Vec<String> = head.chain(names.iter().map(|name| (*name).clone())).collect();
        let line = |row: &Row| -> Vec<String> {
            let first = [row.name.clone(), row.what.clone(), percent(row.tuned)].into_iter();
            first.chain(names.iter().map(|name| own(row, name))).collect()
        };
        return table("Figures of all runs", &head, &rows.iter().map(line).collect::<Vec<_>>());
    }
    let head: Vec<String> =
        std::iter::once(text("figure")).chain(rows.iter().map(|row| row.what.clone())).collect();
    let line = |name: &&String| -> Vec<String> {
        std::iter::once((*name).clone()).chain(rows.iter().map(|row| own(row, name))).collect()
    };
    let mut out = table("Figures", &head, &names.iter().map(line).collect::<Vec<_>>());
    let controls: Vec<&Row> =
        rows.iter().filter(|row| !row.difference_margins.is_empty()).collect();
    if !controls.is_empty() {
        let head: Vec<String> = std::iter::once(text("figure"))
            .chain(controls.iter().map(|row| row.what.clone()))
            .collect();
        let line = |name: &&String| -> Vec<String> {
            let of = |row: &&Row| cell(&row.differences, &row.difference_margins, name);
            std::iter::once((*name).clone()).chain(controls.iter().map(of)).collect()
        };
        let lines: Vec<Vec<String>> = names.iter().map(line).collect();
        out += &table("What controls have more than the circuit with the same seed", &head, &lines);
    }
    out
}

fn curves(run: &Run) -> String {
    let own = |name: &str| vec![Line { class: "after", points: run.log.points(name) }];
    let names = [
        ("loss", "loss"),
        ("metric", "metric"),
        ("tuned_share", "share of parameters tuned"),
        ("overlap", "overlap with the step before"),
    ];
    names.map(|(name, title)| plot(title, &own(name))).concat()
}

fn circuit(run: &Run) -> String {
    let of = |when: &str, edges: &Option<CircuitFile>| {
        let (Some(file), Some(provenance)) = (edges, &run.provenance) else { return String::new() };
        let drawing = Drawing::of(&file.edges, &format!("{when} tuning"), provenance);
        format!("<div class=\"scroll drawing\">{}</div>\n", drawing.svg())
    };
    of("before", &run.circuit_before) + &of("after", &run.circuit_after)
}

fn edges(run: &Run) -> String {
    let text = |text: &str| text.to_owned();
    let stops = run.circuits.stops.iter().filter(|stop| stop.step.is_none());
    let of = |stop: &Stop| {
        let ranked = stop.edges.iter().zip(&stop.scores).enumerate().take(MOST_EDGES);
        let line = |(rank, (&edge, &score)): (usize, (&usize, &f64))| {
            let (writer, reader) = run.circuits.ends(edge);
            let score = estimate(score, stop.standard_error(rank));
            vec![(rank + 1).to_string(), writer.to_owned(), reader.to_owned(), score]
        };
        let caption = format!(
            "Circuit {} tuning, {} edges, the first {}; ± the score's standard error",
            stop.label,
            stop.edges.len(),
            stop.edges.len().min(MOST_EDGES)
        );
        let head = ["rank", "writer", "reader", "score"].map(text);
        table(&caption, &head, &ranked.map(line).collect::<Vec<_>>())
    };
    stops.map(of).collect()
}

fn faithfulness(run: &Run) -> String {
    let lines = |when: &str, file: &Option<Value>| -> Vec<CurveLine> {
        let Some(file) = file else { return Vec::new() };
        let line = |label: String, curve: &Value| CurveLine {
            label,
            points: (curve["points"].as_array().into_iter().flatten())
                .filter_map(|point| {
                    Some((point["fraction"].as_f64()?, point["faithfulness"].as_f64()?))
                })
                .collect(),
        };
        let own = line(format!("{when} tuning"), &file["curve"]);
        let random = line(format!("random, {when}"), &file["random_curve"]);
        [own, random].into_iter().filter(|line| !line.points.is_empty()).collect()
    };
    let files = [("before", &run.faithfulness.before), ("after", &run.faithfulness.after)];
    let all: Vec<CurveLine> = files.iter().flat_map(|(when, file)| lines(when, file)).collect();
    if all.is_empty() {
        return String::new();
    }
    let areas = |key: &str| {
        let area = |(_, file): &(&str, &Option<Value>)| {
            let area = file.as_ref().and_then(|file| file[key].as_f64());
            area.map_or_else(String::new, number)
        };
        std::iter::once(key.to_uppercase()).chain(files.iter().map(area)).collect()
    };
    let head = ["", "before", "after"].map(str::to_owned);
    let table =
        table("Areas of the curves, as MIB defines them", &head, &[areas("cpr"), areas("cmd")]);
    let title = "Faithfulness over the size of the circuit".to_owned();
    let plot = Plot {
        title,
        subtitle: "on the task's test examples".to_owned(),
        across: Across::Sizes,
        values: "faithfulness".to_owned(),
        lines: all,
    };
    format!("<div class=\"scroll drawing\">{}</div>\n{table}", plot.svg())
}

/// What an example shows in a line: its text, and the probabilities of its first key's answers.
struct ExampleLine {
    text: String,
    before: [f64; 2],
    after: Option<[f64; 2]>,
}

impl ExampleLine {
    fn of(example: &Value, after: Option<&Value>) -> Option<Self> {
        let tokens: Vec<&str> =
            example["tokens"].as_array()?.iter().filter_map(Value::as_str).collect();
        // Where tokens are words, the spaces between them are in none.
        let is_words = !tokens.iter().any(|token| token.contains(char::is_whitespace));
        let answers = |example: &Value| -> Option<[f64; 2]> {
            let last = example["keys"][0]["lens"].as_array()?.last()?;
            let probability = |side: &str| last[side]["probability"].as_f64();
            Some([probability("right")?, probability("wrong")?])
        };
        Some(Self {
            text: tokens.join(if is_words { " " } else { "" }),
            before: answers(example)?,
            after: after.and_then(answers),
        })
    }

    /// How far right less wrong moved.
    fn change(&self) -> f64 {
        let margin = |[right, wrong]: [f64; 2]| right - wrong;
        self.after.map_or(0.0, |after| (margin(after) - margin(self.before)).abs())
    }
}

fn examples(run: &Run) -> String {
    let of = |observed: &Option<Value>| -> Vec<Value> {
        let examples = observed.as_ref().and_then(|of| of["examples"].as_array());
        examples.cloned().unwrap_or_default()
    };
    let (before, after) = (of(&run.observed.before), of(&run.observed.after));
    let lines = before.iter().enumerate();
    let mut lines: Vec<ExampleLine> =
        lines.filter_map(|(index, example)| ExampleLine::of(example, after.get(index))).collect();
    if lines.is_empty() {
        return String::new();
    }
    lines.sort_by(|a, b| b.change().total_cmp(&a.change()));
    let cells = |line: &ExampleLine| {
        let after = |side: usize| line.after.map_or_else(String::new, |after| number(after[side]));
        vec![line.text.clone(), number(line.before[0]), after(0), number(line.before[1]), after(1)]
    };
    let head = ["example", "p(right) before", "after", "p(wrong) before", "after"];
    let lines: Vec<Vec<String>> = lines.iter().take(MOST_EXAMPLES).map(cells).collect();
    table("Probabilities of the first key's answers", &head.map(str::to_owned), &lines)
}

/// Direct effects on the logit difference, the largest first.
fn nodes(run: &Run) -> String {
    let effects = |observed: &Option<Value>| -> Vec<(String, f64)> {
        let nodes = observed.as_ref().and_then(|of| of["nodes"].as_array());
        let effect = |of: &Value| Some((of["node"].as_str()?.to_owned(), of["effect"].as_f64()?));
        nodes.into_iter().flatten().filter_map(effect).collect()
    };
    let (mut before, after) = (effects(&run.observed.before), effects(&run.observed.after));
    before.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    let line = |(node, effect): &(String, f64)| {
        let after = after.iter().find(|(name, _)| name == node);
        vec![node.clone(), number(*effect), after.map_or_else(String::new, |of| number(of.1))]
    };
    let lines: Vec<Vec<String>> = before.iter().take(MOST_EXAMPLES).map(line).collect();
    if lines.is_empty() {
        return String::new();
    }
    let head = ["node", "before", "after"].map(str::to_owned);
    table("Direct effects on the logit difference, the largest first", &head, &lines)
}

fn settings(run: &Run) -> String {
    let text = toml::to_string(&run.config).unwrap_or_default();
    format!("<pre>{}</pre>", escape(&text))
}
