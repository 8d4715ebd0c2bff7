//! A sweep that several processes share.

use std::process::Child;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::kills::seed;
use super::{names, start};
use crate::command_line::{json, refuses, succeeds, words};
use crate::run_folders::assert_same;

/// A sweep of 24 combinations, each of which runs for some tenths of a second.
const SWEEP: &str = "
    task = { name = 'agreement', train_examples = 40, test_examples = 20 }
    [discovery]
    bootstrap = 0
    [pruning]
    top_n = 50
    [tuning]
    steps = 4
    checkpoint_every = 2
    [sweep]
    selectors = ['nodes', 'all', 'lora']
    seeds = [0, 1, 2, 3, 4, 5, 6, 7]
";

const CELLS: usize = 24;

/// Workers that claim combinations one by one are killed at random moments and started again.
#[test]
fn workers_that_are_killed_leave_the_sweep_that_one_process_would() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::write(here.join("sweep.toml"), SWEEP).unwrap();
    let begin = Instant::now();
    succeeds(here, &words("run sweep.toml --out whole"));
    let a_cell = begin.elapsed() / CELLS as u32;
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let worker = || start(here, "run sweep.toml --out shared --shard auto");
    let mut workers: Vec<Child> = (0..4).map(|_| worker()).collect();
    for _ in 0..12 {
        std::thread::sleep(a_cell.mul_f64(random.random_range(0.0..2.0)));
        let victim = &mut workers[random.random_range(0..4)];
        victim.kill().unwrap();
        victim.wait().unwrap();
        *victim = worker();
    }
    for mut worker in workers {
        assert!(worker.wait().unwrap().success());
    }
    for cell in json(&here.join("whole/compare.json")).as_array().unwrap() {
        let name = cell["name"].as_str().unwrap();
        if name != "untuned" {
            assert_same(&here.join("whole").join(name), &here.join("shared").join(name));
        }
    }
    let cells = |sweep: &str| {
        let names = names(&here.join(sweep)).into_iter();
        names.filter(|name| here.join(sweep).join(name).is_dir()).collect::<Vec<_>>()
    };
    assert_eq!(cells("shared"), cells("whole"));
    assert_eq!(cells("shared").len(), CELLS);
    assert_eq!(json(&here.join("shared/failed.json")), serde_json::json!([]));
    let figures = |sweep: &str| {
        let rows = json(&here.join(sweep).join("compare.json"));
        let rows = rows.as_array().unwrap().clone();
        rows.into_iter()
            .map(|row| (row["name"].clone(), row["figures"].clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(figures("shared"), figures("whole"));
}

#[test]
fn parts_of_a_sweep_make_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let sweep = SWEEP.replace("[0, 1, 2, 3, 4, 5, 6, 7]", "[0]");
    std::fs::write(here.join("sweep.toml"), sweep).unwrap();
    let part =
        |part: &str| succeeds(here, &words(&format!("run sweep.toml --out s --shard {part}")));
    let first = part("1/2");
    assert!(first.contains("1 of 3 runs are other processes' and not finished yet"), "{first}");
    let second = part("2/2");
    assert!(second.contains("2/3 ") && !second.contains("1/3 "), "{second}");
    assert!(!second.contains("not finished yet"), "{second}");
    // What processes leave that are killed at the very end of a run: its state, and a part of its page.
    let cells = std::fs::read_dir(here.join("s")).unwrap().map(|entry| entry.unwrap().path());
    let cell = cells.filter(|path| path.is_dir()).min().unwrap();
    let whole = names(&cell);
    std::fs::create_dir(cell.join("state")).unwrap();
    std::fs::write(cell.join("state/step-4.safetensors"), "whole").unwrap();
    std::fs::write(cell.join(".circuit-tuning-0123"), "half").unwrap();
    for each in ["1/2", "2/2"] {
        part(each);
    }
    assert_eq!(names(&cell), whole);
    for wrong in ["3/2", "0/2", "some"] {
        let line = format!("run sweep.toml --out s --shard {wrong}");
        refuses(here, &words(&line), &["I/N", "auto"]);
    }
    refuses(here, &words("run --shard 1/2"), &["no [sweep]"]);
}

/// A combination that fails isn't tried again by every worker.
#[test]
fn a_worker_leaves_what_failed_in_another() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let sweep = SWEEP.replace("steps = 4", "steps = 4\n    lr = 1e30");
    std::fs::write(here.join("sweep.toml"), sweep.replace("[0, 1, 2, 3, 4, 5, 6, 7]", "[0]"))
        .unwrap();
    let workers: Vec<Child> =
        (0..2).map(|_| start(here, "run sweep.toml --out s --shard auto")).collect();
    let begin = Instant::now();
    let codes: Vec<bool> =
        workers.into_iter().map(|mut worker| worker.wait().unwrap().success()).collect();
    assert!(begin.elapsed() < Duration::from_secs(120));
    assert!(codes.contains(&false), "{codes:?}");
    assert_eq!(json(&here.join("s/failed.json")).as_array().unwrap().len(), 3);
}
