//! `analyze`: what each analysis prints, writes and draws, of a model and of a run before and after tuning;
//! the same in an experiment; and what is refused.

use std::path::Path;

use serde_json::Value;

use crate::command_line::{json, program, refuses, succeeds, words};
use crate::support::repository;

/// A run whose circuits, analyses and tuned model are looked at.
const RUN: &str = "tune --ablation corrupt --top-n 100 --steps 2 --set task.train_examples=32 \
    --set task.test_examples=16 --analyses logits,attention,paths,roles --out out";

fn object(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn analyze(folder: &Path, line: &str) -> Value {
    object(&succeeds(folder, &words(&format!("analyze {line} --json"))))
}

/// One of three sentences has no counterfactual: circuits are evaluated, and paths patched, on the other two.
#[test]
fn test_examples_without_what_an_ablation_needs_are_left_out() {
    let page = std::fs::read_to_string(repository("docs/data.md")).unwrap();
    let lines = page.lines().filter(|line| line.starts_with("{\"clean_text\"")).map(object);
    let mut lines: Vec<Value> = lines.collect();
    assert_eq!(lines.len(), 3);
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let write = |name: &str, lines: &[Value]| {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(here.join(name), text).unwrap();
    };
    write("two.jsonl", &lines[1..]);
    lines[0].as_object_mut().unwrap().remove("counterfactual");
    write("three.jsonl", &lines);
    let paths = |file: &str, ablation: &str| {
        let line = format!(
            "paths --to logits --set task.data={file} --set task.test_data={file} --ablation {ablation}"
        );
        analyze(here, &line)
    };
    assert_eq!(paths("three.jsonl", "corrupt"), paths("two.jsonl", "corrupt"));
    assert_ne!(paths("three.jsonl", "zero"), paths("two.jsonl", "zero"));
    let of_three =
        "--set task.data=three.jsonl --set task.test_data=three.jsonl --ablation corrupt";
    succeeds(
        here,
        &words(&format!("discover {of_three} --positions all --scores scores.safetensors")),
    );
    let line = format!("faithfulness {of_three} --ranking absolute --scores scores.safetensors");
    let output = program(here, &words(&line));
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("2 of 3 test examples have what ablation `corrupt` needs"), "{said}");
    write("one.jsonl", &lines[..1]);
    let line = "analyze paths --to logits --set task.data=two.jsonl --set task.test_data=one.jsonl --ablation corrupt";
    refuses(here, &words(line), &["one.jsonl:1", "counterfactual"]);
}

#[test]
fn a_run_holds_what_the_command_finds() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    succeeds(here, &words(RUN));
    for (name, more) in
        [("logits", ""), ("attention", ""), ("paths", "--strongest 3"), ("roles", "")]
    {
        let line = format!("{name} --run out {more} --table t.csv --svg m.svg --force");
        let found = analyze(here, &line);
        assert_ne!(found["before"], found["after"], "{name}");
        let svg = std::fs::read_to_string(here.join("m.svg")).unwrap();
        assert!(svg.contains(">before<") && svg.contains(">after<"), "{name}");
        let mut expected = Vec::new();
        for when in ["before", "after"] {
            let written =
                |extension: &str| here.join(format!("out/analysis-{when}/{name}.{extension}"));
            // What was tuned in memory is read from its folder here.
            assert!(is_near(&found[when], &json(&written("json"))), "{name} {when}");
            let svg = std::fs::read_to_string(written("svg")).unwrap();
            assert!(svg.starts_with("<svg ") && svg.contains("<rect "), "{name} {when}");
            let lines = std::fs::read_to_string(written("csv")).unwrap();
            expected.extend(
                lines
                    .lines()
                    .skip(1)
                    .map(|line| format!("{when},{}", line.split(',').next().unwrap())),
            );
        }
        let table = std::fs::read_to_string(here.join("t.csv")).unwrap();
        assert!(table.starts_with("model,node,"), "{name}");
        let nodes: Vec<String> = (table.lines().skip(1))
            .map(|line| line.split(',').take(2).collect::<Vec<_>>().join(","))
            .collect();
        assert_eq!(nodes, expected, "{name}");
    }
    let settings = std::fs::read_to_string(here.join("out/config.toml")).unwrap();
    assert!(settings.contains("analyses = [\"logits\", \"attention\", \"paths\", \"roles\"]"));
}

