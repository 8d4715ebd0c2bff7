//! What a user reads where something is wrong: one line that says what, where, and what would be right.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor, safetensors};

use crate::command_line::{program, refuses, succeeds, words};
use crate::support::repository;

const CASE: &str = "tests/reference/gpt2-key-mean";

fn refuses_toml(folder: &Path, toml: &str, parts: &[&str]) {
    std::fs::write(folder.join("mine.toml"), toml).unwrap();
    refuses(folder, &words("run mine.toml"), parts);
}

#[test]
fn a_setting_that_does_not_fit_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let whole = "must be a whole number from 0 up";
    refuses_toml(
        here,
        "seed = 1\n\n[tuning]\nlr = 1e-3\nsteps = \"three\"\n",
        &["mine.toml:5: `tuning.steps`", "\"three\"", whole],
    );
    refuses_toml(here, "seed = -1\n", &["mine.toml:1: `seed`", "-1", whole]);
    refuses_toml(here, "[pruning]\ntop_n = -5\n", &["mine.toml:2: `pruning.top_n`", whole]);
    refuses_toml(
        here,
        "[tuning]\nstep = 3\n",
        &["mine.toml:2: there is no key `tuning.step`; did you mean steps"],
    );
    refuses_toml(here, "\n[tunning]\nsteps = 3\n", &["mine.toml:2: ", "did you mean tuning"]);
    refuses_toml(
        here,
        "[tuning]\noptimizer = \"adamm\"\n",
        &["mine.toml:2: `tuning.optimizer`: \"adamm\" is unknown; did you mean adam"],
    );
    refuses_toml(
        here,
        "[task]\nname = \"agreement\"\ndirektion = \"x\"\n",
        &["mine.toml:3: ", "`task.direktion`; did you mean direction"],
    );
    refuses_toml(
        here,
        "[task]\nname = \"agreement\"\ntrain_examples = \"x\"\n",
        &["mine.toml:3: ", "task.train_examples", whole],
    );
    refuses_toml(here, "[tuning\n", &["mine.toml:1: ", "expected `]`"]);
    refuses_toml(here, "tuning = 3\n", &["mine.toml:1: `tuning`", "a table of settings"]);
    refuses_toml(
        here,
        "[sweep]\nseed = [0]\n",
        &["mine.toml:2: ", "sweep.seed", "did you mean seeds"],
    );
    // What --set changed stands in no line.
    std::fs::write(here.join("mine.toml"), "[tuning]\nsteps = 3\n").unwrap();
    refuses(
        here,
        &words("run mine.toml --set tuning.steps=three"),
        &["mine.toml: `tuning.steps`", "\"three\"", whole],
    );
    let long = format!("[tuning]\nsteps = \"{}\"\n", "x".repeat(100_000));
    std::fs::write(here.join("mine.toml"), long).unwrap();
    let output = program(here, &words("run mine.toml"));
    assert!(output.stderr.len() < 400, "{}", output.stderr.len());
}

#[test]
fn negative_numbers_are_values() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let whole = "must be a whole number from 0 up";
    refuses(here, &words("tune --top-n -1"), &["`pruning.top_n`", "-1", whole]);
    refuses(here, &words("tune --eps -1e-3"), &["eps", "-0.001"]);
    refuses(here, &words("tune --set tuning.eps=-1e-3"), &["eps", "-0.001"]);
    refuses(here, &words("discover --bootstrap -1"), &["`discovery.bootstrap`", "-1", whole]);
    for line in ["logits --tokens 1 --top -1", "logits --tokens -1"] {
        refuses(here, &words(line), &["'-1'"]);
    }
}

/// A copy of a case's model with one tensor changed by `change`: its name in the header, and its bytes.
fn with_tensor(folder: &Path, name: &str, dtype: &str) {
    std::fs::create_dir(folder.join(name)).unwrap();
    let from = repository(CASE).join("model");
    std::fs::copy(from.join("config.json"), folder.join(name).join("config.json")).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let tensors = header.as_object_mut().unwrap();
    let (_, last) = (tensors.iter_mut())
        .filter(|(name, _)| *name != "__metadata__")
        .max_by_key(|(_, tensor)| tensor["data_offsets"][1].as_u64())
        .unwrap();
    let range: [u64; 2] = serde_json::from_value(last["data_offsets"].clone()).unwrap();
    // A byte an element, but for int32.
    let length = (range[1] - range[0]) / if dtype == "I32" { 1 } else { 4 };
    last["data_offsets"][1] = (range[0] + length).into();
    last["dtype"] = dtype.into();
    let header = header.to_string().into_bytes();
    let data = &bytes[start..start + (range[0] + length) as usize];
    let file = [&(header.len() as u64).to_le_bytes(), &header[..], data].concat();
    std::fs::write(folder.join(name).join("model.safetensors"), file).unwrap();
}

#[test]
fn weights_that_cannot_be_read_are_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let refused = |model: &str, parts: &[&str]| {
        refuses(here, &words(&format!("logits --tokens 1,2 --model {model}")), parts);
    };
    for dtype in ["BOOL", "F8_E4M3", "I32"] {
        with_tensor(here, dtype, dtype);
        refused(dtype, &["model.safetensors: tensor `", &format!("is {dtype}"), "F32", "convert"]);
    }
    with_tensor(here, "F9", "F9");
    refused("F9", &["F9/model.safetensors: the header can't be read", "`F9`"]);
    refused("I32/model.safetensors", &["no .gguf file", "give the folder, I32"]);
    std::fs::remove_file(here.join("I32/model.safetensors")).unwrap();
    std::fs::write(here.join("I32/pytorch_model.bin"), "").unwrap();
    refused("I32", &["pytorch_model.bin", "isn't read", "save_pretrained"]);
}

