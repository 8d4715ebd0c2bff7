//! Signals end a run where it can be resumed; a listener that is gone doesn't end it.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::kills::NODES_TOML;
use super::{assert_same, start};
use crate::command_line::{json, refuses, succeeds, words};

/// The first signal ends the step in progress, keeps the state, and says how to go on.
#[test]
fn a_signal_ends_a_run_where_it_can_be_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let config = NODES_TOML.replace("steps = 6", "steps = 40").replace("every = 1", "every = 0");
    std::fs::write(here.join("nodes.toml"), config).unwrap();
    succeeds(here, &words("run nodes.toml --out whole"));
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let child = start(here, &format!("run nodes.toml --out {signal}"));
        let log = here.join(signal).join("log.jsonl.part");
        while !log.exists() {
            std::thread::sleep(Duration::from_millis(2));
        }
        let kill = ["-s", signal, &child.id().to_string()].map(str::to_owned);
        assert!(Command::new("kill").args(kill).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        let last = said.lines().last().unwrap();
        assert!(last.contains(&format!("`circuit-tuning run --resume {signal}`")), "{said}");
        assert!(here.join(signal).join("state").exists());
        succeeds(here, &words(&format!("run --resume {signal}")));
        assert_same(&here.join("whole"), &here.join(signal));
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
