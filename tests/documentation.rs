//! What README and docs/ show works: their files are written and their commands run, in order.

use std::path::Path;

use circuit_framework::run::experiment::Experiment;

use crate::command_line::program;
use crate::support::repository;

/// Fenced blocks of a document: language and content.
fn blocks(document: &str) -> Vec<(&str, &str)> {
    let fenced = document.split("```").skip(1).step_by(2);
    fenced.filter_map(|block| block.split_once('\n')).collect()
}

/// Writes a document's files to the folder and runs its commands there; returns how many.
fn follow(document: &str, folder: &Path) -> usize {
    let document = std::fs::read_to_string(repository(document)).unwrap();
    let mut commands = 0;
    for (language, content) in blocks(&document) {
        match language {
            "jsonl" => std::fs::write(folder.join("mine.jsonl"), content).unwrap(),
            // A fragment: its settings must be an experiment's.
            "toml" if content.starts_with("# in any") => {
                toml::from_str::<Experiment>(content).unwrap();
            }
            "toml" => {
                let first = content.lines().next().and_then(|line| line.strip_prefix("# "));
                std::fs::write(folder.join(first.unwrap_or("mine.toml")), content).unwrap();
            }
            "txt" => std::fs::write(folder.join("sentences.txt"), content).unwrap(),
            // Rust is compiled and run as a documentation test of tasks/; `bash` builds or fetches, `json`
            // is what a command leaves.
            "rust" | "text" | "bash" | "json" => {}
            _ => {
                for line in content.lines() {
                    let words: Vec<&str> = line.split_whitespace().collect();
                    assert_eq!(words[0], "circuit-tuning", "{line}");
                    let output = program(folder, &words[1..]);
                    let errors = String::from_utf8_lossy(&output.stderr);
                    assert!(output.status.success(), "{line}: {errors}");
                    commands += 1;
                }
            }
        }
    }
    commands
}

#[test]
fn readme_commands_run() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(follow("README.md", folder.path()), 18);
    for file in [
        "scores.safetensors",
        "circuit.svg",
        "tuned/summary.json",
        "compare.md",
        "curve.svg",
        "mine/summary.json",
        "back.json",
        "edges.csv",
        "each.safetensors",
    ] {
        assert!(folder.path().join(file).exists(), "{file}");
    }
}

#[test]
fn performance_commands_run() {
    assert_eq!(follow("docs/performance.md", tempfile::tempdir().unwrap().path()), 2);
}

#[test]
fn tokens_commands_run_and_leave_the_line_that_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(follow("docs/tokens.md", folder.path()), 4);
    assert!(folder.path().join("circuit.svg").exists());
    let page = std::fs::read_to_string(repository("docs/tokens.md")).unwrap();
    let shown = blocks(&page).into_iter().find(|(language, _)| *language == "json").unwrap().1;
    let written = std::fs::read_to_string(folder.path().join("mine.jsonl")).unwrap();
    assert_eq!(written.lines().next(), shown.lines().next());
}

#[test]
fn deltas_commands_run() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(follow("docs/deltas.md", folder.path()), 18);
    assert!(folder.path().join("agreement-only.json").exists());
}

/// Every file of a run and every key of its logs and summary stands in docs/run-folder.md.
#[test]
fn what_a_run_leaves_is_documented() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(follow("docs/run-folder.md", folder.path()), 2);
    let page = std::fs::read_to_string(repository("docs/run-folder.md")).unwrap();
    let documented = |word: &str| assert!(page.contains(&format!("`{word}`")), "{word}");
    let run = folder.path().join("runs/documented");
    for entry in std::fs::read_dir(&run).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let name = if name.starts_with("checkpoint-") { "checkpoint-N".to_owned() } else { name };
        match entry.path().is_dir() {
            true => documented(&format!("{name}/")),
            false => documented(&name),
        }
    }
    for file in ["log.jsonl", "circuits.jsonl", "evaluations.jsonl", "summary.json"] {
        let text = std::fs::read_to_string(run.join(file)).unwrap();
        let mut values = serde_json::Deserializer::from_str(&text).into_iter();
        let value: serde_json::Value = values.next().unwrap().unwrap();
        value.as_object().unwrap().keys().for_each(|key| documented(key));
    }
}

/// The head that the page comes to is the one that the analyses find, and its picture is what they draw.
#[test]
fn analyses_commands_run() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(follow("docs/analyses.md", folder.path()), 10);
    let page = std::fs::read_to_string(repository("docs/analyses.md")).unwrap();
    let paths = std::fs::read_to_string(folder.path().join("paths.json")).unwrap();
    let paths: serde_json::Value = serde_json::from_str(&paths).unwrap();
    for of in paths["nodes"].as_array().unwrap() {
        // The first in the page's table of paths; the other tables have the run's tuned direction.
        let line = page.lines().filter(|line| line.contains(of["node"].as_str().unwrap()));
        let shown = line.filter_map(|line| line.split('|').nth(2)?.trim().parse::<f64>().ok());
        let effect = of["effect"].as_f64().unwrap();
        assert!(shown.into_iter().any(|shown| (shown - effect).abs() < 0.01), "{of}");
    }
    let picture = std::fs::read_to_string(repository("docs/analyses.svg")).unwrap();
    let drawn = std::fs::read_to_string(folder.path().join("attention.svg")).unwrap();
    assert_eq!(picture.lines().count(), drawn.lines().count());
    assert!(folder.path().join("run/analysis-after/roles.csv").exists());
}

