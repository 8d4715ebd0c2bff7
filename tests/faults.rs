//! Runs that are ended from outside, at any moment, go on to the bits that they would have had: killed,
//! stopped by a signal, without a listener, in a race for a folder.
//!
//! `FAULTS_KILLS=1000 cargo test --test integration faults -- --include-ignored` kills as often; the seed
//! that moments are drawn with is printed, and `FAULTS_SEED` sets it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::command_line::{json, program, refuses, succeeds, words};

/// Runs with everything that a checkpoint holds: dropout, moments, smoothing, evaluations and models on the
/// way; and with controls, the second's with two seeds.
const LORA_TOML: &str = "
    name = 'lora'
    task = { name = 'agreement', train_examples = 40, test_examples = 30 }
    selector = { name = 'lora', rank = 2, dropout = 0.3 }
    controls = { kinds = ['random'] }
    [tuning]
    steps = 6
    checkpoint_every = 2
    evaluate_every = 3
";

const NODES_TOML: &str = "
    name = 'nodes'
    task = { name = 'agreement', train_examples = 40, test_examples = 30 }
    selector = { name = 'nodes' }
    controls = { kinds = ['random', 'complement'], seeds = 2 }
    pruning = { top_n = 300 }
    [tuning]
    steps = 6
    batch_size = 16
    rediscover_every = 2
    checkpoint_every = 1
    smoothing = { beta1 = 0.8, beta2 = 0.8 }
";

fn start(folder: &Path, line: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_circuit-tuning"));
    command.args(words(line)).current_dir(folder).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Everything a run leaves, by its path; of logs and summary without seconds.
fn left(folder: &Path) -> Vec<(String, Vec<u8>)> {
    fn without_seconds(value: &mut Value) {
        match value {
            Value::Object(table) => {
                table.retain(|key, _| !key.ends_with("seconds"));
                table.values_mut().for_each(without_seconds);
            }
            Value::Array(values) => values.iter_mut().for_each(without_seconds),
            _ => {}
        }
    }
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut content = std::fs::read(&path).unwrap();
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            if name.ends_with("log.jsonl") || name == "summary.json" {
                let text = String::from_utf8(content).unwrap();
                let values = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
                let values = values.map(|value| {
                    let mut value = value.unwrap();
                    without_seconds(&mut value);
                    value.to_string()
                });
                content = values.collect::<Vec<_>>().join("\n").into_bytes();
            }
            files.push((name, content));
        }
    }
    files.sort();
    files
}

fn assert_same(expected: &Path, found: &Path) {
    let (expected, found) = (left(expected), left(found));
    let names = |files: &[(String, Vec<u8>)]| -> Vec<String> {
        files.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(&expected), names(&found));
    for ((name, expected), (_, found)) in expected.iter().zip(&found) {
        assert!(expected == found, "{name} differs");
    }
}

#[expect(clippy::print_stdout, reason = "the seed is shown")]
fn seed() -> u64 {
    let given = std::env::var("FAULTS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("FAULTS_SEED={seed}");
    seed
}

/// Kills a run at random moments, resuming it each time, until it is through.
#[expect(clippy::print_stdout, reason = "the count is shown")]
fn survives_kills(name: &str, config: &str, kills: usize) {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::write(here.join(format!("{name}.toml")), config).unwrap();
    let begin = Instant::now();
    succeeds(here, &words(&format!("run {name}.toml --out whole")));
    let whole = begin.elapsed();
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let (mut done, mut killed) = (0, 0);
    while killed < kills {
        let out = format!("killed-{done}");
        loop {
            let line = match here.join(&out).exists() {
                true => format!("run --resume {out}"),
                false => format!("run {name}.toml --out {out}"),
            };
            let mut child = start(here, &line);
            std::thread::sleep(whole.mul_f64(random.random_range(0.0..0.7)));
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{line}");
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            killed += 1;
        }
        assert_same(&here.join("whole"), &here.join(&out));
        std::fs::remove_dir_all(here.join(&out)).unwrap();
        done += 1;
    }
    println!("{name}: {killed} kills over {done} runs");
}

fn kills() -> usize {
    std::env::var("FAULTS_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(6)
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    survives_kills("nodes", NODES_TOML, kills());
}

#[test]
fn a_killed_run_of_adapters_resumes_to_the_same_bits() {
    survives_kills("lora", LORA_TOML, kills());
}

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
