//! One run over several processes that MPI connects: the same results whatever their number, and what happens
//! when one fails. Built and run where the feature is (`cargo test --features mpi --test mpi`).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

mod run_folders;

use run_folders::assert_same;

const PROGRAM: &str = env!("CARGO_BIN_EXE_circuit-tuning");

/// A run of everything that is shared: a bootstrap, a faithfulness curve, analyses, a control, tuning by chunks.
const RUN: &str = "
    evaluate = [{ name = 'ioi', test_examples = 20 }]
    analyses = ['logits', 'attention', 'paths', 'roles']
    analysis_examples = 10
    evaluation_batch_size = 4
    [task]
    name = 'agreement'
    direction = 'disagreement'
    train_examples = 40
    test_examples = 30
    [discovery]
    bootstrap = 20
    batch_size = 7
    [pruning]
    top_n = 50
    [faithfulness]
    examples = 12
    fractions = [0.0, 0.1, 0.5, 1.0]
    [controls]
    kinds = [{ name = 'random' }]
    seeds = [0]
    [tuning]
    steps = 6
    batch_size = 8
    chunks = 4
    checkpoint_every = 1
";

/// Data of three lengths for the task `tokens`.
fn data(answer: u32) -> String {
    let line = |index: u32| {
        let tokens: Vec<u32> = (0..5 + index % 3).map(|at| 3 + (index * 7 + at * 5) % 40).collect();
        let position = tokens.len() - 1;
        serde_json::json!({
            "tokens": tokens,
            "key_positions": [position],
            "correct": [answer],
            "wrong": [answer + 1],
        })
    };
    (0..11).map(|index| format!("{}\n", line(index))).collect()
}

/// Whether `mpirun` is there; in CI it must be. It is said past the test runner's capturing.
#[expect(clippy::explicit_write, reason = "the test runner captures what eprintln! prints")]
fn has_mpirun() -> bool {
    let is_there = Command::new("mpirun").arg("--version").output().is_ok();
    assert!(is_there || std::env::var_os("CI").is_none(), "mpirun isn't there");
    if !is_there {
        writeln!(std::io::stderr(), "SKIPPED: mpirun isn't there; install OpenMPI").unwrap();
    }
    is_there
}

/// `mpirun` with arguments of its own, in a folder.
fn mpirun(here: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--allow-run-as-root", "--bind-to", "none"]);
    command.args(arguments).current_dir(here).stdin(Stdio::null());
    // Containers forbid one process to read another's memory.
    command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
    command.env("RAYON_NUM_THREADS", "1");
    command
}

/// So many processes of a command line.
fn ranks(here: &Path, count: usize, line: &str) -> Command {
    let count = count.to_string();
    let mut arguments = vec!["-n", &count, PROGRAM];
    arguments.extend(line.split_whitespace());
    mpirun(here, &arguments)
}

fn done(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    output
}

/// What a failing job says, which must end within a minute.
fn complaint(command: &mut Command) -> String {
    let begin = Instant::now();
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = waited(child, begin);
    assert!(!output.status.success(), "{command:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn waited(mut child: Child, begin: Instant) -> Output {
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            panic!("the job hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// All files of a folder by their paths in it.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path.strip_prefix(folder).unwrap().to_path_buf();
                    found.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
    }
    found
}

#[test]
fn the_number_of_ranks_changes_no_bit_of_a_run() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::write(here.join("run.toml"), RUN).unwrap();
    let mut alone = Command::new(PROGRAM);
    done(alone.args(["run", "run.toml", "--out", "alone"]).current_dir(here));
    assert!(here.join("alone/analysis-after/roles.json").exists());
    for count in 1..=4 {
        done(&mut ranks(here, count, &format!("run run.toml --out ranks-{count}")));
        assert_same(&here.join("alone"), &here.join(format!("ranks-{count}")));
    }
}

