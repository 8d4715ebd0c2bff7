//! Runs side by side: a row for each model, tuned or not, with means over seeds and their intervals.

use circuit_framework::Figures;
use circuit_framework::run::Summary;
use circuit_framework::run::controls::{ControlsSummary, Estimate};
use serde::Serialize;

use crate::folder::Run;

/// A model: before tuning, after it, or after a control's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The run's index on the page.
    pub run: usize,
    pub name: String,
    pub task: String,
    /// `before`, `after` or the control's name.
    pub what: String,
    pub selector: String,
    pub seeds: usize,
    /// The share of parameters that any step tuned.
    pub tuned: f64,
    #[serde(with = "circuit_framework::evaluation::figures")]
    pub figures: Figures,
    /// Half the width of the figures' 95 % intervals; empty with a single seed.
    #[serde(with = "circuit_framework::evaluation::figures")]
    pub margins: Figures,
    /// What a control's figures have more than the circuit's with the same seed.
    #[serde(with = "circuit_framework::evaluation::figures")]
    pub differences: Figures,
    /// Half the width of their intervals.
    #[serde(with = "circuit_framework::evaluation::figures")]
    pub difference_margins: Figures,
}

/// The rows of all runs that are finished.
pub fn rows(runs: &[Run]) -> Vec<Row> {
    let of = |(index, run): (usize, &Run)| {
        let summary = run.summary.as_ref();
        summary.map(|summary| rows_of(index, &run.name, summary)).unwrap_or_default()
    };
    runs.iter().enumerate().flat_map(of).collect()
}

fn rows_of(run: usize, name: &str, summary: &Summary) -> Vec<Row> {
    let row = |what: &str, selector: &str, tuned: f64, figures: &Estimate| Row {
        run,
        name: name.to_owned(),
        task: summary.task.clone(),
        what: what.to_owned(),
        selector: selector.to_owned(),
        seeds: figures.repeats.len().max(1),
        tuned,
        figures: figures.mean.clone(),
        margins: figures.margin.clone(),
        differences: Figures::new(),
        difference_margins: Figures::new(),
    };
    let single = |figures: &Figures| Estimate {
        repeats: Vec::new(),
        mean: figures.clone(),
        margin: Figures::new(),
    };
    let Summary { selector, tuned_parameter_ratio, .. } = summary;
    let Some(ControlsSummary { before, circuit, kinds, .. }) = &summary.controls else {
        return vec![
            row("before", "", 0.0, &single(&summary.before)),
            row("after", selector, *tuned_parameter_ratio, &single(&summary.after)),
        ];
    };
    let controls = kinds.iter().map(|control| Row {
        differences: control.difference.mean.clone(),
        difference_margins: control.difference.margin.clone(),
        ..row(
            &control.kind,
            &control.kind,
            control.tuned.tuned_parameter_ratio,
            &control.tuned.after,
        )
    });
    let own = [
        row("before", "", 0.0, before),
        row("after", selector, circuit.tuned_parameter_ratio, &circuit.after),
    ];
    own.into_iter().chain(controls).collect()
}
