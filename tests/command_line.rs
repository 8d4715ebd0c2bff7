//! The program as a user runs it: the two calls that scripts rely on, the default run, and what bad
//! input is answered with.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use circuit_framework::Device;
use serde_json::Value;

use crate::support::repository;

/// Runs the program in a folder of its own.
pub fn program(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_circuit-tuning"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

/// The words of a command line.
pub fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Standard output of a run that succeeds.
pub fn succeeds(folder: &Path, arguments: &[&str]) -> String {
    let output = program(folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Fails with exit code 2 and one line that has all of `parts`.
pub fn refuses(folder: &Path, arguments: &[&str], parts: &[&str]) {
    let output = program(folder, arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
    let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "{errors}");
    for part in parts {
        assert!(lines[0].contains(part), "`{part}` is not in: {errors}");
    }
}

pub fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn case(name: &str) -> (String, String) {
    let folder = repository("tests/reference").join(name);
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    (path("model"), path("examples.jsonl"))
}

#[test]
fn discover_writes_scores_and_circuit() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = case("llama-key-mean");
    succeeds(
        folder.path(),
        &words(&format!(
            "discover --model {model} --task tokens --data {data} --metric logit_diff --method \
             eap --ig-steps 5 --ablation mean --positions key --mlp-head-width 16 --batch-size 3 \
             --top-n 20 --prune top_nodes --scores s.safetensors --circuit c.json \
             --nodes head,mlp"
        )),
    );
    let expected = json(&repository("tests/reference/llama-key-mean/expected.json"));
    let bytes = std::fs::read(folder.path().join("s.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    for (key, expected_key) in [("writers", "upstream"), ("readers", "downstream")] {
        let names: Value =
            serde_json::from_str(header["__metadata__"][key].as_str().unwrap()).unwrap();
        assert_eq!(names, expected[expected_key]);
    }
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    assert_eq!(tensors["scores"].dims(), [24, 48]);
    let edges = json(&folder.path().join("c.json"))["edges"].as_array().unwrap().clone();
    let names: Vec<Value> = edges
        .iter()
        .map(|edge| Value::from(vec![edge["writer"].clone(), edge["reader"].clone()]))
        .collect();
    assert_eq!(Value::from(names), expected["top_nodes"]);
}

#[test]
fn tune_leaves_a_run_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = case("gpt2-tune-adamw");
    succeeds(
        folder.path(),
        &words(&format!(
            "tune --model {model} --task tokens --data {data} --metric logit_diff --ablation mean \
             --positions key --steps 4 --batch-size 3 --no-shuffle --optimizer adamw --lr 0.01 \
             --momentum 0.9 --beta1 0.9 --beta2 0.99 --eps 1e-8 --weight-decay 0.01 \
             --warmup-steps 1 --max-grad-norm 0.5 --top-n 15 --prune top_nodes \
             --nodes head,mlp --objective \
             standard --key-weight-p 1.0 --selector nodes --seed 0 --out out --set \
             tuning.evaluate_every=2 --set tuning.checkpoint_every=2"
        )),
    );
    let out = folder.path().join("out");
    let expected = json(&repository("tests/reference/gpt2-tune-adamw/expected.json"));
    let log = lines(&out.join("log.jsonl"));
    for (step, line) in log.iter().enumerate() {
        let loss = expected["losses"][step].as_f64().unwrap();
        assert!((line["loss"].as_f64().unwrap() - loss).abs() < 1e-4 * loss);
        assert_eq!(line["tuned_parameters"], expected["tuned_parameters"][step]);
        assert_eq!(line["edges"], 15);
        for key in [
            "metric",
            "learning_rate",
            "top_n",
            "tuned_share",
            "nodes",
            "overlap",
            "discovery_seconds",
            "tuning_seconds",
        ] {
            assert!(line[key].is_number(), "{key}");
        }
    }
    assert_eq!(log.len(), 4);
    assert_eq!(lines(&out.join("circuits.jsonl"))[3]["edges"].as_array().unwrap().len(), 15);
    assert_eq!(lines(&out.join("evaluations.jsonl")).len(), 2);
    let summary = json(&out.join("summary.json"));
    assert!(summary["before"]["loss"].as_f64() > summary["after"]["loss"].as_f64());
    let files = [
        "config.toml",
        "circuit-before.json",
        "circuit-after.json",
        "circuit-before.svg",
        "circuit-after.svg",
        "model/config.json",
        "model/model.safetensors",
        "checkpoint-2/model.safetensors",
    ];
    for file in files {
        assert!(out.join(file).exists(), "{file}");
    }
    // The resolved configuration makes the same run again.
    succeeds(folder.path(), &["run", "out/config.toml", "--out", "again"]);
    let read =
        |run: &str| std::fs::read(folder.path().join(run).join("model/model.safetensors")).unwrap();
    assert_eq!(read("out"), read("again"));
    // A circuit can be held fixed.
    succeeds(
        folder.path(),
        &words("run out/config.toml --set tuning.circuit='out/circuit-after.json' --out fixed"),
    );
    assert!(!folder.path().join("fixed/circuits.jsonl").exists());
    refuses(folder.path(), &["run", "out/config.toml", "--out", "out"], &["out", "exists already"]);
}

/// The embedded default, as README shows it: what its issue asks of it holds.
#[test]
fn the_default_run_tunes_the_embedded_model_to_disagree() {
    let folder = tempfile::tempdir().unwrap();
    let shown = succeeds(folder.path(), &["run"]);
    assert!(shown.contains("right_share"), "{shown}");
    let run = folder.path().join("runs/embedded-1");
    let summary = json(&run.join("summary.json"));
    let right = |when: &str, ability: &str| {
        summary[when][format!("{ability}right_share")].as_f64().unwrap()
    };
    assert!(right("after", "") <= 0.10);
    for ability in ["", "ioi.", "bias."] {
        assert!(right("before", ability) >= 0.95, "{ability}");
    }
    // By score far fewer edges carry the task than drawn at random.
    let alone = &summary["faithfulness_before"];
    let share = |ranking: &Value| ranking["smallest"]["fraction"].as_f64().unwrap_or(1.0);
    assert!(share(alone) < 0.5 * share(&alone["random"]), "{alone}");
    assert!(run.join("faithfulness-before.svg").exists());
    let controls = &summary["controls"];
    assert_eq!(controls["seeds"].as_array().unwrap().len(), 5);
    assert!(controls["kinds"][0]["difference"]["margin"]["right_share"].is_number());
    assert!(summary["tuned_parameter_ratio"].as_f64().unwrap() <= 0.5);
    // A second run never overwrites the first.
    succeeds(folder.path(), &["run", "--set", "tuning.steps=1"]);
    assert!(folder.path().join("runs/embedded-2").exists());
    // The saved model evaluates to the summary's figures.
    let figures: Value = serde_json::from_str(&succeeds(
        folder.path(),
        &words("eval --model runs/embedded-1/model --task agreement --seed 2 --set task.test_examples=200 --json"),
    ))
    .unwrap();
    let close = |key: &str| {
        (figures[key].as_f64().unwrap() - summary["after"][key].as_f64().unwrap()).abs() < 1e-4
    };
    assert!(close("loss") && close("logit_diff"), "{figures}");
}

#[test]
fn bench_times_the_phases() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = case("llama-key-mean");
    let config = Path::new(&model).join("config.json");
    let config = config.to_str().unwrap();
    let line = format!(
        "bench --model {config} --random-init 3 --steps 2 --batch-size 2 --seq-len 8 --top-n 9 \
         --selector nodes --json"
    );
    let shown: Value = serde_json::from_str(&succeeds(folder.path(), &words(&line))).unwrap();
    let seconds = |phase: &str, which: &str| shown[phase][which].as_f64().unwrap();
    for phase in ["discover", "prune", "tune", "step"] {
        let [min, median, max] = ["min_s", "median_s", "max_s"].map(|w| seconds(phase, w));
        assert!(0.0 < min && min <= median && median <= max, "{shown}");
    }
    let parts: f64 =
        ["discover", "prune", "tune"].map(|phase| seconds(phase, "min_s")).iter().sum();
    assert!(parts <= seconds("step", "max_s"), "{shown}");
    assert!(shown["peak_rss_bytes"].as_u64().unwrap() > 1 << 20, "{shown}");
    let share = shown["tuned_share_of_nodes"].as_f64().unwrap();
    assert!(0.0 < share && share <= 1.0, "{shown}");
    succeeds(folder.path(), &words("bench --steps 1"));
}

/// The embedded model's recipe still makes a model as good.
#[test]
#[ignore = "slow: trains for a minute"]
fn the_embedded_model_is_remade() {
    let folder = tempfile::tempdir().unwrap();
    succeeds(folder.path(), &["run", "embedded-model", "--out", "made"]);
    let made = json(&folder.path().join("made/summary.json"))["after"].clone();
    // Processors round their matrix products differently, and two thousand steps tell.
    for task in ["agreement", "ioi", "bias"] {
        let kept = succeeds(folder.path(), &["eval", "--task", task, "--seed", "1", "--json"]);
        let kept: Value = serde_json::from_str(&kept).unwrap();
        let [made_loss, loss] =
            [&made[format!("{task}.loss")], &kept["loss"]].map(|loss| loss.as_f64().unwrap());
        assert!((made_loss - loss).abs() < 0.02 * loss.max(1.0), "{task}: {made_loss} {loss}");
        for share in [&made[format!("{task}.right_share")], &kept["right_share"]] {
            assert!(share.as_f64().unwrap() >= 0.95, "{task}: {made} {kept}");
        }
    }
}

#[test]
fn bad_input_is_answered_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let (model, data) = case("gpt2-key-mean");
    let write = |name: &str, text: &str| -> String {
        std::fs::write(here.join(name), text).unwrap();
        name.to_owned()
    };
    let copy = |name: &str| -> PathBuf {
        let to = here.join(name);
        std::fs::create_dir(&to).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(Path::new(&model).join(file), to.join(file)).unwrap();
        }
        to
    };
    let discover = |model: &str, data: &str, rest: &[&str], parts: &[&str]| {
        let line =
            format!("discover --model {model} --task tokens --data {data} --scores s.safetensors");
        let mut arguments = words(&line);
        arguments.extend(rest);
        refuses(here, &arguments, parts);
        assert!(!here.join("s.safetensors").exists(), "something was written");
    };

    discover("nowhere", &data, &[], &["nowhere", "no such model"]);
    let missing = copy("missing");
    std::fs::remove_file(missing.join("model.safetensors")).unwrap();
    discover("missing", &data, &[], &["missing", "no model.safetensors"]);
    let truncated = copy("truncated").join("model.safetensors");
    let bytes = std::fs::read(&truncated).unwrap();
    std::fs::write(&truncated, &bytes[..bytes.len() / 2]).unwrap();
    discover(
        "truncated",
        &data,
        &[],
        &["truncated/model.safetensors", "not a whole safetensors file"],
    );
    let reconfigured = |name: &str, from: &str, to: &str| {
        let config = copy(name).join("config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&config, text.replace(from, to)).unwrap();
    };
    reconfigured("misshapen", "\"n_inner\": 64", "\"n_inner\": 128");
    discover("misshapen", &data, &[], &["misshapen", "mlp.c_fc.weight", "[32, 64]", "[32, 128]"]);
    reconfigured("unknown", "\"model_type\": \"gpt2\"", "\"model_type\": \"gpt22\"");
    discover("unknown", &data, &[], &["unknown", "gpt22", "did you mean gpt2?"]);

    let bad = write("bad.jsonl", "{\"tokens\": [1, 2, 3]}\n{\"tokens\": [1, 2\n");
    discover(&model, &bad, &["--metric", "loss", "--positions", "all"], &["bad.jsonl:2"]);
    let key =
        write("key.jsonl", "{\"tokens\": [1, 2, 3], \"key_positions\": [0], \"wrong\": [4]}\n");
    discover(&model, &key, &[], &["key.jsonl:1", "key position 0", "1 to 2"]);
    let range =
        write("range.jsonl", "{\"tokens\": [1, 2, 3], \"key_positions\": [3], \"wrong\": [4]}\n");
    discover(&model, &range, &[], &["range.jsonl:1", "key position 3"]);
    let ids =
        write("ids.jsonl", "{\"tokens\": [1, 97, 3], \"key_positions\": [1], \"wrong\": [4]}\n");
    discover(&model, &ids, &[], &["ids.jsonl:1", "token id 97", "0 to 96"]);
    let empty = write("empty.jsonl", "\n");
    discover(&model, &empty, &[], &["empty.jsonl", "no examples"]);
    let long = write("long.jsonl", &format!("{{\"tokens\": {:?}}}\n", vec![1; 33]));
    discover(
        &model,
        &long,
        &["--metric", "loss", "--positions", "all"],
        &["long.jsonl:1", "33 tokens", "context is 32"],
    );
    let plain =
        write("plain.jsonl", "{\"tokens\": [1, 2, 3], \"key_positions\": [1], \"wrong\": [4]}\n");
    discover(&model, &plain, &["--ablation", "corrupt"], &["plain.jsonl:1", "no counterfactual"]);
    discover(&model, &data, &["--top-n", "263"], &["top_n is 263", "262 edges"]);
    discover(&model, &data, &["--metric", "logit_dif"], &["logit_dif", "did you mean logit_diff"]);
    discover(&model, &data, &["--ablation", "meen"], &["meen", "mean"]);
    discover(&model, &data, &["--set", "discovery.batchsize=3"], &["batchsize", "batch_size"]);
    discover(&model, &data, &["--set", "task.dta='x'"], &["tokens", "dta", "data"]);
    discover(&model, &data, &["--mlp-head-width", "5"], &["mlp_head_width is 5", "64"]);
    refuses(here, &["run", "embeded"], &["embeded", "did you mean embedded"]);
}
