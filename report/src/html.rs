//! The HTML document: style, panels, data and script in one file that asks for nothing.

use std::fmt::Write;

use circuit_framework::text::escape;
use circuit_framework::{Result, refuse};
use serde::Serialize;

use crate::comparison::{self, Row};
use crate::encoding::encode;
use crate::folder::Run;
use crate::panels::{self, Panel};

/// Built from `page/` by `npm run build`.
const SCRIPT: &str = include_str!("../dist/page.js");
const STYLE: &str = include_str!("../dist/page.css");

/// What the script gets beside the runs.
#[derive(Serialize)]
struct Data<'a> {
    version: &'static str,
    runs: &'a [Run],
    rows: &'a [Row],
    /// Those over runs that differ by their seed alone.
    means: &'a [Row],
}

/// The page of runs, of which there is one at least.
///
/// # Errors
/// If there is no run, or the data can't be written.
pub fn page(runs: &[Run]) -> Result<String> {
    let Some(first) = runs.first() else {
        refuse!("there is no run to make a page of; name a run folder");
    };
    let (rows, means) = (comparison::rows(runs), comparison::means(runs));
    let panels = panels::of(first, &rows, &means, runs.len());
    let data =
        encode(&Data { version: env!("CARGO_PKG_VERSION"), runs, rows: &rows, means: &means })?;
    let title = match runs {
        [run] => run.name.clone(),
        _ => format!("{} runs", runs.len()),
    };
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_page(&mut out, &title, first, runs.len(), &panels, &data);
    Ok(out)
}

fn write_page(
    out: &mut String,
    title: &str,
    first: &Run,
    runs: usize,
    panels: &[Panel],
    data: &str,
) -> std::fmt::Result {
    let title = escape(title);
    writeln!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title} · circuit-tuning</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#figures\">Skip to the figures</a>\n\
         <header id=\"top\">\n<h1>{title}</h1>"
    )?;
    writeln!(out, "<div id=\"asked\">")?;
    write_asked(out, first)?;
    writeln!(out, "</div>\n<nav id=\"contents\" aria-label=\"Panels\">")?;
    for panel in panels {
        writeln!(out, "<a href=\"#{}\">{}</a>", panel.id, escape(panel.title))?;
    }
    writeln!(out, "</nav>\n</header>\n<main>")?;
    for Panel { id, title, about, content } in panels {
        let content = match &content[..] {
            "" => "<p class=\"empty\">This panel needs a browser with JavaScript.</p>",
            content => content,
        };
        writeln!(
            out,
            "<section id=\"{id}\" class=\"panel\" aria-labelledby=\"{id}-title\">\n\
             <h2 id=\"{id}-title\">{}</h2>\n<p class=\"about\">{}</p>\n\
             <div class=\"content\">\n{content}</div>\n</section>",
            escape(title),
            escape(about)
        )?;
    }
    writeln!(
        out,
        "</main>\n<footer>{} · circuit-tuning {}</footer>\n\
         <script type=\"application/json\" id=\"data\">\"{data}\"</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>",
        if runs == 1 { "1 run".to_owned() } else { format!("{runs} runs") },
        env!("CARGO_PKG_VERSION")
    )
}

/// What the run was asked, of which model, and how to repeat it.
fn write_asked(out: &mut String, run: &Run) -> std::fmt::Result {
    if !run.description.is_empty() {
        writeln!(out, "<p class=\"lead\">{}</p>", escape(&run.description))?;
    }
    let setting = |path: &[&str]| {
        let value = path.iter().fold(&run.config, |value, key| &value[*key]);
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    };
    let mut model = match &run.provenance {
        Some(of) => format!(
            "{}: {}, {} layers of {} heads, width {}",
            of.model_path, of.model.architecture, of.model.layers, of.model.heads, of.model.d_model
        ),
        None => setting(&["model", "path"]),
    };
    if let Some(hash) = &run.weights {
        write!(model, ", SHA-256 {hash}")?;
    }
    let facts = [
        ("Task", setting(&["task", "name"])),
        ("Model", model),
        ("Metric", setting(&["metric", "name"])),
        ("Selector", setting(&["selector", "name"])),
        ("Seed", setting(&["seed"])),
        ("Repeat it with", run.command.clone()),
    ];
    writeln!(out, "<dl class=\"facts\">")?;
    for (name, fact) in facts {
        writeln!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(&fact))?;
    }
    writeln!(out, "</dl>")
}
