//! A program of one's own: a crate outside the repository with plugins built in, made by `plugin new
//! --program`, compiled by cargo alone and run.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use crate::command_line::{refuses, succeeds, words};
use crate::support::{repository, shared};

/// Builds the crate against the repository's own build folder, so that candle isn't compiled again, and
/// runs its program.
fn cargo_run(krate: &Path, folder: &Path, arguments: &str) -> Output {
    let mut command = Command::new("cargo");
    command.args(["run", "--quiet", "--offline", "--manifest-path"]).arg(krate.join("Cargo.toml"));
    command.arg("--").args(words(arguments)).current_dir(folder);
    command.env("CARGO_TARGET_DIR", repository("target")).output().unwrap()
}

#[test]
#[ignore = "slow: compiles the framework for another crate"]
fn a_strangers_program_knows_the_strangers_plugins() {
    let Some(tokenizer) = shared("tokenizers/gpt2") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeeds(folder, &words("plugin new lab --kind model --program"));
    let krate = folder.join("lab");
    for entry in std::fs::read_dir(repository("tests/fixtures/lab")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, krate.join("src").join(path.file_name().unwrap())).unwrap();
    }
    std::fs::copy(repository("Cargo.lock"), krate.join("Cargo.lock")).unwrap();
    let model = folder.join("gpt2");
    std::fs::create_dir(&model).unwrap();
    for file in ["vocab.json", "merges.txt"] {
        std::fs::copy(tokenizer.join(file), model.join(file)).unwrap();
    }
    let config = json!({
        "model_type": "gpt2", "n_layer": 3, "n_head": 2, "n_embd": 16, "n_positions": 32,
        "vocab_size": 50257, "layer_norm_epsilon": 1e-5,
    });
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    let tune = "tune --model gpt2 --random-init 1 --task greater_than_lab --ablation corrupt \
                --method node_scores --selector middle_layers --set selector.last=1 --steps 2 \
                --top-n 40 --out run";
    for arguments in ["list", tune] {
        let output = cargo_run(&krate, folder, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {said}");
        let shown = String::from_utf8_lossy(&output.stdout);
        let known = ["greater_than_lab", "middle_layers", "my_qwen2", "node_scores"];
        assert!(arguments != "list" || known.iter().all(|name| shown.contains(name)), "{shown}");
    }
    // A family of the stranger's own: the same scores as the built-in one's.
    let case = repository("tests/reference/qwen2-key-mean");
    let mine = folder.join("my-qwen2");
    std::fs::create_dir(&mine).unwrap();
    let config = std::fs::read_to_string(case.join("model/config.json")).unwrap();
    let config = config.replace("\"model_type\": \"qwen2\"", "\"model_type\": \"my_qwen2\"");
    std::fs::write(mine.join("config.json"), config).unwrap();
    std::fs::copy(case.join("model/model.safetensors"), mine.join("model.safetensors")).unwrap();
    let data = case.join("examples.jsonl");
    let discover = |model: &Path| {
        let (model, data) = (model.display(), data.display());
        format!(
            "discover --force --model {model} --task tokens --data {data} --circuit circuit.json"
        )
    };
    let output = cargo_run(&krate, folder, &discover(&mine));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let edges = || crate::command_line::json(&folder.join("circuit.json"))["edges"].clone();
    let found = edges();
    succeeds(folder, &words(&discover(&case.join("model"))));
    assert_eq!(found, edges());
    let summary = crate::command_line::json(&folder.join("run/summary.json"));
    assert!(summary["tuned_parameters"].as_u64().unwrap() > 0, "{summary}");
    // The program as it is shipped doesn't know them.
    refuses(folder, &words("discover --task greater_than_lab"), &["there is no task"]);
}
