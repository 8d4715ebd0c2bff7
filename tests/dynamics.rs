//! `dynamics` and `diff`: how a circuit changes, and in what two differ, told from a run's own files.

use std::collections::BTreeSet;
use std::path::Path;

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
