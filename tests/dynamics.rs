//! `dynamics` and `diff`: how a circuit changes, and in what two differ, told from a run's own files.

use std::collections::BTreeSet;
use std::path::Path;

use circuit_framework::pass::values;
use circuit_framework::run::experiment::ModelChoice;
use serde_json::Value;

use crate::command_line::{json, refuses, succeeds, words};

/// The edges of a circuit file or of a line of circuits.jsonl, by their names.
fn edges(circuit: &Value) -> BTreeSet<(String, String)> {
    let name = |edge: &Value, end: &str| edge[end].as_str().unwrap().to_owned();
    let edges = circuit["edges"].as_array().unwrap();
    edges.iter().map(|edge| (name(edge, "writer"), name(edge, "reader"))).collect()
}

fn tuned(here: &Path) {
    let line = "tune --set task.direction=disagreement --ablation corrupt --top-n 30 --steps 9 --lr 2e-3 \
                --set tuning.rediscover_every=3 --set discovery.examples=16 --set task.test_examples=8 --out run";
    succeeds(here, &words(line));
}

#[test]
fn a_runs_dynamics_are_those_of_its_circuits() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    tuned(here);
    let printed = succeeds(here, &words("dynamics run --json d.json --svg d.svg --table d.csv"));
    let found = json(&here.join("d.json"));
    let lines = std::fs::read_to_string(here.join("run/circuits.jsonl")).unwrap();
    let circuits: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(circuits.len() >= 3 && found["steps"].as_array().unwrap().len() == circuits.len());
    let first = edges(&circuits[0]);
    for (index, change) in found["steps"].as_array().unwrap().iter().enumerate() {
        let (own, before) = (edges(&circuits[index]), edges(&circuits[index.saturating_sub(1)]));
        let jaccard = |other: &BTreeSet<_>| {
            own.intersection(other).count() as f64 / own.union(other).count() as f64
        };
        assert_eq!(change["step"], circuits[index]["step"]);
        assert_eq!(change["overlap_first"], jaccard(&first));
        assert_eq!(change["overlap_previous"], jaccard(&before));
        assert_eq!(change["born"], own.difference(&before).count());
        assert_eq!(change["died"], before.difference(&own).count());
    }
    let ever: BTreeSet<_> = circuits.iter().flat_map(edges).collect();
    assert_eq!(found["edges"].as_array().unwrap().len(), ever.len());
    let csv = std::fs::read_to_string(here.join("d.csv")).unwrap();
    assert_eq!(csv.lines().count(), ever.len() + 1);
    assert!(printed.contains(&format!("{} edges were in some circuit", ever.len())), "{printed}");
    assert!(
        std::fs::read_to_string(here.join("d.svg")).unwrap().contains("with the first circuit")
    );
    refuses(here, &words("dynamics nowhere"), &["nowhere", "circuits.jsonl"]);
}

/// Rows moved as the models that the run saved say, and only those that some circuit's nodes own.
#[test]
fn movements_are_the_differences_of_the_saved_models() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let line = "tune --top-n 5 --steps 4 --lr 2e-3 --set tuning.checkpoint_every=2 --set discovery.examples=16 \
                --set discovery.bootstrap=0 --set task.test_examples=8 --nodes head,mlp --out run";
    succeeds(here, &words(line));
    succeeds(here, &words("dynamics run --movement m.csv --json d.json"));
    let weights = |path: &Path| {
        let choice = ModelChoice { path: path.into(), ..ModelChoice::default() };
        circuit_models::load(&choice).unwrap().model.parameters().snapshot().unwrap()
    };
    let before = weights(Path::new("embedded"));
    let found = json(&here.join("d.json"));
    let movement = found["movement"].as_array().unwrap();
    assert_eq!(movement.iter().map(|of| of["step"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 4]);
    for (of, model) in movement.iter().zip(["run/checkpoint-2", "run/model"]) {
        let mut squares = 0.0;
        for (after, before) in weights(&here.join(model)).iter().zip(&before) {
            squares += values(&(after - before).unwrap().sqr().unwrap().flatten_all().unwrap())
                .unwrap()
                .iter()
                .sum::<f64>();
        }
        let moved = |node: &Value| node["moved"].as_f64().unwrap();
        let sum: f64 = of["nodes"].as_array().unwrap().iter().map(|node| moved(node).powi(2)).sum();
        assert!(squares > 0.0 && (sum - squares).abs() < 1e-4 * squares, "{sum} {squares}");
        let text = std::fs::read_to_string(here.join("run/circuits.jsonl")).unwrap();
        for node in of["nodes"].as_array().unwrap() {
            let owner = node["owner"].as_str().unwrap();
            let name = owner.trim_end_matches(" out").trim_end_matches(" in");
            let kind = if owner.ends_with(" out") { "writer" } else { "reader" };
            let is_in = text.contains(&format!("\"{kind}\":\"{name}\""));
            assert!(is_in || moved(node) == 0.0, "{owner}");
        }
    }
    let csv = std::fs::read_to_string(here.join("m.csv")).unwrap();
    let nodes = movement[0]["nodes"].as_array().unwrap().len();
    assert_eq!(csv.lines().count(), 1 + 2 * nodes);
    // Layers' changes are the edges' that were born, gone and turned.
    for key in ["born", "died", "turned"] {
        let sum = |of: &Value| {
            of.as_array().unwrap().iter().map(|of| of[key].as_u64().unwrap()).sum::<u64>()
        };
        assert_eq!(sum(&found["layers"]), sum(&found["steps"]), "{key}");
    }
}

#[test]
fn two_circuits_differ_by_the_edges_of_one_alone() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    tuned(here);
    let line = "diff run/circuit-before.json run --json d.json --svg d.svg --table d.csv";
    let printed = succeeds(here, &words(line));
    let found = json(&here.join("d.json"));
    let [before, after] =
        ["before", "after"].map(|when| json(&here.join(format!("run/circuit-{when}.json"))));
    let (one, other) = (edges(&before), edges(&after));
    let count = |key: &str| found[key].as_array().unwrap().len();
    assert_eq!(count("shared"), one.intersection(&other).count());
    assert_eq!(count("first_only"), one.difference(&other).count());
    assert_eq!(count("second_only"), other.difference(&one).count());
    assert!(count("first_only") > 0, "the test wants circuits that differ");
    assert!(printed.contains(&format!("edges in both    {}", count("shared"))), "{printed}");
    let drawing = std::fs::read_to_string(here.join("d.svg")).unwrap();
    let paths =
        |colour: &str| drawing.matches(&format!("stroke=\"{colour}\" stroke-width")).count();
    assert_eq!(paths("#9a9a9a"), count("shared"));
    assert_eq!(paths("#2166ac"), count("first_only"));
    assert_eq!(paths("#e08214"), count("second_only"));
    let csv = std::fs::read_to_string(here.join("d.csv")).unwrap();
    assert_eq!(csv.lines().count(), one.union(&other).count() + 1);
    let same: Value = serde_json::from_str(&succeeds(here, &words("diff run run --json"))).unwrap();
    assert_eq!((&same["overlap"], &same["turned"]), (&Value::from(1.0), &Value::from(0)));
    refuses(here, &words("diff run nowhere.json"), &["nowhere.json"]);
}
