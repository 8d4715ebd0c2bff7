//! Runs that are killed at random moments go on to the bits that they would have had.
//!
//! `FAULTS_KILLS=1000 cargo test --test integration faults::kills` kills as often; the seed that moments are drawn
//! with is printed, and `FAULTS_SEED` sets it.

use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::start;
use crate::command_line::{succeeds, words};
use crate::run_folders::assert_same;

/// Runs with everything that a checkpoint holds: dropout, moments, smoothing, evaluations and models on the
/// way; and with controls, the second's with two seeds.
const LORA_TOML: &str = "
    name = 'lora'
    task = { name = 'agreement', train_examples = 40, test_examples = 30 }
    selector = { name = 'lora', rank = 2, dropout = 0.3 }
    controls = { kinds = ['random'] }
    tracking = { tensorboard = true }
    [tuning]
    steps = 6
    checkpoint_every = 2
    evaluate_every = 3
";

pub(super) const NODES_TOML: &str = "
    name = 'nodes'
    task = { name = 'agreement', train_examples = 40, test_examples = 30 }
    selector = { name = 'nodes' }
    controls = { kinds = ['random', 'complement'], seeds = 2 }
    tracking = { tensorboard = true }
    pruning = { top_n = 300 }
    [tuning]
    steps = 6
    batch_size = 16
    rediscover_every = 2
    checkpoint_every = 1
    smoothing = { beta1 = 0.8, beta2 = 0.8 }
";

#[expect(clippy::print_stdout, reason = "the seed is shown")]
pub(super) fn seed() -> u64 {
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
