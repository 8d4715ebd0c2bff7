//! Circuits as sets: what `circuit union`, `intersection` and `difference` write.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::command_line::{json, refuses, succeeds, words};

/// The command's circuits are the sets that their names say, with the first one's scores.
#[test]
fn circuits_are_joined_intersected_and_subtracted() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let run = |line: &str| succeeds(here, &words(line));
    for (task, seed) in [("agreement", 0), ("ioi", 0), ("agreement", 1)] {
        let sizes = "--set task.train_examples=16 --top-n 40 --method eap";
        run(&format!("discover --task {task} {sizes} --seed {seed} --circuit {task}{seed}.json"));
    }
    type Edges = BTreeMap<(String, String), f64>;
    let edges = |name: &str| -> Edges {
        let circuit = json(&here.join(name));
        let edge = |edge: &Value| {
            let name = |end: &str| edge[end].as_str().unwrap().to_owned();
            ((name("writer"), name("reader")), edge["score"].as_f64().unwrap())
        };
        circuit["edges"].as_array().unwrap().iter().map(edge).collect()
    };
    let all = ["agreement0.json", "ioi0.json", "agreement1.json"];
    let sets = all.map(&edges);
    for (operation, keep) in [
        ("union", (|_| true) as fn([bool; 3]) -> bool),
        ("intersection", |is_in| is_in == [true; 3]),
        ("difference", |is_in| is_in == [true, false, false]),
    ] {
        run(&format!("circuit {operation} {} --out {operation}.json", all.join(" ")));
        let mut expected = Edges::new();
        for (edge, score) in sets.iter().flatten() {
            let is_in = [0, 1, 2].map(|set: usize| sets[set].contains_key(edge));
            if keep(is_in) {
                expected.entry(edge.clone()).or_insert(*score);
            }
        }
        assert_eq!(edges(&format!("{operation}.json")), expected, "{operation}");
        assert!(operation == "intersection" || !expected.is_empty());
    }
    run(
        "faithfulness --task ioi --set task.test_examples=16 --ablation corrupt --circuit union.json",
    );
    let other = json(&here.join("ioi0.json")).to_string().replace("\"layers\":4", "\"layers\":5");
    std::fs::write(here.join("other.json"), other).unwrap();
    refuses(
        here,
        &words("circuit union ioi0.json other.json --out x"),
        &["other.json", "geometry"],
    );
    refuses(here, &words("circuit union ioi0.json --out x"), &["2"]);
}
