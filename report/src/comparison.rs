//! Runs side by side: a row for each model, tuned or not, with means over seeds and their intervals.

use circuit_framework::Figures;
use circuit_framework::run::Summary;
use circuit_framework::run::controls::{ControlsSummary, Estimate};
use serde::Serialize;
use serde_json::Value;

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

/// A finished run without controls, with its index on the page.
type Finished<'r> = (usize, &'r Run, &'r Summary);

/// The means over runs that differ by their seed alone, as a sweep over seeds leaves them.
pub fn means(runs: &[Run]) -> Vec<Row> {
    let mut groups: Vec<(Value, Vec<Finished>)> = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let Some(summary) = run.summary.as_ref().filter(|summary| summary.controls.is_none())
        else {
            continue;
        };
        let asked = without_seed(&run.config);
        match groups.iter_mut().find(|(of, _)| *of == asked) {
            // A seed that is there twice says nothing more.
            Some((_, found)) if found.iter().any(|(_, of, _)| of.seed() == run.seed()) => {}
            Some((_, found)) => found.push((index, run, summary)),
            None => groups.push((asked, vec![(index, run, summary)])),
        }
    }
    groups.iter().filter(|(_, found)| found.len() > 1).flat_map(|(_, found)| mean(found)).collect()
}

/// What a run was asked for, but for its seed.
fn without_seed(config: &Value) -> Value {
    let mut asked = config.clone();
    if let Some(asked) = asked.as_object_mut() {
        ["seed", "name"].iter().for_each(|key| drop(asked.remove(*key)));
    }
    asked
}

/// The rows before tuning and after it of runs with different seeds, of which there is one at least.
fn mean(found: &[Finished]) -> [Row; 2] {
    let (run, _, first) = found[0];
    let row = |what: &str, selector: &str, of: fn(&Summary) -> (f64, &Figures)| {
        let of_runs: Vec<(f64, &Figures)> = found.iter().map(|(_, _, one)| of(one)).collect();
        let tuned = of_runs.iter().map(|(tuned, _)| tuned).sum::<f64>() / found.len() as f64;
        let figures = Estimate::of(of_runs.into_iter().map(|(_, one)| one.clone()).collect());
        Row {
            run,
            name: common_name(found),
            task: first.task.clone(),
            what: what.to_owned(),
            selector: selector.to_owned(),
            seeds: found.len(),
            tuned,
            figures: figures.mean,
            margins: figures.margin,
            differences: Figures::new(),
            difference_margins: Figures::new(),
        }
    };
    [
        row("before", "", |one| (0.0, &one.before)),
        row("after", &first.selector, |one| (one.tuned_parameter_ratio, &one.after)),
    ]
}

/// What the names of a sweep's runs have before their seeds; of other runs all names.
fn common_name(found: &[Finished]) -> String {
    let stem = |(_, run, _): &Finished| {
        let stem = run.name.strip_suffix(&format!("seed{}", run.seed()))?;
        Some(stem.trim_end_matches('-').to_owned())
    };
    let names = || found.iter().map(|(_, run, _)| &run.name[..]).collect::<Vec<_>>().join(", ");
    match found.first().and_then(stem) {
        Some(first) if found.iter().all(|one| stem(one).as_ref() == Some(&first)) => {
            match &first[..] {
                "" => "all seeds".to_owned(),
                _ => first,
            }
        }
        _ => names(),
    }
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
