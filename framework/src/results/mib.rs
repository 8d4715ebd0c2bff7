//! Submissions to MIB's circuit track (Mueller et al., 2025, arXiv 2504.13151): a folder of EAP-IG graph
//! files a task and model, `TASK_MODEL`, in which there is either `importances.json` with a score of every
//! edge, or nine circuits, of at most so many per cent of the edges each.

use std::path::{Path, PathBuf};

use super::eap_ig::{Converted, Correspondence};
use crate::graph::circuit::Circuit;
use crate::graph::scores::Scores;
use crate::model::Model;
use crate::{Error, Result, files, refuse, suggestion};

/// The track's tasks.
const TASKS: [&str; 6] =
    ["ioi", "mcqa", "arithmetic-addition", "arithmetic-subtraction", "arc-easy", "arc-challenge"];

/// The track's models, by config.json's `model_type`.
const MODELS: [(&str, &str); 4] =
    [("gpt2", "gpt2"), ("qwen2", "qwen2.5"), ("gemma2", "gemma2"), ("llama", "llama3")];

/// The sizes of the nine circuits, in per cent of the edges.
const SIZES: [&str; 9] = ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"];

/// Writes a submission's part of one task and model below `folder`: the scores, or where there are none as
/// many of the circuit's edges, best first, as each size allows. What comes back are the files.
///
/// # Errors
/// If the track knows no such task or model, as [`Correspondence::to_eap_ig`]'s, and if the folder of task and
/// model exists or can't be written.
pub fn lay_out(
    folder: &Path,
    task: &str,
    model: &dyn Model,
    theirs: &Correspondence,
    circuit: &Circuit,
    scores: Option<&Scores>,
) -> Result<Converted<Vec<PathBuf>>> {
    let folder = folder.join(format!("{}_{}", task_name(task)?, model_name(model)?));
    let parent = files::parent(&folder);
    std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
    let mut files = Vec::new();
    let mut losses = Vec::new();
    files::make_folder(&folder, |new| {
        for (name, circuit) in parts(theirs, circuit, scores.is_some()) {
            let converted = theirs.to_eap_ig(&circuit, scores)?;
            // The last has all edges of those before.
            losses = converted.losses;
            files::write_atomically(&new.join(&name), converted.result.to_string().as_bytes())?;
            files.push(folder.join(name));
        }
        Ok(())
    })?;
    Ok(Converted { result: files, losses })
}

/// The files by name, and what circuit is in each.
fn parts(theirs: &Correspondence, circuit: &Circuit, has_scores: bool) -> Vec<(String, Circuit)> {
    if has_scores {
        return vec![("importances.json".to_owned(), circuit.clone())];
    }
    let best = |count: usize| Circuit { edges: circuit.edges[..count].to_vec() };
    let part = |size: &&str| {
        let share: f64 = size.parse().unwrap_or(0.0);
        let most = (share / 100.0 * theirs.edge_count() as f64).floor() as usize;
        let counts: Vec<usize> = (1..=circuit.edges.len()).collect();
        let fitting = counts.partition_point(|&count| theirs.count(&best(count)) <= most);
        (format!("{size}.json"), best(fitting))
    };
    SIZES.iter().map(part).collect()
}

fn task_name(task: &str) -> Result<String> {
    let name = task.replace('_', "-");
    if !TASKS.contains(&&name[..]) {
        refuse!("MIB's circuit track has no task `{task}`{}", suggestion(task, TASKS));
    }
    Ok(name)
}

fn model_name(model: &dyn Model) -> Result<&'static str> {
    let kind = model.config()["model_type"].as_str().unwrap_or_default();
    match MODELS.iter().find(|(of, _)| *of == kind) {
        Some((_, name)) => Ok(name),
        None => refuse!(
            "MIB's circuit track has no model of type `{kind}`; it has {}",
            MODELS.map(|(of, _)| of).join(", ")
        ),
    }
}
