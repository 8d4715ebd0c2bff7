//! Processes that work in one place at once.

use std::process::Child;

use super::{names, start};
use crate::command_line::{json, program, refuses, succeeds, words};

/// Runs that start at once in one place each have a folder of their own.
#[test]
fn runs_never_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let line = "tune --steps 1 --set task.test_examples=10 --set task.train_examples=16";
    let children: Vec<Child> = (0..6).map(|_| start(here, line)).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let mut names: Vec<String> = std::fs::read_dir(here.join("runs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, (1..=6).map(|n| format!("tune-{n}")).collect::<Vec<_>>());
    // Of those that are given one name, one has it.
    let children: Vec<Child> = (0..4).map(|_| start(here, &format!("{line} --out one"))).collect();
    let codes = children.into_iter().map(|mut child| child.wait().unwrap().success());
    assert_eq!(codes.filter(|success| *success).count(), 1);
    assert!(program(here, &words("run --resume one")).status.success());
}

const SWEEP: &str = "
    [task]
    name = 'tokens'
    data = 'mine.jsonl'
    [pruning]
    top_n = 20
    [tuning]
    steps = 2
    [sweep]
    seeds = [0, 1]
";

const ROW: &str = "{\"tokens\": [1, 3, 119, 1, 4, 83, 98], \"key_positions\": [5], \"correct\": [83], \"wrong\": [82]}\n";

/// Two processes in one folder deleted each other's runs.
#[test]
fn a_sweep_is_run_by_one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::write(here.join("mine.jsonl"), ROW.repeat(8)).unwrap();
    std::fs::write(here.join("sweep.toml"), SWEEP).unwrap();
    let children: Vec<Child> = (0..4).map(|_| start(here, "run sweep.toml --out sweep")).collect();
    let mut done = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.success() {
            true => done += 1,
            false => assert!(said.contains("another process is running this sweep"), "{said}"),
        }
    }
    assert!(done >= 1);
    let cells = ["compare.json", "compare.md", "failed.json", "report.html", "seed0", "seed1"];
    assert_eq!(names(&here.join("sweep"))[..6], cells);
    assert_eq!(json(&here.join("sweep/compare.json")).as_array().unwrap().len(), 3);
}

/// What was found with other data says nothing of the new.
#[test]
fn a_cell_whose_data_changed_is_named_and_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::write(here.join("mine.jsonl"), ROW.repeat(8)).unwrap();
    std::fs::write(here.join("sweep.toml"), SWEEP).unwrap();
    let run = || succeeds(here, &words("run sweep.toml --out sweep"));
    run();
    let inputs = json(&here.join("sweep/seed0/inputs.json"));
    assert_eq!(inputs["mine.jsonl"].as_str().unwrap().len(), 64, "{inputs}");
    assert_eq!(run().matches("done before").count(), 2);
    let before = std::fs::read(here.join("sweep/seed0/summary.json")).unwrap();
    std::fs::write(here.join("mine.jsonl"), ROW.repeat(9)).unwrap();
    let again = run();
    assert_eq!(again.matches("stale: mine.jsonl is another file now").count(), 2, "{again}");
    assert_eq!(std::fs::read(here.join("sweep/seed0.stale-1/summary.json")).unwrap(), before);
    assert_eq!(run().matches("done before").count(), 2);
    // A run doesn't go on with other data either.
    std::fs::remove_file(here.join("sweep/seed0/summary.json")).unwrap();
    std::fs::write(here.join("mine.jsonl"), ROW.repeat(10)).unwrap();
    refuses(here, &words("run --resume sweep/seed0"), &["mine.jsonl", "another file", "put"]);
    // What is done is kept where the data is gone.
    std::fs::remove_file(here.join("mine.jsonl")).unwrap();
    assert!(succeeds(here, &words("run --resume sweep/seed1")).contains("written to"));
}
