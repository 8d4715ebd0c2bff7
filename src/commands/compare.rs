//! `compare`: several runs side by side, from their summaries.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use circuit_framework::run::controls::{ControlSummary, ControlsSummary, Estimate, RepeatsSummary};
use circuit_framework::run::experiment::Experiment;
use circuit_framework::run::{SUMMARY, Summary, is_finished};
use circuit_framework::{Figures, files, text};
use clap::{ArgMatches, Command};
use serde::Serialize;

use super::summary::estimate;
use super::{json_flag, named_runs, output, runs, show, table};
use crate::outputs::Outputs;
use crate::print;

pub(crate) fn command() -> Command {
    Command::new("compare")
        .about("Put runs side by side: figures, tuned parameters, time")
        .arg(runs("Run folders"))
        .arg(output("markdown", "OUT.md", "Write the tables here"))
        .arg(json_flag())
}

/// A model: before tuning, after it, or after a control's. Of a run with several seeds, their mean.
#[derive(Serialize)]
pub(crate) struct Row {
    name: String,
    task: String,
    /// None before tuning.
    selector: Option<String>,
    tuned_parameters: usize,
    parameters: usize,
    /// Discovery and tuning.
    seconds: f64,
    #[serde(with = "circuit_framework::evaluation::figures")]
    figures: Figures,
    /// Half the width of the figures' 95 % intervals; none with a single seed.
    #[serde(with = "circuit_framework::evaluation::figures")]
    margins: Figures,
    /// Why the run has no figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let runs: Vec<String> = named_runs(matches).cloned().collect();
    let folders = runs.iter().map(PathBuf::from).collect();
    let outputs = Outputs::new(matches, &["markdown"], folders)?;
    let rows = rows(&runs)?;
    let tables = markdown(&rows);
    if let Some(path) = outputs.file("markdown")? {
        files::write_atomically(path, tables.as_bytes())?;
    }
    show(matches, &outputs, &rows, |_| print::text(&tables))
}

/// The rows of finished runs, by their folders.
pub(crate) fn rows(runs: &[String]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    runs.iter().try_for_each(|run| add_run(&mut rows, run))?;
    Ok(rows)
}

/// Adds the rows of a finished run, by its folder.
pub(crate) fn add_run(rows: &mut Vec<Row>, run: &str) -> Result<()> {
    let file = Path::new(run).join(SUMMARY);
    if !file.exists() {
        bail!("{run}: there is no {SUMMARY}; name the folder of a finished run");
    }
    if !is_finished(Path::new(run)) {
        log::warn!(
            "{run}: is not finished, its controls are missing; `run --resume {run}` goes on"
        );
    }
    add(rows, run, files::read_json(&file)?);
    Ok(())
}

/// Adds a row for a run that failed.
pub(crate) fn add_failed(rows: &mut Vec<Row>, experiment: &Experiment, error: &str) {
    rows.push(Row {
        name: experiment.name.clone(),
        task: experiment.task.name.clone(),
        selector: Some(experiment.selector.name.clone()),
        tuned_parameters: 0,
        parameters: 0,
        seconds: 0.0,
        figures: Figures::new(),
        margins: Figures::new(),
        error: Some(error.to_owned()),
    });
}

/// Adds a run's rows. Runs that start from the same figures share the row before tuning.
fn add(rows: &mut Vec<Row>, run: &str, summary: Summary) {
    let name = Path::new(run).file_name().map_or(run.into(), |name| name.to_string_lossy());
    let row =
        |name: String, selector: Option<String>, tuned: f64, seconds, (figures, margins)| Row {
            name,
            task: summary.task.clone(),
            selector,
            tuned_parameters: (tuned * summary.parameters as f64).round() as usize,
            parameters: summary.parameters,
            seconds,
            figures,
            margins,
            error: None,
        };
    let both = |Estimate { mean, margin, .. }: Estimate| (mean, margin);
    let each = |all: &RepeatsSummary| all.seconds / all.tuned_parameters.len() as f64;
    let alone = |figures: Figures| (figures, Figures::new());
    let seconds = summary.discovery_seconds + summary.tuning_seconds;
    let (before, after, ratio, seconds, kinds) = match summary.controls {
        None => {
            let ratio = summary.tuned_parameter_ratio;
            (alone(summary.before), alone(summary.after), ratio, seconds, Vec::new())
        }
        Some(ControlsSummary { before, circuit, kinds, .. }) => {
            let (ratio, seconds) = (circuit.tuned_parameter_ratio, each(&circuit));
            (both(before), both(circuit.after), ratio, seconds, kinds)
        }
    };
    let before = row("untuned".to_owned(), None, 0.0, 0.0, before);
    // As text, because NaN is unlike itself.
    let text = |row: &Row| format!("{:?} {:?}", row.figures, row.margins);
    let known = rows
        .iter()
        .any(|row| row.selector.is_none() && row.task == before.task && text(row) == text(&before));
    if !known {
        rows.push(before);
    }
    rows.push(row(name.clone().into_owned(), Some(summary.selector), ratio, seconds, after));
    for ControlSummary { kind, tuned, .. } in kinds {
        let (ratio, seconds) = (tuned.tuned_parameter_ratio, each(&tuned));
        let name = format!("{name}, {kind}");
        rows.push(row(name, Some(kind), ratio, seconds, both(tuned.after)));
    }
}

/// A table a task, under its name, in the order they come; below, why runs failed.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut tasks: Vec<&str> = Vec::new();
    for row in rows {
        if !tasks.contains(&&row.task[..]) {
            tasks.push(&row.task);
        }
    }
    let table = |task: &&str| {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.task == *task).collect();
        format!(
            "### {}\n\n{}{}",
            text::markdown(task),
            table::markdown(&cells(&rows), 2),
            failures(&rows)
        )
    };
    tasks.iter().map(table).collect::<Vec<_>>().join("\n")
}

/// Why runs failed, a paragraph each.
fn failures(rows: &[&Row]) -> String {
    let failed = rows.iter().filter_map(|row| Some((&row.name, row.error.as_ref()?)));
    failed
        .map(|(name, error)| {
            format!("\n{} failed: {}\n", text::markdown(name), text::markdown(error))
        })
        .collect()
}

/// A line of cells a model after the head, a column a figure that any of them has.
fn cells(rows: &[&Row]) -> Vec<Vec<String>> {
    let mut names: Vec<&String> = rows.iter().flat_map(|row| row.figures.keys()).collect();
    names.sort();
    names.dedup();
    let mut head = vec!["run".to_owned(), "selector".to_owned(), "tuned".to_owned()];
    head.extend(names.iter().map(|name| (*name).clone()));
    head.push("seconds".to_owned());
    let mut cells = vec![head];
    for row in rows {
        let share = 100.0 * row.tuned_parameters as f64 / row.parameters as f64;
        let tuned = match &row.error {
            Some(_) => "failed".to_owned(),
            None => format!("{} ({share:.1} %)", row.tuned_parameters),
        };
        let mut line = vec![row.name.clone(), row.selector.clone().unwrap_or_default(), tuned];
        line.extend(names.iter().map(|name| {
            let margin = row.margins.get(*name);
            row.figures.get(*name).map_or_else(String::new, |mean| estimate(*mean, margin))
        }));
        line.push(match &row.error {
            Some(_) => String::new(),
            None => format!("{:.1}", row.seconds),
        });
        cells.push(line);
    }
    cells
}