/// Its pictures are there, and small enough to be loaded.
#[test]
fn report_commands_run() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(follow("docs/report.md", folder.path()), 3);
    assert!(folder.path().join("both.html").exists());
    let page = std::fs::read_to_string(repository("docs/report.md")).unwrap();
    let pictures = page.split("](images/").skip(1).filter_map(|rest| rest.split(')').next());
    for picture in pictures {
        let size = repository("docs/images").join(picture).metadata().unwrap().len();
        assert!(size < 300_000, "{picture}: {size}");
    }
}

#[test]
fn clusters_commands_run() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(follow("docs/clusters.md", folder.path()), 2);
    assert!(folder.path().join("shared/compare.md").exists());
}

#[test]
fn trust_commands_run() {
    assert_eq!(follow("docs/trust.md", tempfile::tempdir().unwrap().path()), 1);
}

/// The figures of every shipped experiment on SmolLM2 stand beside the command that makes them.
#[test]
fn experiments_on_smollm2_are_documented() {
    let pages = ["docs/trust.md", "docs/experiments.md", "docs/analyses.md", "docs/deltas.md"]
        .map(|page| std::fs::read_to_string(repository(page)).unwrap());
    let files = std::fs::read_dir(repository("experiments")).unwrap();
    let names: Vec<String> = files
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name.starts_with("smollm2-"))
        .collect();
    assert!(!names.is_empty());
    for name in names {
        let command = format!("circuit-tuning run {name}");
        assert!(pages.iter().any(|page| page.contains(&command)), "{command}");
    }
}

/// What its scripts leave stands in it, which their own tests hold against them.
#[test]
fn data_commands_run() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(follow("docs/data.md", folder.path()), 2);
    assert!(folder.path().join("tuned/summary.json").exists());
}

/// The model that docs/plugins.md shows is the one that is tested.
#[test]
fn the_model_that_is_shown_is_a_fixture() {
    let page = std::fs::read_to_string(repository("docs/plugins.md")).unwrap();
    let fixture = std::fs::read_to_string(repository("tests/fixtures/lab/my_qwen2.rs")).unwrap();
    assert!(page.contains(fixture.trim_end()));
    assert!(fixture.lines().count() <= 100);
}

#[cfg(feature = "runtime")]
#[test]
fn plugin_commands_run() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(follow("docs/plugins.md", folder.path()), 16);
    assert!(folder.path().join("ioi/summary.json").exists());
}

/// The default run does what README says, and README's figures, means and their intervals, are those that it
/// prints, but for what another processor rounds otherwise.
#[test]
fn readme_shows_the_default_run() {
    let readme = std::fs::read_to_string(repository("README.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = program(folder.path(), &["run"]);
    let run = String::from_utf8(output.stdout).unwrap();
    let figures = |text: &str, name: &str| -> [f64; 8] {
        let line = text.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
        let values: Vec<f64> = (line.split_whitespace().skip(1))
            .filter(|word| *word != "±")
            .map(|value| value.parse().unwrap())
            .collect();
        values.try_into().unwrap()
    };
    for name in ["logit_diff", "perplexity", "right_share", "ioi.right_share", "bias.right_share"] {
        for (shown, value) in figures(&readme, name).into_iter().zip(figures(&run, name)) {
            let margin = 0.05 * value.abs() + 0.02;
            assert!((shown - value).abs() <= margin, "{name}: README has {shown}, not {value}");
        }
    }
    let [before, _, after, ..] = figures(&run, "right_share");
    assert!(before >= 0.95 && after <= 0.10, "{before} {after}");
    for ability in ["ioi.right_share", "bias.right_share"] {
        let [before, ..] = figures(&run, ability);
        assert!(before >= 0.95, "{ability} {before}");
    }
    // The circuit alone, and how many edges reach 0.9 by score and at random, before tuning and after.
    let circuits = |text: &str, name: &str| -> [f64; 2] {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        let words: Vec<&str> = line.split_whitespace().filter(|word| *word != "%").collect();
        [words[words.len() - 2], words[words.len() - 1]].map(|word| word.parse().unwrap())
    };
    for name in ["faithfulness of the circuit", "of the other", "edges that reach", "and drawn"] {
        for (shown, value) in circuits(&readme, name).into_iter().zip(circuits(&run, name)) {
            let margin = 0.05 * value.abs() + 0.02;
            assert!((shown - value).abs() <= margin, "{name}: README has {shown}, not {value}");
        }
    }
    // README says that the difference to the control is within its interval.
    let [_, differences] = run.split("less the circuit").collect::<Vec<_>>()[..] else {
        panic!("{run}")
    };
    let line = differences.lines().find(|line| line.starts_with("logit_diff")).unwrap();
    let [_, difference, _, margin, ..] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{line}")
    };
    let [difference, margin]: [f64; 2] = [difference, margin].map(|word| word.parse().unwrap());
    assert!(difference.abs() < margin, "{line}");
}