#[test]
fn an_adapter_for_another_model_is_said_to_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let small = "--set task.train_examples=8 --set task.test_examples=8";
    succeeds(here, &words(&format!("tune --selector lora --steps 1 {small} --out run")));
    let on = |case: &str, parts: &[&str]| {
        let model = repository("tests/reference").join(case).join("model");
        let line = "logits --tokens 1,2 --set model.adapter=run/adapter --model";
        refuses(here, &words(&format!("{line} {}", model.display())), parts);
    };
    on("llama-key-mean", &["adapter_model.safetensors", "for another model", "self_attn"]);
    on("gpt2-key-mean", &["lora_A", "[8, 128]", "must be [8, 32]"]);
    let output = program(here, &words("logits --tokens 1 --set model.adapter=run/model"));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("Some("));
}

#[test]
fn a_file_of_another_kind_is_named_by_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let weights = repository(CASE).join("model/model.safetensors");
    for line in ["draw", "eval --ablation mean --circuit", "tune --steps 1 --circuit"] {
        let line = format!("{line} {}", weights.display());
        refuses(here, &words(&line), &["model.safetensors: is no text file", "UTF-8"]);
    }
    let examples = repository(CASE).join("examples.jsonl");
    for task in ["math", "reading", "ioi", "agreement", "multiple_choice"] {
        let line = format!("eval --task {task} --data {}", examples.display());
        let parts =
            ["examples.jsonl:1: not a row of this task: missing field", "the row has \"tokens\""];
        refuses(here, &words(&line), &parts);
    }
    let sentences = repository("tasks/fixtures/agreement.jsonl");
    let line = format!("eval --task tokens --data {}", sentences.display());
    refuses(here, &words(&line), &["agreement.jsonl:1: not a row", "`tokens`", "clean_text"]);
    for wrong in ["nowhere", "."] {
        let line = format!("eval --task logic --data {wrong}");
        refuses(here, &words(&line), &[wrong, "no Contexthub file", "data_level1/"]);
    }
}

/// The model's template is at fault, and no line of the data.
#[test]
fn a_template_is_blamed_for_its_own_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let model = here.join("model");
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(repository("models/embedded").join(file), model.join(file)).unwrap();
    }
    std::fs::write(model.join("chat_template.jinja"), "{{ raise_exception('no system') }}")
        .unwrap();
    std::fs::write(here.join("q.jsonl"), "{\"question\": \"the key\", \"answer\": \"#### 1\"}\n")
        .unwrap();
    let output = program(here, &words("eval --model model --task math --data q.jsonl"));
    let said = String::from_utf8_lossy(&output.stderr);
    let error = said.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(error.starts_with("error: the model's chat template"), "{said}");
    assert!(!error.contains("bad_rows") && !error.contains("q.jsonl"), "{said}");
}

/// candle's errors have a backtrace behind them where that variable is set.
#[test]
fn a_message_is_one_line_with_backtraces_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let adapter = here.join("adapter");
    std::fs::create_dir(&adapter).unwrap();
    std::fs::write(adapter.join("adapter_config.json"), "{\"r\": 2, \"lora_alpha\": 4}").unwrap();
    let tensor = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
    let tensors = HashMap::from([("x", tensor)]);
    safetensors::save(&tensors, adapter.join("adapter_model.safetensors")).unwrap();
    let bytes = std::fs::read(adapter.join("adapter_model.safetensors")).unwrap();
    std::fs::write(adapter.join("adapter_model.safetensors"), &bytes[..bytes.len() - 4]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_circuit-tuning"));
    command.args(["logits", "--tokens", "1", "--set", "model.adapter=adapter"]).current_dir(here);
    let output = command.env("RUST_BACKTRACE", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let (_, error) = said.split_once("error: ").unwrap();
    assert!(error.contains("adapter_model.safetensors"), "{said}");
    assert_eq!(error.lines().count(), 1, "{said}");
}

#[test]
fn words_that_the_model_does_not_know_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let said = |line: &[&str]| String::from_utf8(program(here, line).stderr).unwrap();
    let logits = said(&["logits", "--text", "the zebra near the yak"]);
    assert!(logits.contains("2 of 5 words are unknown to the model"), "{logits}");
    assert!(logits.contains("yak, zebra"), "{logits}");
    std::fs::write(here.join("s.txt"), "the zebra[[ is| are]] old\n").unwrap();
    let tokens = said(&words("tokens s.txt --out s.jsonl"));
    assert!(tokens.contains("unknown to the model") && tokens.contains("zebra"), "{tokens}");
    let eval = said(&words("eval --task tokens --data s.jsonl"));
    assert!(eval.contains("1 of 4 tokens of the test examples are words unknown"), "{eval}");
    assert!(!said(&words("eval --set task.test_examples=8")).contains("unknown"));
}

/// What nobody got isn't reported as done.
#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_printed_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for line in ["list --json", "list", "eval --set task.test_examples=8 --json"] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_circuit-tuning"));
        command.args(words(line)).current_dir(folder.path()).stdout(full);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("error: standard output can't be written"), "{said}");
    }
}

#[test]
fn devices_that_are_not_there_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    succeeds(folder.path(), &words("eval --device cpu --json"));
    refuses(
        folder.path(),
        &words("eval --device gpu"),
        &["device `gpu`: give cpu, cuda, cuda:N or auto"],
    );
    #[cfg(not(feature = "cuda"))]
    for command in ["eval", "run"] {
        let command = [command, "--device", "cuda:1"];
        refuses(folder.path(), &command, &["device `cuda:1`", "--features cuda"]);
    }
    #[cfg(not(feature = "runtime"))]
    refuses(folder.path(), &words("list --plugin any"), &["any: ", "--features runtime"]);
}
