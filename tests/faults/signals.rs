//! Signals end a run where it can be resumed; a listener that is gone doesn't end it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::kills::NODES_TOML;
use super::start;
use crate::command_line::{json, refuses, succeeds, words};
use crate::run_folders::assert_same;

fn send(signal: &str, child: &Child) {
    let kill = ["-s", signal, &child.id().to_string()].map(str::to_owned);
    assert!(Command::new("kill").args(kill).status().unwrap().success());
}

fn wait_for(path: &Path) {
    while !path.exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The first signal ends the step in progress, keeps the state, and says how to go on.
#[test]
fn a_signal_ends_a_run_where_it_can_be_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let config = NODES_TOML.replace("steps = 6", "steps = 40").replace("every = 1", "every = 0");
    std::fs::write(here.join("nodes.toml"), config).unwrap();
    succeeds(here, &words("run nodes.toml --out whole"));
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let child = start(here, &format!("run nodes.toml --out {signal}"));
        let log = here.join(signal).join("log.jsonl.part");
        wait_for(&log);
        send(signal, &child);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        let last = said.lines().last().unwrap();
        assert!(last.contains(&format!("`circuit-tuning run --resume {signal}`")), "{said}");
        assert!(here.join(signal).join("state").exists());
        succeeds(here, &words(&format!("run --resume {signal}")));
        assert_same(&here.join("whole"), &here.join(signal));
        // What was tuned before the signal counts.
        let summary = json(&here.join(signal).join("summary.json"));
        let seconds = |key: &str| summary[key].as_f64().unwrap();
        assert!(seconds("seconds") >= seconds("tuning_seconds") + seconds("discovery_seconds"));
    }
    // A finished run is shown again.
    let again = succeeds(here, &words("run --resume INT"));
    assert!(again.contains("written to  INT"), "{again}");
    refuses(here, &words("run --resume absent"), &["absent"]);
}

/// A run whose output nobody reads any more runs on.
#[test]
fn a_closed_pipe_does_not_end_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let mut command = Command::new(env!("CARGO_BIN_EXE_circuit-tuning"));
    command.args(words("tune --steps 2 --set task.test_examples=20 --out out")).current_dir(here);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert!(child.wait().unwrap().success());
    assert!(json(&here.join("out/summary.json"))["after"].is_object());
}

/// A stop doesn't wait for a long generation, and nothing of it counts as done.
#[test]
fn a_signal_ends_a_generation() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let row =
        "{\"question\": \"the keys to the cabinet are old\", \"answer\": \"the key #### 1\"}\n";
    std::fs::write(here.join("q.jsonl"), row.repeat(2000)).unwrap();
    let settings = "--set task.generation.max_new_tokens=20 --set evaluation_batch_size=2000";
    let line = format!("tune --task math --data q.jsonl {settings} --steps 1 --out run");
    let child = start(here, &line);
    wait_for(&here.join("run/config.toml"));
    std::thread::sleep(Duration::from_millis(50));
    send("TERM", &child);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(143), "{said}");
    assert!(!here.join("run/state/stages.json").exists(), "{said}");
}

/// What was started under `nohup` ignores that its terminal is gone.
#[test]
fn an_ignored_signal_stays_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let mut command = Command::new("sh");
    let line = "tune --steps 3 --set task.test_examples=20 --out run";
    command.args(["-c", &format!("trap '' HUP; exec \"$PROGRAM\" {line}")]).current_dir(here);
    command.env("PROGRAM", env!("CARGO_BIN_EXE_circuit-tuning"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for(&here.join("run/config.toml"));
    send("HUP", &child);
    assert!(child.wait().unwrap().success());
    assert!(here.join("run/summary.json").exists());
}

/// The main run's figures are there though its controls are not.
#[test]
fn the_summary_is_written_before_controls() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::write(here.join("nodes.toml"), NODES_TOML).unwrap();
    succeeds(here, &words("run nodes.toml --out whole"));
    let mut child = start(here, "run nodes.toml --out run");
    wait_for(&here.join("run/controls/seed-0"));
    child.kill().unwrap();
    child.wait().unwrap();
    let summary = json(&here.join("run/summary.json"));
    assert!(summary["after"]["loss"].is_number() && summary["controls"].is_null(), "{summary}");
    let table = succeeds(here, &words("compare run"));
    assert!(table.contains("| run"), "{table}");
    succeeds(here, &words("run --resume run"));
    assert_same(&here.join("whole"), &here.join("run"));
}