/// The same to what float32 rounds otherwise.
fn is_near(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() < 1e-4 * (1.0 + a.abs())
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_near(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, value)| b.get(key).is_some_and(|other| is_near(value, other)))
        }
        _ => a == b,
    }
}

/// head.0.1 of the built-in model reads the subject, and tells the MLP behind it.
#[test]
fn the_head_that_carries_the_subjects_number_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let paths = analyze(here, "paths --to mlp.0 --ablation corrupt");
    let strongest = |paths: &Value| {
        let nodes = paths["nodes"].as_array().unwrap().clone();
        let size = |of: &Value| of["effect"].as_f64().unwrap().abs();
        nodes.into_iter().max_by(|a, b| size(a).total_cmp(&size(b))).unwrap()["node"].clone()
    };
    assert_eq!(strongest(&paths), "head.0.1");
    std::fs::write(here.join("paths.json"), paths.to_string()).unwrap();
    // From one writer alone it is the same.
    let from = analyze(here, "paths --from head.0.1 --to mlp.0 --ablation corrupt");
    let all = paths["nodes"].as_array().unwrap();
    let of_head: Vec<&Value> = all.iter().filter(|of| of["node"] == "head.0.1").collect();
    assert!(is_near(&from["nodes"], &serde_json::json!(of_head)), "{from}");
    let chosen = analyze(here, "paths --strongest 1 --of paths.json --port v --ablation corrupt");
    assert_eq!(chosen["to"], Value::from(vec!["head.0.1.v"]));
    assert_eq!(strongest(&chosen), "embed");
    let attention = analyze(here, "attention --heads head.0.1 --patterns 2");
    let looks = &attention["heads"][0]["looks"];
    assert!(looks["subject"]["share"].as_f64().unwrap() > 0.95);
    assert!(looks["subject"]["largest"].as_f64().unwrap() >= 0.99);
    assert!(looks["attractor"]["largest"].as_f64().unwrap() < 0.01);
    assert_eq!(attention["patterns"].as_array().unwrap().len(), 2);
    let shown = succeeds(here, &words("analyze attention --heads head.0.1 --patterns 1"));
    assert!(shown.contains("| \"hill\"    | subject   |"), "{shown}");
}

#[test]
fn what_cannot_be_analysed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let example = "{\"tokens\": [1, 3, 119, 1, 4, 83], \"key_positions\": [5]}\n";
    std::fs::write(here.join("data.jsonl"), example).unwrap();
    for (line, parts) in [
        ("logits --task tokens --data data.jsonl --metric loss", &["data.jsonl:1", "wrong"][..]),
        ("attention --heads mlp.0", &["mlp.0", "head.LAYER.HEAD"]),
        ("attention --heads head.9.9", &["head.9.9", "no attention head"]),
        ("attention --heads nothing", &["`nothing` is no node"]),
        ("paths --to head.9.9.q", &["no reader `head.9.9.q`"]),
        ("paths --to embed", &["no reader `embed`"]),
        ("paths --from head.9.9 --to logits", &["no writer `head.9.9`"]),
        ("paths --from mlp.0,nothing --to logits", &["`nothing` is no node"]),
        ("paths --from mlp.1 --to head.1.0.q,mlp.0", &["no path leads", "writers stand before"]),
        ("paths --strongest 2 --port z", &["--port z", "q, k and v"]),
        ("paths --strongest 2 --of data.jsonl", &["data.jsonl", "analyze logits"]),
        ("logits --run nowhere", &["nowhere", "is no run folder"]),
        ("roles --circuit data.jsonl", &["data.jsonl"]),
        ("logits --examples 0", &["analysis_examples"]),
    ] {
        refuses(here, &words(&format!("analyze {line}")), parts);
    }
    let data = "--set task.name=tokens --set task.data=data.jsonl --metric loss";
    let tune = format!("tune {data} --steps 1 --analyses logits");
    refuses(here, &words(&tune), &["data.jsonl:1", "wrong"]);
    let tune = "tune --steps 1 --analyses logit";
    refuses(here, &words(tune), &["logit", "logits"]);
}
