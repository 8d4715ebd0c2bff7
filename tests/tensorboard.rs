//! Event files, read by TensorBoard itself: they have what the run's own files have, also after a run that was
//! ended goes on.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::command_line::{json, lines, succeeds, words};
use crate::support::{repository, skip};

/// What TensorBoard reads in a folder; none where its package isn't installed.
fn read(folder: &Path) -> Option<Value> {
    let python = repository("target/python/bin/python");
    let mut has = Command::new(&python);
    let has = has.args(["-c", "import tensorboard"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        return skip("no target/python with notebooks/requirements.txt; make it as .ci/run does");
    }
    let script = repository("tests/fixtures/read_events.py");
    let output = Command::new(&python).arg(script).arg(folder).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !errors.contains("corrupt"), "{errors}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// A scalar is single precision.
fn close(found: &Value, expected: &Value) -> bool {
    let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
    (found - expected).abs() <= 1e-6 * (1.0 + expected.abs())
}

#[test]
fn tensorboard_reads_what_the_run_wrote_down() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let line = "tune --steps 4 --lr 2e-3 --top-n 30 --set discovery.bootstrap=0 --set tuning.evaluate_every=2 \
                --set task.test_examples=20 --set tracking.tensorboard=true --set controls.kinds=random --out run";
    succeeds(here, &words(line));
    let run = here.join("run");
    let Some(found) = read(&run) else { return };
    assert_eq!(found["version"], 2.0);
    let points = |found: &Value, tag: &str| -> Vec<(u64, Value)> {
        let points = found["scalars"][tag].as_array().unwrap_or_else(|| panic!("{tag}"));
        points.iter().map(|point| (point[0].as_u64().unwrap(), point[1].clone())).collect()
    };
    let log = lines(&run.join("log.jsonl"));
    for name in ["loss", "metric", "learning_rate", "tuned_share", "overlap", "edges"] {
        let points = points(&found, &format!("train/{name}"));
        assert_eq!(points.len(), log.len());
        for ((step, value), line) in points.iter().zip(&log) {
            assert!(
                *step == line["step"].as_u64().unwrap() + 1 && close(value, &line[name]),
                "{name}"
            );
        }
    }
    // Before, on the way, and after, which is where the last one on the way was.
    let (summary, on_the_way) =
        (json(&run.join("summary.json")), lines(&run.join("evaluations.jsonl")));
    for (name, before) in summary["before"].as_object().unwrap() {
        let points = points(&found, &format!("held_out/{name}"));
        assert_eq!(points.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 2, 4], "{name}");
        for ((_, value), expected) in
            points.iter().zip([before, &on_the_way[0]["figures"][name], &summary["after"][name]])
        {
            assert!(close(value, expected), "{name}: {value} {expected}");
        }
    }
    let settings =
        &found["hparams"]["_hparams_/session_start_info"]["session_start_info"]["hparams"];
    assert_eq!(settings["tuning.lr"], 2e-3);
    assert_eq!(settings["pruning.top_n"], 30.0);
    assert_eq!(settings["selector.name"], "nodes");
    assert_eq!(settings["tuning.shuffle"], true);
    let end = &found["hparams"]["_hparams_/session_end_info"]["session_end_info"];
    assert_eq!(end["status"], "STATUS_SUCCESS");
    let control = read(&run.join("controls/seed-0/random")).unwrap();
    assert_eq!(points(&control, "train/loss").len(), 4);
}

#[test]
fn a_run_that_goes_on_has_every_step_once() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let line = "tune --steps 5 --top-n 30 --set discovery.bootstrap=0 --set task.test_examples=20 \
                --set tracking.tensorboard=true --set tuning.checkpoint_every=2 --out run";
    succeeds(here, &words(line));
    let run = here.join("run");
    let Some(whole) = read(&run) else { return };
    // As if it had been killed in a record, with the state of step 4 the newest that was kept.
    let file = run.join("events.out.tfevents.0.circuit-tuning");
    let bytes = std::fs::read(&file).unwrap();
    assert!(bytes.len() > 1000);
    let again = here.join("again");
    let line = "tune --steps 5 --top-n 30 --set discovery.bootstrap=0 --set task.test_examples=20 \
                --set tracking.tensorboard=true --set tuning.checkpoint_every=2 --out again";
    let mut child = Command::new(env!("CARGO_BIN_EXE_circuit-tuning"))
        .args(words(line))
        .current_dir(here)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !again.join("checkpoint-4").exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::write(again.join("events.out.tfevents.0.circuit-tuning"), &bytes[..bytes.len() - 40])
        .unwrap();
    succeeds(here, &words("run --resume again"));
    let resumed = read(&again).unwrap();
    assert_eq!(resumed["scalars"], whole["scalars"]);
}
