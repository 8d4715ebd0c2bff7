//! How results come out: `--json`, tables of comparison, a closed pipe.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::command_line::{json, program, refuses, succeeds, words};

const EXAMPLES: &str = "\
{\"tokens\": [1, 3, 119, 1, 4, 83, 98], \"key_positions\": [5], \"correct\": [83], \"wrong\": [82]}
{\"tokens\": [1, 2, 119, 1, 5, 82, 98], \"key_positions\": [5], \"correct\": [82], \"wrong\": [83]}
";

const SMALL: &str = "--set task.train_examples=8 --set task.test_examples=8";

fn object(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Without a file the object is all there is; with one, the file has it and the words are printed.
fn prints_and_writes(folder: &Path, line: &str, part: &str) -> Value {
    let printed = object(&succeeds(folder, &words(&format!("{line} --json"))));
    let shown = succeeds(folder, &words(&format!("{line} --json out.json --force")));
    assert!(shown.contains(part), "{line}: {shown}");
    let written = json(&folder.join("out.json"));
    let keys = |value: &Value| -> Vec<String> {
        value.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
    };
    assert_eq!(keys(&printed), keys(&written), "{line}");
    printed
}

#[test]
fn json_is_one_flag_on_every_command_that_prints_a_result() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let figures = prints_and_writes(here, &format!("eval {SMALL}"), "right_share");
    assert!(figures["loss"].is_number());
    let found = prints_and_writes(here, &format!("discover {SMALL} --top-n 7"), "the strongest");
    assert_eq!(found["circuit"]["edges"].as_array().unwrap().len(), 7);
    assert!(found["metric"].is_number() && found["graph_edges"].is_number());
    for command in ["tune", "run embedded"] {
        let line = format!("{command} {SMALL} --set tuning.steps=1");
        let summary = prints_and_writes(here, &line, "written to");
        assert!(summary["before"]["loss"].is_number(), "{summary}");
        assert!(here.join(summary["folder"].as_str().unwrap()).join("model").exists());
    }
    prints_and_writes(here, "bench --steps 1 --batch-size 2 --seq-len 8", "tokens/s");
    prints_and_writes(here, "compare runs/tune-1", "### agreement");
    let listed = prints_and_writes(here, "list metrics", "kl_divergence");
    assert_eq!(listed["measuring_metrics"][0]["name"], "accuracy");
    let listed = prints_and_writes(here, "list settings", "tuning.lr");
    let settings = listed["settings"].as_array().unwrap();
    assert!(settings.iter().any(|setting| setting["name"] == "tuning.lr"), "{listed}");
    std::fs::write(here.join("sweep.toml"), "[sweep]\nseeds = [0, 1]\n").unwrap();
    refuses(here, &words("run sweep.toml --json"), &["compare.json"]);
}

/// Only progress and notes are left out.
#[test]
fn quiet_commands_say_nothing_but_their_result() {
    let folder = tempfile::tempdir().unwrap();
    let line = format!("eval {SMALL}");
    let [loud, quiet] =
        ["", " --quiet"].map(|flag| program(folder.path(), &words(&(line.clone() + flag))));
    assert!(!loud.stderr.is_empty() && quiet.stderr.is_empty());
    assert_eq!(loud.stdout, quiet.stdout);
    // A warning is heard.
    std::fs::write(folder.path().join("s.txt"), "the zebra[[ is| are]] old\n").unwrap();
    let warned = program(folder.path(), &words("tokens s.txt --out s.jsonl --quiet"));
    assert!(String::from_utf8_lossy(&warned.stderr).contains("zebra"));
}

#[test]
fn runs_are_compared_task_by_task() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::write(here.join("mine.jsonl"), EXAMPLES).unwrap();
    succeeds(here, &words("tune --task tokens --data mine.jsonl --steps 1 --out one"));
    succeeds(here, &words(&format!("tune {SMALL} --steps 1 --out two")));
    let table = succeeds(here, &words("compare one two --markdown table.md"));
    assert_eq!(std::fs::read_to_string(here.join("table.md")).unwrap(), table);
    let tables: Vec<&str> = table.split("### ").collect();
    let [_, tokens, agreement] = tables[..] else { panic!("{table}") };
    assert!(tokens.starts_with("tokens\n") && tokens.contains("| one"), "{table}");
    assert!(agreement.starts_with("agreement\n") && agreement.contains("| two"), "{table}");
    assert!(!tokens.contains("two") && !agreement.contains("one"), "{table}");
}

#[test]
fn nothing_to_time_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    refuses(folder.path(), &words("bench --steps 0"), &["0 steps", "1 or more"]);
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_ends_the_program_without_a_word() {
    use std::os::unix::process::ExitStatusExt;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_circuit-tuning"));
    let output = command.arg("list").stdout(writer).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    // By the signal that ends `yes | head` too.
    assert_eq!(output.status.signal(), Some(13));
}

/// The table has every edge of the score file with its score, and says which are in the circuit.
#[test]
fn edges_are_written_as_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let line = "--top-n 7 --table t.csv --circuit c.json --scores s.safetensors --json";
    let found = object(&succeeds(here, &words(&format!("discover {SMALL} {line}"))));
    let table = std::fs::read_to_string(here.join("t.csv")).unwrap();
    let mut lines = table.lines();
    assert_eq!(
        lines.next(),
        Some("writer,reader,layer,score,standard_error,resample_share,in_circuit")
    );
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len() as u64, found["graph_edges"].as_u64().unwrap());
    let tensors =
        candle_core::safetensors::load(here.join("s.safetensors"), &candle_core::Device::Cpu);
    let scores = tensors.unwrap()["scores"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    // Both are by writer, then reader; the matrix has 0 where there is no edge.
    let own: Vec<f32> = rows.iter().map(|row| row[3].parse().unwrap()).collect();
    let nonzero =
        |scores: &[f32]| -> Vec<f32> { scores.iter().copied().filter(|s| *s != 0.0).collect() };
    assert_eq!(nonzero(&own), nonzero(&scores));
    let circuit = json(&here.join("c.json"));
    let edges = circuit["edges"].as_array().unwrap();
    for row in &rows {
        let edge = edges.iter().find(|edge| edge["writer"] == row[0] && edge["reader"] == row[1]);
        assert_eq!(row[6], edge.is_some().to_string(), "{row:?}");
        assert!(edge.is_none_or(
            |edge| edge["score"].as_f64().unwrap() as f32 == row[3].parse::<f32>().unwrap()
        ));
        let layer = row[1].split('.').nth(1).unwrap_or_default();
        assert_eq!(row[2], layer, "{row:?}");
    }
    assert_eq!(rows.iter().filter(|row| row[6] == "true").count(), 7);
}
