//! Disks that are full before a run and while it runs.
#![cfg(unix)]

use super::shell;
use crate::command_line::{succeeds, words};
use crate::run_folders::assert_same;

/// Keeps three copies of the weights with every state, which are larger than the models it saves.
const RUN: &str = "tune --selector all --optimizer adam --steps 4 --set tuning.checkpoint_minutes=1e-9 \
                   --set task.train_examples=64 --set task.test_examples=8";

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether a file system of one's own can be mounted here.
fn can_mount(here: &std::path::Path) -> bool {
    shell(here, "unshare -rm sh -c 'mkdir m && mount -t tmpfs none m'").status.success()
}

/// A disk that has room for the first state only, and gets more.
#[test]
fn a_full_disk_ends_a_run_with_its_last_state_and_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    if !can_mount(here) {
        // The same with a limit on the size of files is the next test.
        return;
    }
    succeeds(here, &words(&format!("{RUN} --out whole")));
    let model = std::fs::metadata(here.join("whole/model/model.safetensors")).unwrap().len();
    let script = format!(
        "unshare -rm sh -c 'mkdir disk; mount -t tmpfs -o size={} none disk || exit 9; \
         \"$PROGRAM\" {RUN} --out disk/run; [ $? = 2 ] || exit 8; \
         mount -o remount,size={} disk || exit 7; \
         \"$PROGRAM\" run --resume disk/run >&2 || exit 6; cp -r disk/run resumed'",
        model * 5,
        model * 100
    );
    let output = shell(here, &script);
    let said = said(&output);
    assert!(output.status.success(), "{:?}: {said}", output.status);
    let error = said.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(error.contains("state after step 1 is kept"), "{said}");
    assert!(error.contains("`circuit-tuning run --resume disk/run`"), "{said}");
    assert_same(&here.join("whole"), &here.join("resumed"));
}

/// A limit on the size of files stands in where nothing can be mounted.
#[test]
fn a_state_that_cannot_be_written_ends_a_run_that_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    succeeds(here, &words(&format!("{RUN} --out whole")));
    let model = std::fs::metadata(here.join("whole/model/model.safetensors")).unwrap().len();
    // POSIX counts blocks of 512 bytes.
    let script =
        format!("trap '' XFSZ; ulimit -f {}; exec \"$PROGRAM\" {RUN} --out run", 2 * model / 512);
    let output = shell(here, &script);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let error = said.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(error.contains("stages that were finished are kept"), "{said}");
    assert!(error.contains("`circuit-tuning run --resume run`"), "{said}");
    succeeds(here, &words("run --resume run"));
    assert_same(&here.join("whole"), &here.join("run"));
}

/// What a run will save is held against the room before it begins.
#[test]
fn a_run_that_has_no_room_does_not_begin() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let line =
        format!("{RUN} --set tuning.checkpoint_every=1 --set tuning.steps=1000000000 --out run");
    crate::command_line::refuses(here, &words(&line), &["1000000001 models", "are free there"]);
    assert!(!here.join("run").exists());
}
