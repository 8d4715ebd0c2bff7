//! Text out of files as it is shown: nothing of it acts on a terminal, ends a cell or begins a tag.

use serde_json::{Value, json};

use crate::command_line::{program, succeeds, words};
use crate::models::case;

/// Red on terminals that obey, then a bell, a line that goes backwards, a cell's end, a tag.
const EVIL: &str = "\u{1b}[31mred\u{7}\u{9b}2J\u{202e}|<script>";

fn assert_plain(text: &str) {
    let acts = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    assert!(!text.contains(acts) && !text.contains('\u{202e}'), "{text:?}");
}

#[test]
fn what_a_file_calls_a_tensor_is_plain_in_the_error() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    std::fs::copy(case("llama-key-mean").join("config.json"), model.join("config.json")).unwrap();
    let file = std::fs::read(case("llama-key-mean").join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let moved = header.as_object_mut().unwrap().remove("model.norm.weight").unwrap();
    header[EVIL] = moved;
    let header = header.to_string().into_bytes();
    let changed = [&(header.len() as u64).to_le_bytes(), &header[..], &file[8 + length..]].concat();
    std::fs::write(model.join("model.safetensors"), changed).unwrap();
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    // A model that has everything but the norm doesn't get as far as the left-over.
    let output =
        program(folder.path(), &words("discover --model model --task tokens --data absent"));
    assert_plain(&String::from_utf8(output.stderr).unwrap());
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["model_type"] = json!(EVIL);
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    let output =
        program(folder.path(), &words("discover --model model --task tokens --data absent"));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("there is no model architecture `\\u{1b}[31mred\\u{7}"), "{errors}");
    assert_plain(&errors);
}

/// A summary that somebody else wrote.
#[test]
fn what_a_summary_says_is_plain_on_the_terminal_and_in_markdown() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let small = "--set task.train_examples=8 --set task.test_examples=8";
    succeeds(here, &words(&format!("tune --steps 1 --out run {small}")));
    let path = here.join("run/summary.json");
    let mut summary: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    summary["task"] = json!(EVIL);
    summary["selector"] = json!(EVIL);
    summary["after"][EVIL] = json!(1.0);
    std::fs::write(&path, summary.to_string()).unwrap();
    let printed = succeeds(here, &words("compare run --markdown table.md"));
    let written = std::fs::read_to_string(here.join("table.md")).unwrap();
    for text in [&printed, &written] {
        assert_plain(text);
        assert!(!text.contains("<script>"), "{text}");
    }
    // Every line of the table has as many cells as the first.
    let cells = |line: &str| line.replace("\\|", "").matches('|').count();
    let lines: Vec<usize> = written.lines().filter(|l| l.starts_with('|')).map(cells).collect();
    assert!(lines.len() > 2 && lines.iter().all(|count| *count == lines[0]), "{written}");
    let page = succeeds(here, &words("report run --out page.html"));
    assert_plain(&page);
    let page = std::fs::read_to_string(here.join("page.html")).unwrap();
    assert_plain(&page);
    assert!(!page.contains("red\u{7}") && !page.contains("|<script>"));
}
