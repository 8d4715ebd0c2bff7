//! Processes that work in one place at once.

use std::process::Child;

use super::start;
use crate::command_line::{program, words};

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
