//! What exists is never destroyed: outputs that exist, are read, or are no files; names that lead elsewhere.

use std::path::Path;

use super::{names, shell};
use crate::command_line::{json, program, refuses, succeeds, words};
use crate::support::repository;

const SMALL: &str = "--set task.train_examples=8 --set task.test_examples=8";

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

fn read(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap()
}

#[test]
fn a_file_that_exists_is_replaced_only_by_force() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let discover = format!("discover {SMALL} --top-n 5 --circuit c.json");
    succeeds(here, &words(&discover));
    let outputs = [
        discover.clone(),
        format!("discover {SMALL} --top-n 5 --table there"),
        format!("discover {SMALL} --top-n 5 --per-example there"),
        "draw c.json --out there".to_owned(),
        "list metrics --json there".to_owned(),
        format!("tune {SMALL} --json there"),
        format!("eval {SMALL} --json there"),
        "convert c.json --model embedded --to eap-ig --out there".to_owned(),
        "tokens s.txt --out there".to_owned(),
        format!("methods --compare relp {SMALL} --markdown there"),
        format!("analyze logits {SMALL} --svg there"),
    ];
    write(here, "s.txt", "the key[[ is| are]] old\n");
    write(here, "there", "mine");
    std::fs::rename(here.join("c.json"), here.join("d.json")).unwrap();
    std::fs::copy(here.join("d.json"), here.join("c.json")).unwrap();
    for line in &outputs {
        refuses(here, &words(line), &["exists already", "--force"]);
    }
    assert_eq!(read(here, "there"), "mine");
    assert_eq!(read(here, "c.json"), read(here, "d.json"));
    assert!(!here.join("runs").exists());
    succeeds(here, &words("list metrics --json there --force"));
    assert!(json(&here.join("there"))["metrics"].is_array());
}

#[test]
fn what_is_read_is_never_written() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let from = repository("tests/reference/gpt2-key-mean");
    std::fs::create_dir(here.join("model")).unwrap();
    for file in ["model/config.json", "model/model.safetensors", "examples.jsonl"] {
        std::fs::copy(from.join(file), here.join(file)).unwrap();
    }
    let weights = std::fs::read(here.join("model/model.safetensors")).unwrap();
    std::fs::hard_link(here.join("model/model.safetensors"), here.join("weights")).unwrap();
    let discover = "discover --model model --task tokens --data examples.jsonl --top-n 5 --force";
    for scores in ["model/model.safetensors", "./model/../model/model.safetensors", "weights"] {
        let line = format!("{discover} --scores {scores}");
        refuses(here, &words(&line), &["--scores", "is read", "another file"]);
    }
    let line = format!("{discover} --circuit examples.jsonl");
    refuses(here, &words(&line), &["examples.jsonl", "is read"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("model/model.safetensors", here.join("link")).unwrap();
        refuses(here, &words(&format!("{discover} --json link")), &["link", "is read"]);
    }
    assert_eq!(std::fs::read(here.join("model/model.safetensors")).unwrap(), weights);
    write(here, "s.txt", "the key[[ is| are]] old\n");
    refuses(here, &words("tokens s.txt --out s.txt --force"), &["s.txt", "is read"]);
    succeeds(here, &words(&format!("{discover} --circuit c.json --scores s.safetensors")));
    refuses(here, &words("draw c.json --out c.json --force"), &["c.json", "is read"]);
    let judge = "faithfulness --ablation mean --model model --task tokens --data examples.jsonl";
    let line =
        format!("{judge} --scores s.safetensors --ranking signed --plot s.safetensors --force");
    refuses(here, &words(&line), &["s.safetensors", "is read"]);
    succeeds(here, &words(&format!("tune {SMALL} --steps 1 --out run")));
    refuses(here, &words("compare run --markdown run/summary.json --force"), &["is read"]);
    refuses(here, &words("run --resume run --json run/config.toml --force"), &["is read"]);
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::create_dir(here.join("folder")).unwrap();
    assert!(
        shell(here, "mkfifo pipe; ln -s folder to_folder; ln -s pipe to_pipe").status.success()
    );
    for (out, part) in [
        ("folder", "is a folder"),
        ("to_folder", "is a folder"),
        ("folder/", "is a folder"),
        ("..", "is a folder"),
        ("pipe", "a device or a pipe"),
        ("to_pipe", "a device or a pipe"),
        ("/dev/null", "a device or a pipe"),
        ("/dev/stdout", "a device or a pipe"),
        ("absent/list.json", "there is no folder absent"),
    ] {
        for force in ["", "--force"] {
            let line = format!("list metrics --json {out} {force}");
            refuses(here, &words(&line), &["--json", part]);
        }
    }
    refuses(here, &["list", "--json", ""], &["--json", "the name is empty"]);
    refuses(here, &["list", "--json", "a\u{7}b"], &["--json", "control character"]);
    refuses(here, &["tune", "--out", " "], &["--out", "the name is empty"]);
    refuses(here, &["run", "--out", "a\nb"], &["--out", "control character"]);
    let line = format!("discover {SMALL} --circuit one --scores ./one");
    refuses(here, &words(&line), &["--scores and --circuit name one file"]);
    assert_eq!(names(here), ["folder", "pipe", "to_folder", "to_pipe"]);
}

