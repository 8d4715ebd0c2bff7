//! How far a run had moved what each node owns by each of its checkpoints and at its end: a part of `dynamics`,
//! read from the models that the run left.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use circuit_framework::run::experiment::ModelChoice;
use circuit_framework::run::{Movement, SUMMARY, Summary, movements};
use circuit_framework::{files, progress};
use serde::Serialize;

use super::table;
use crate::print::say;
use crate::{experiments, flags};

/// How many rows of the table are printed.
const SHOWN: usize = 10;

/// How far rows had moved after some steps.
#[derive(Serialize)]
pub(super) struct Moved {
    step: usize,
    nodes: Vec<Movement>,
}

/// Returns the movements by each checkpoint and at the end, in the order of steps.
///
/// # Errors
/// If the run left no model, or the model that it began with isn't there any more.
pub(super) fn of_run(folder: &Path) -> Result<Vec<Moved>> {
    let origin = folder.join("config.toml").display().to_string();
    let experiment = flags::from_table(experiments::find(&origin)?, &origin)?;
    let models = models(folder)?;
    let before = circuit_models::load(&experiment.model).context("the model before tuning")?;
    let before = before.model.parameters().snapshot()?;
    let moved = |(step, path): (usize, PathBuf)| {
        progress::check_stop()?;
        let choice =
            ModelChoice { path, random_init: None, adapter: None, ..experiment.model.clone() };
        let model = circuit_models::load(&choice)?.model;
        Ok(Moved { step, nodes: movements(model.parameters(), &before)? })
    };
    models.into_iter().map(moved).collect()
}

/// Returns the models of a run by the number of steps before them.
fn models(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut models = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(step) = name.strip_prefix("checkpoint-").and_then(|step| step.parse().ok()) {
            models.push((step, path));
        }
    }
    let tuned = folder.join("model");
    if tuned.is_dir() {
        let summary: Summary = files::read_json(&folder.join(SUMMARY))?;
        models.retain(|(step, _)| *step != summary.steps);
        models.push((summary.steps, tuned));
    }
    if models.is_empty() {
        bail!("{}: the run has saved no model to tell movements from", folder.display());
    }
    models.sort();
    Ok(models)
}

/// Returns a line for each part of a node after each number of steps.
pub(super) fn csv(all: &[Moved]) -> String {
    let mut csv = "step,owner,moved,norm\n".to_owned();
    for Moved { step, nodes } in all {
        for Movement { owner, moved, norm } in nodes {
            csv.push_str(&format!("{step},{owner},{moved},{norm}\n"));
        }
    }
    csv
}

/// Prints those that moved furthest by the end, each as a share of its norm before.
pub(super) fn print(all: &[Moved]) {
    let share = |of: &Movement| if of.norm > 0.0 { of.moved / of.norm } else { 0.0 };
    let Some(last) = all.last() else { return };
    let mut order: Vec<usize> = (0..last.nodes.len()).collect();
    order.sort_by(|&a, &b| share(&last.nodes[b]).total_cmp(&share(&last.nodes[a])));
    let steps = all.iter().map(|moved| format!("step {}", moved.step));
    let mut cells = vec![std::iter::once("moved".to_owned()).chain(steps).collect::<Vec<_>>()];
    cells.extend(order.into_iter().take(SHOWN).map(|index| {
        let shares = all.iter().map(|moved| format!("{:.4}", share(&moved.nodes[index])));
        std::iter::once(last.nodes[index].owner.clone()).chain(shares).collect()
    }));
    say!("{}", table::markdown(&cells, 1));
}
