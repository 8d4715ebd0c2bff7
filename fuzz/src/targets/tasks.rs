//! The files of each task.

use std::path::Path;

use anyhow::Result;
use circuit_framework::plugin::conformance::byte_tokenizer;
use circuit_framework::plugin::registry;
use circuit_framework::{Setting, Split, Task};

use super::{Mutate, Reader, Target, checked, files, repository};
use crate::mutate::json::{mutate as json, mutate_lines as lines};
use crate::mutate::text::mutate as text;

/// A file of a task: the target's name, the task's, the file's, and what its setting `data` is.
struct Kind(&'static str, &'static str, &'static str, &'static str);

/// Files that stand beside those that are changed: where, and which.
const BESIDE: [(&str, &str); 2] = [
    (PROBLEMS, "tasks/fixtures/logic/data_level1/deductive_logic.json"),
    (REASONING, "tasks/fixtures/logic/data_level1/deductive_logic_cot.json"),
];
const PROBLEMS: &str = "data_level1/deductive_logic.json";
const REASONING: &str = "data_level1/deductive_logic_cot.json";

pub fn targets() -> Vec<Target> {
    let fixture = |kind: Kind, mutate: Mutate, paths: &'static [&'static str]| {
        Target::new(kind.0, mutate, move || files(paths), move |folder| task(folder, &kind))
    };
    let inline = |kind: Kind, mutate: Mutate, content: &'static str| {
        let corpus = move || Ok(vec![content.into()]);
        Target::new(kind.0, mutate, corpus, move |folder| task(folder, &kind))
    };
    let rows = |name, task| Kind(name, task, "rows.jsonl", "rows.jsonl");
    let table = |name, task| Kind(name, task, "rows.csv", "rows.csv");
    vec![
        fixture(rows("tokens", "tokens"), lines, &EXAMPLES),
        fixture(rows("agreement", "agreement"), lines, &["tasks/fixtures/agreement.jsonl"]),
        fixture(
            rows("bias-processed", "bias"),
            lines,
            &["tasks/fixtures/winobias/processed.jsonl"],
        ),
        fixture(table("bias-bug", "bias"), text, &["tasks/fixtures/bug.csv"]),
        fixture(Kind("bias-winobias", "bias", "a.txt.dev", "a.txt.dev"), text, &WINOBIAS),
        fixture(rows("math", "math"), lines, &["tasks/fixtures/math.jsonl"]),
        fixture(
            rows("multiple-choice", "multiple_choice"),
            lines,
            &["tasks/fixtures/multiple_choice.jsonl"],
        ),
        fixture(rows("reading-lines", "reading"), lines, &["tasks/fixtures/squad.jsonl"]),
        fixture(
            Kind("reading", "reading", "squad.json", "squad.json"),
            json,
            &["tasks/fixtures/squad.json"],
        ),
        fixture(Kind("logic", "logic", PROBLEMS, "."), json, &LOGIC),
        fixture(Kind("logic-reasoning", "logic", REASONING, "."), json, &[BESIDE[1].1]),
        inline(rows("ioi-mib", "ioi"), lines, IOI),
        inline(table("ioi-eap-ig", "ioi"), text, IOI_TABLE),
        inline(rows("mcqa", "mcqa"), lines, MCQA),
        inline(rows("arithmetic", "arithmetic"), lines, ARITHMETIC),
        inline(table("greater-than", "greater_than"), text, YEARS),
        inline(Kind("perplexity", "perplexity", "text.txt", "text.txt"), text, YEARS),
    ]
}

const EXAMPLES: [&str; 2] = [
    "tests/reference/gpt2-eap-ig/examples.jsonl",
    "tests/reference/gpt2-lengths-all/examples.jsonl",
];
const WINOBIAS: [&str; 2] = [
    "tasks/fixtures/winobias/pro_stereotyped_type1.txt.dev",
    "tasks/fixtures/winobias/anti_stereotyped_type1.txt.dev",
];
const LOGIC: [&str; 2] = [BESIDE[0].1, "tasks/fixtures/logic/data_level2/abductive_logic.json"];
const IOI: &str = r#"{"prompt": "As Amy and Tom ate, Tom gave it to", "metadata": {"subject": "Tom", "indirect_object": "Amy", "random_c": "Dan"}, "choices": ["Tom", "Amy"], "answerKey": 1, "abc_counterfactual": {"prompt": "As Dan and Kim ate, Max gave it to"}, "s2_io_flip_counterfactual": {"prompt": "As Amy and Tom ate, Amy gave it to"}}
{"prompt": "As Amy and Tom ate, Amy gave it to", "metadata": {"subject": "Amy", "indirect_object": "Tom", "random_c": "Dan"}, "choices": ["Tom", "Amy"], "answerKey": 0, "abc_counterfactual": {"prompt": "As Dan and Kim ate, Max gave it to"}}
"#;
const IOI_TABLE: &str = "clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\n\
    \"As Amy and Tom ate, Tom gave it to\",\"As Amy and Tom ate, Dan gave it to\",\
    \"As Amy and Tom ate, Amy gave it to\",1,2\n";
const MCQA: &str = r#"{"prompt": "A box is red. What is it?\nA. red\nB. blue\nAnswer:", "choices": {"label": ["A", "B"], "text": ["red", "blue"]}, "answerKey": 0, "symbol_counterfactual": {"prompt": "A box is red. What is it?\nC. red\nD. blue\nAnswer:", "choices": {"label": ["C", "D"]}, "answerKey": 0}}
"#;
const ARITHMETIC: &str = r#"{"prompt": "3 + 4 = ", "label": "7", "operator": "+", "random_counterfactual": {"prompt": "1 + 1 = ", "label": "2"}}
{"prompt": "4 - 3 = ", "label": 1, "operator": "-", "random_counterfactual": {"prompt": "5 - 2 = ", "label": 3}}
"#;
const YEARS: &str = "clean,corrupted,correct_idx\n\
    The war lasted from the year 1732 to the year 17,The war lasted from the year 1701 to the year 17,32\n\
    The siege lasted from the year 1145 to the year 11,The siege lasted from the year 1101 to the year 11,45\n";

/// Reads a task's file as a run would: both splits, and with counterfactuals asked for.
fn task(folder: &Path, &Kind(_, name, file, data): &Kind) -> Result<Reader> {
    std::fs::create_dir(folder.join("data_level1"))?;
    for (place, fixture) in BESIDE {
        std::fs::copy(repository(fixture), folder.join(place))?;
    }
    let path = folder.join(file);
    let data = folder.join(data).display().to_string();
    let plugin = registry::find::<dyn Task>(name)?;
    let task = |more: &[(&str, &str)]| -> Result<_> {
        let data = [("data", &data[..])];
        let options = data.iter().chain(more).map(|&(key, value)| (key.to_owned(), value.into()));
        Ok(plugin.build(&toml::Table::from_iter(options))?)
    };
    let stops = task(&[])?;
    // Not every task has the setting.
    let skips = task(&[("bad_rows", "skip")]).ok();
    let tokenizer = byte_tokenizer()?;
    Ok(Box::new(move |input| {
        std::fs::write(&path, input)?;
        let setting = |counterfactuals| Setting {
            tokenizer: Some(&tokenizer),
            context: 3000,
            seed: 0,
            counterfactuals,
        };
        let stopped = [Split::Train, Split::Test]
            .map(|split| checked(stops.load(split, &setting(false))))
            .into_iter()
            .try_for_each(|loaded| loaded.map(drop));
        match &skips {
            Some(skips) => checked(skips.load(Split::Train, &setting(true))).map(drop),
            None => stopped,
        }
    }))
}
