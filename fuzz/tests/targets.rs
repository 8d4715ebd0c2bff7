//! Some changed files for every reader; and what watches the readers sees each way to fail.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::{Command, Output};

fn fuzz(words: &[&str]) -> Output {
    let keep = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_circuit-fuzz"));
    command.args(words).arg("--keep").arg(keep.path());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn no_reader_fails_on_some_changed_files() {
    let output = fuzz(&["--executions", "150", "--seed", "7"]);
    let (table, failures) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{table}{failures}");
    // A row each, below the head.
    assert!(table.lines().count() > 30, "{table}");
}

#[test]
fn every_way_to_fail_is_seen() {
    for (target, kind) in [
        ("broken-panic", "panic: fuzz/src/targets/broken.rs"),
        ("broken-corpus", "file 0 of the corpus is refused: a reader that refuses good files"),
        ("broken-abort", "abort: "),
        ("broken-slow", "slow: 21"),
        ("broken-hang", "hang: more than 20 s"),
        ("broken-memory", "memory allocation of 2147483648 bytes failed"),
        ("broken-stack", "has overflowed its stack"),
    ] {
        let output = fuzz(&[target, "--executions", "4", "--seed", "1"]);
        assert_eq!(output.status.code(), Some(1), "{target}");
        let failures = text(&output.stderr);
        assert!(failures.contains(kind), "{target}: {failures}");
    }
}
