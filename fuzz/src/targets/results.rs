//! Results that are read again: circuits, scores, EAP-IG's graph files, the circuits of a run, deltas.

use std::path::Path;

use anyhow::Result;
use circuit_framework::results::circuit_file::CircuitFile;
use circuit_framework::results::dynamics::Dynamics;
use circuit_framework::results::eap_ig::Correspondence;
use circuit_framework::results::provenance::Geometry;
use circuit_framework::{Circuit, Delta, Scores};
use serde_json::{Value, json};

use super::{Reader, Target, checked, file, files, reference};
use crate::mutate;

pub fn targets() -> Vec<Target> {
    vec![
        Target::new("circuit", mutate::json::mutate, circuits, circuit),
        Target::new("scores", mutate::safetensors::mutate, all_scores, scores),
        Target::new("eap-ig", mutate::json::mutate, graphs, eap_ig),
        Target::new("run-circuits", mutate::json::mutate_lines, runs, run),
        Target::new("delta", mutate::safetensors::mutate, deltas, delta),
    ]
}

const CASE: &str = "eval-gpt2-circuit";
const CIRCUIT: &str = "tests/reference/eval-gpt2-circuit/circuit.json";

/// The circuit, as a former version's file and as today's.
fn circuits() -> Result<Vec<Vec<u8>>> {
    let former = file(CIRCUIT)?;
    let mut now: Value = serde_json::from_slice(&former)?;
    now["provenance"] = json!({
        "model": Geometry::of(&*reference(CASE)?), "model_path": "model", "bos": null, "task": "tokens",
        "metric": "logit_diff", "method": "eap", "ablation": "zero", "positions": "all",
        "nodes": ["embed", "head", "mlp", "logits"], "seed": 0, "examples": 4, "version": "0.1.0",
    });
    Ok(vec![former, now.to_string().into_bytes()])
}

fn circuit(folder: &Path) -> Result<Reader> {
    let (path, model) = (folder.join("circuit.json"), reference(CASE)?);
    Ok(Box::new(move |input| {
        std::fs::write(&path, input)?;
        let bare = checked(CircuitFile::read(&path));
        checked(Circuit::load(&path, &*model, model.graph()))?;
        bare.map(drop)
    }))
}

fn all_scores() -> Result<Vec<Vec<u8>>> {
    let of = |case: &str| format!("tests/reference/{case}/scores.safetensors");
    let paths = ["eval-gpt2-corrupt", "eval-gpt2-mean-lengths", "eval-gpt2-zero-unpruned"].map(of);
    files(&paths.each_ref().map(String::as_str))
}

fn scores(folder: &Path) -> Result<Reader> {
    let (path, model) = (folder.join("scores.safetensors"), reference("eval-gpt2-corrupt")?);
    Ok(Box::new(move |input| {
        std::fs::write(&path, input)?;
        let of = checked(Scores::provenance(&path));
        checked(Scores::load(&path, &*model))?;
        of.map(drop)
    }))
}

fn graphs() -> Result<Vec<Vec<u8>>> {
    let model = reference(CASE)?;
    let circuit = Circuit::load(&super::repository(CIRCUIT), &*model, model.graph())?;
    let graph = Correspondence::of(&*model)?.to_eap_ig(&circuit, None)?.result;
    Ok(vec![graph.to_string().into_bytes()])
}

fn eap_ig(folder: &Path) -> Result<Reader> {
    let path = folder.join("graph.json");
    let correspondence = Correspondence::of(&*reference(CASE)?)?;
    Ok(Box::new(move |input| {
        std::fs::write(&path, input)?;
        checked(correspondence.read(&path))?;
        Ok(())
    }))
}

fn runs() -> Result<Vec<Vec<u8>>> {
    let circuit: Value = serde_json::from_slice(&file(CIRCUIT)?)?;
    let edges = circuit["edges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let line = |step: usize| {
        let own: Vec<&Value> = edges.iter().skip(step).take(8).collect();
        format!("{}\n", json!({ "step": step, "edges": own }))
    };
    Ok(vec![(0..4).map(line).collect::<String>().into_bytes()])
}

fn run(folder: &Path) -> Result<Reader> {
    let folder = folder.to_path_buf();
    Ok(Box::new(move |input| {
        std::fs::write(folder.join("circuits.jsonl"), input)?;
        checked(Dynamics::of_run(&folder))?;
        Ok(())
    }))
}

/// What changing a few rows, and changing all of some parameters, leaves of a model.
fn deltas() -> Result<Vec<Vec<u8>>> {
    let few = delta_of(|parameter, row| parameter % 4 == 1 && row % 8 < 2)?;
    Ok(vec![few, delta_of(|parameter, _| parameter % 9 == 2)?])
}

/// The file of a delta of the rows for which `is_changed` holds, by the parameter's place and the row's.
fn delta_of(is_changed: impl Fn(usize, usize) -> bool) -> Result<Vec<u8>> {
    let (base, tuned) = (reference(CASE)?, reference(CASE)?);
    for (id, parameter) in tuned.parameters().iter() {
        for row in (0..parameter.rows()).filter(|row| is_changed(id.0, *row)) {
            let values = (parameter.tensor.narrow(0, row, 1)? + 1.0)?;
            parameter.tensor.slice_set(&values, 0, row)?;
        }
    }
    let file = tempfile::NamedTempFile::new()?;
    Delta::between(base.parameters(), tuned.parameters(), "model")?.save(file.path())?;
    Ok(std::fs::read(file.path())?)
}

fn delta(folder: &Path) -> Result<Reader> {
    let (path, model) = (folder.join("delta.safetensors"), reference(CASE)?);
    Ok(Box::new(move |input| {
        std::fs::write(&path, input)?;
        let delta = checked(Delta::load(&path))?;
        let half = checked(delta.scale(0.5))?;
        checked(Delta::add(&[&delta, &half]))?;
        // A changed value is put into the model, which is to be as it was for the next input.
        let _base = model.parameters().put_back_on_drop()?;
        checked(delta.apply(model.parameters()))?;
        checked(delta.revert(model.parameters()))?;
        Ok(())
    }))
}
