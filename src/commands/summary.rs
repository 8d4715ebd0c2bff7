//! How a finished run is shown: figures side by side, means over seeds with their intervals, what controls
//! differ by, what was tuned, and what it took.

use std::collections::BTreeMap;
use std::path::Path;

use circuit_framework::Figures;
use circuit_framework::run::controls::{ControlsSummary, Estimate};
use circuit_framework::run::{CircuitSummary, RankingSummary, Summary};
use serde::Serialize;

use super::print_columns;
use crate::print::say;

/// A finished run.
#[derive(Serialize)]
pub(super) struct Finished<'a> {
    pub(super) folder: &'a Path,
    #[serde(flatten)]
    pub(super) summary: Summary,
}

/// Prints a run's figures, with its controls' beside them.
pub(super) fn print(Finished { folder, summary }: &Finished) {
    match &summary.controls {
        None => {
            let columns = [("before", cells(&summary.before)), ("after", cells(&summary.after))];
            print_columns(&columns, &summary.shown);
        }
        Some(controls) => print_controls(controls, &summary.shown),
    }
    say!("");
    if let Some(before) = &summary.faithfulness_before {
        print_faithfulness(before, summary.faithfulness_after.as_ref());
        say!("");
    }
    let line = |name: &str, text: String| say!("{name:width$}{text}", width = label_width(summary));
    let percent = |ratio: f64| format!("{:.1} %", 100.0 * ratio);
    let Summary { tuned_parameters, parameters, steps, .. } = summary;
    let share = percent(summary.tuned_parameter_ratio);
    line(
        "tuned",
        format!("{tuned_parameters} of {parameters} parameters ({share}) in {steps} steps"),
    );
    if let Some(controls) = &summary.controls {
        if controls.seeds.len() > 1 {
            line(
                "circuit",
                format!("{} over seeds", percent(controls.circuit.tuned_parameter_ratio)),
            );
        }
        for control in &controls.kinds {
            line(&control.kind, percent(control.tuned.tuned_parameter_ratio));
        }
    }
    line("discovery", format!("{:.1} s", summary.discovery_seconds));
    line("tuning", format!("{:.1} s", summary.tuning_seconds));
    line("written to", folder.display().to_string());
}

/// The width of what stands before a line, with two spaces after it.
fn label_width(summary: &Summary) -> usize {
    let kinds = summary.controls.iter().flat_map(|controls| &controls.kinds);
    kinds.map(|control| control.kind.chars().count()).max().unwrap_or(0).max("written to".len()) + 2
}

/// The means of circuit and controls, and below them what each control differs from the circuit by.
fn print_controls(
    ControlsSummary { seeds, before, circuit, kinds }: &ControlsSummary,
    shown: &[String],
) {
    let mut columns = vec![("before", estimates(before)), ("after", estimates(&circuit.after))];
    columns
        .extend(kinds.iter().map(|control| (&control.kind[..], estimates(&control.tuned.after))));
    print_columns(&columns, shown);
    if seeds.len() == 1 {
        return;
    }
    let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
    say!("\nmeans over seeds {}, ± half their 95 % interval (Student's t)", seeds.join(", "));
    if !kinds.is_empty() {
        say!("\nless the circuit with the same seed");
        let columns: Vec<_> = (kinds.iter())
            .map(|control| (&control.kind[..], estimates(&control.difference)))
            .collect();
        print_columns(&columns, shown);
    }
}

/// What the circuits before and after tuning come to when they are run alone.
fn print_faithfulness(before: &CircuitSummary, after: Option<&CircuitSummary>) {
    let columns: Vec<&CircuitSummary> = [Some(before), after].into_iter().flatten().collect();
    let line = |name: &str, cell: &dyn Fn(&CircuitSummary) -> Option<String>| {
        let cells = columns.iter().map(|column| cell(column).unwrap_or_else(|| "-".to_owned()));
        say!("{name:42}{}", cells.map(|cell| format!("{cell:>10}")).collect::<String>());
    };
    let share = |ranking: Option<&RankingSummary>| {
        let smallest = ranking?.smallest.as_ref()?;
        Some(format!("{:.1} %", 100.0 * smallest.fraction))
    };
    say!("{:42}{:>10}{:>10}", "run alone, the rest ablated", "before", "after");
    let n = before.circuit.n;
    line(&format!("faithfulness of the circuit, {n} edges"), &|column| {
        Some(thousandths(column.circuit.faithfulness))
    });
    line(&format!("of the other {} edges", before.edges - n), &|column| {
        Some(thousandths(column.circuit.complement.faithfulness))
    });
    if let Some(smallest) = &before.ranked.smallest {
        line(&format!("edges that reach {}, by score", smallest.reach), &|column| {
            share(Some(&column.ranked))
        });
        line("and drawn at random", &|column| share(column.random.as_ref()));
    }
}

/// A number with three decimals; what rounds to 0 has no sign.
fn thousandths(value: f64) -> String {
    format!("{:.3}", (1000.0 * value).round() / 1000.0 + 0.0)
}

/// Figures as they are printed.
pub(super) fn cells(figures: &Figures) -> BTreeMap<&String, String> {
    figures.iter().map(|(name, value)| (name, format!("{value:.4}"))).collect()
}

fn estimates(Estimate { mean, margin, .. }: &Estimate) -> BTreeMap<&String, String> {
    mean.iter().map(|(name, &mean)| (name, estimate(mean, margin.get(name)))).collect()
}

/// A mean, and half its interval's width where it has one.
pub(super) fn estimate(mean: f64, margin: Option<&f64>) -> String {
    match margin {
        Some(margin) => format!("{mean:.4} ± {margin:.4}"),
        None => format!("{mean:.4}"),
    }
}