/// `name = "../../x"` wrote outside of `runs`.
#[test]
fn a_name_that_leads_elsewhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    for name in ["../../x", "a/b", "..", ".", "", "  ", "a\\nb", "a\\u0007"] {
        write(here, "mine.toml", &format!("name = \"{name}\"\n"));
        refuses(here, &words("run mine.toml"), &["mine.toml", "name = "]);
        write(here, "sweep.toml", &format!("name = \"{name}\"\n[sweep]\nseeds = [0]\n"));
    }
    write(here, "sweep.toml", "[sweep]\nmodels = ['embedded', '../..']\n");
    refuses(here, &words("run sweep.toml"), &["sweep.toml", "name = "]);
    assert_eq!(names(here), ["mine.toml", "sweep.toml"]);
}

#[test]
fn folders_are_never_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    succeeds(here, &words(&format!("tune {SMALL} --steps 1 --out run")));
    let summary = read(here, "run/summary.json");
    for line in ["tune --out run --force", "run --out run --force", "eval --out run --force"] {
        refuses(here, &words(&format!("{line} {}", SMALL)), &["--out run", "exists already"]);
    }
    assert_eq!(read(here, "run/summary.json"), summary);
    // A sweep's table has a name that others use too.
    write(here, "compare.md", "mine");
    write(here, "sweep.toml", "[sweep]\nseeds = [0]\n");
    refuses(here, &words("run sweep.toml --out ."), &["compare.md", "written over"]);
    assert_eq!(read(here, "compare.md"), "mine");
}

#[cfg(unix)]
#[test]
fn modes_follow_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let lora = "--selector lora --set tuning.checkpoint_every=1";
    let script = format!("umask 027; exec \"$PROGRAM\" tune {SMALL} --steps 1 {lora} --out run");
    let output = shell(here, &script);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut paths = vec![here.join("run")];
    let mut files = 0;
    while let Some(path) = paths.pop() {
        let metadata = path.metadata().unwrap();
        let expected = if metadata.is_dir() { 0o750 } else { 0o640 };
        assert_eq!(metadata.permissions().mode() & 0o777, expected, "{}", path.display());
        files += 1;
        if metadata.is_dir() {
            paths.extend(names(&path).iter().map(|name| path.join(name)));
        }
    }
    assert!(files > 15, "{files}");
}

/// A killed process can't clear up what it was writing; the next one does, but not what is being written.
#[test]
fn what_killed_processes_left_is_cleared_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::create_dir_all(here.join("runs/.circuit-tuning-0123")).unwrap();
    write(here, "runs/.circuit-tuning-0123/config.toml", "half");
    write(here, ".circuit-tuning-4567", "half");
    write(here, ".circuit", "mine");
    succeeds(here, &words("list metrics --json list.json"));
    assert_eq!(names(here), [".circuit", "list.json", "runs"]);
    succeeds(here, &words(&format!("tune {SMALL} --steps 1")));
    assert_eq!(names(&here.join("runs")), ["tune-1"]);
    // Its state is the last that a run removes.
    std::fs::create_dir(here.join("runs/tune-1/state")).unwrap();
    write(here, "runs/tune-1/state/step-1.safetensors", "whole");
    assert!(program(here, &words("run --resume runs/tune-1")).status.success());
    assert!(!here.join("runs/tune-1/state").exists());
}
