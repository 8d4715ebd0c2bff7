//! What README shows works: its files are written and its commands run, in order.

use circuit_framework::experiment::Experiment;

use crate::command_line::program;
use crate::support::repository;

/// Fenced blocks of README: language and content.
fn blocks(readme: &str) -> Vec<(&str, &str)> {
    let fenced = readme.split("```").skip(1).step_by(2);
    fenced.filter_map(|block| block.split_once('\n')).collect()
}

#[test]
fn readme_commands_run() {
    let readme = std::fs::read_to_string(repository("README.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut commands = 0;
    for (language, content) in blocks(&readme) {
        match language {
            "jsonl" => std::fs::write(folder.path().join("mine.jsonl"), content).unwrap(),
            // A fragment: its settings must be an experiment's.
            "toml" if content.starts_with("# in any") => {
                toml::from_str::<Experiment>(content).unwrap();
            }
            "toml" => std::fs::write(folder.path().join("mine.toml"), content).unwrap(),
            // Rust is compiled and run as a documentation test of tasks/; `bash` builds or fetches.
            "rust" | "text" | "bash" => {}
            _ => {
                for line in content.lines() {
                    let words: Vec<&str> = line.split_whitespace().collect();
                    assert_eq!(words[0], "circuit-tuning", "{line}");
                    let output = program(folder.path(), &words[1..]);
                    let errors = String::from_utf8_lossy(&output.stderr);
                    assert!(output.status.success(), "{line}: {errors}");
                    commands += 1;
                }
            }
        }
    }
    assert_eq!(commands, 8);
    for file in [
        "scores.safetensors",
        "circuit.svg",
        "tuned/summary.json",
        "compare.md",
        "mine/summary.json",
    ] {
        assert!(folder.path().join(file).exists(), "{file}");
    }
}

/// The table of figures is what the default run prints.
#[test]
fn readme_shows_the_default_run() {
    let readme = std::fs::read_to_string(repository("README.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = program(folder.path(), &["run"]);
    let shown = String::from_utf8(output.stdout).unwrap();
    for name in ["logit_diff", "loss", "perplexity", "right_share"] {
        let line = |text: &str| -> Vec<String> {
            let line = text.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(line(&readme), line(&shown));
    }
}