/// Beside files, what is printed is one process's; a run of several finds its own folder.
#[test]
fn the_first_rank_alone_prints_and_writes() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::write(here.join("data.jsonl"), data(4)).unwrap();
    let line = |name: &str| {
        format!(
            "discover --task tokens --data data.jsonl --top-n 20 --batch-size 2 --bootstrap 10 --scores \
             {name}.safetensors --per-example {name}-each.safetensors --circuit {name}.json"
        )
    };
    let mut alone = Command::new(PROGRAM);
    let alone = done(alone.args(line("alone").split_whitespace()).current_dir(here));
    let three = done(&mut ranks(here, 3, &line("three")));
    assert_eq!(String::from_utf8_lossy(&three.stdout), String::from_utf8_lossy(&alone.stdout));
    let found = files(here);
    for file in ["{}.safetensors", "{}-each.safetensors", "{}.json"] {
        let of = |name: &str| &found[Path::new(&file.replace("{}", name))];
        assert!(of("alone") == of("three"), "{file}");
    }
    let names: Vec<String> = found.keys().map(|path| path.display().to_string()).collect();
    assert_eq!(found.len(), 7, "{names:?}");
    let line =
        "tune --task tokens --data data.jsonl --steps 1 --top-n 9 --set discovery.bootstrap=0";
    for number in 1..=2 {
        done(&mut ranks(here, 2, line));
        assert!(here.join(format!("runs/tune-{number}/model/model.safetensors")).exists());
        assert!(!here.join(format!("runs/tune-{}", number + 1)).exists());
    }
}

/// The processes that one started.
fn children(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    children.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

#[test]
fn a_killed_rank_ends_the_job_and_any_number_goes_on() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let run = RUN.replace("steps = 6", "steps = 40").replace("analyses = ", "# ");
    std::fs::write(here.join("run.toml"), run).unwrap();
    let mut alone = Command::new(PROGRAM);
    done(alone.args(["run", "run.toml", "--out", "alone"]).current_dir(here));
    let mut job = ranks(here, 3, "run run.toml --out killed");
    let job = job.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    let state = here.join("killed/state");
    while !files_in(&state).iter().any(|name| name.starts_with("step-")) {
        assert!(begin.elapsed() < Duration::from_secs(120), "nothing was tuned");
        std::thread::sleep(Duration::from_millis(10));
    }
    let victim = *children(job.id()).last().unwrap();
    assert!(Command::new("kill").args(["-9", &victim.to_string()]).status().unwrap().success());
    let output = waited(job, Instant::now());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("rank 2"), "{error}");
    assert!(!here.join("killed/summary.json").exists());
    done(&mut ranks(here, 2, "run --resume killed"));
    assert_same(&here.join("alone"), &here.join("killed"));
}

fn files_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// A difference is an error at the start that says what differs; so is a rank's own.
#[test]
fn ranks_that_differ_are_refused() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    for (name, answer) in [("one", 4), ("other", 5), ("none", 0)] {
        std::fs::create_dir(here.join(name)).unwrap();
        if answer > 0 {
            std::fs::write(here.join(name).join("data.jsonl"), data(answer)).unwrap();
        }
    }
    let eval = |program: &str, folder: &str, more: &str| {
        let line = format!(
            "-n 1 -wdir {} {program} eval --task tokens --data data.jsonl{more}",
            here.join(folder).display()
        );
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let job = |one: Vec<String>, other: Vec<String>| {
        let all = [one, vec![":".to_owned()], other].concat();
        mpirun(here, &all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let own = || eval(PROGRAM, "one", "");
    done(&mut job(own(), own()));
    let refused = |other: Vec<String>, wanted: &str| {
        let error = complaint(&mut job(own(), other));
        assert!(error.contains(wanted), "{error}");
        assert_eq!(error.matches("error: ").count(), 1, "{error}");
    };
    refused(
        eval(PROGRAM, "other", ""),
        "error: data.jsonl: is another file on rank 1 than on rank 0; give all ranks the same",
    );
    refused(eval(PROGRAM, "one", " --seed 3"), "error: rank 1 has other settings than rank 0");
    let program = here.join("program");
    std::fs::copy(PROGRAM, &program).unwrap();
    let mut longer = std::fs::OpenOptions::new().append(true).open(&program).unwrap();
    longer.write_all(b"!").unwrap();
    drop(longer);
    let program = program.display().to_string();
    refused(eval(&program, "one", ""), "error: rank 1 has another program than rank 0");
    refused(eval(PROGRAM, "none", ""), "data.jsonl");
    let error = complaint(&mut ranks(here, 2, "list tasks"));
    assert!(error.contains("`list` is one process's work"), "{error}");
}
