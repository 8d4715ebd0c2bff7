//! Runs with more than one task, metric or baseline, as a user makes them on the built-in model.

use std::path::Path;

use serde_json::Value;

use crate::command_line::{json, refuses, succeeds, words};

const TEXT: &str = "the keys to the cabinet are old . the key to the cabinets is old .\n";

fn figure(summary: &Value, when: &str, name: &str) -> f64 {
    summary[when][name].as_f64().unwrap_or_else(|| panic!("no {when} {name} in {summary}"))
}

/// An experiment that also measures metrics and evaluates on two other tasks.
fn write_inputs(folder: &Path) {
    std::fs::write(folder.join("text.txt"), TEXT.repeat(8)).unwrap();
    let question = |verb: usize| {
        format!(
            "{{\"question\": \"the keys to the cabinet\", \"choices\": [\"are old\", \"is old\"], \"answer\": {verb}}}\n"
        )
    };
    std::fs::write(folder.join("choices.jsonl"), question(0) + &question(1)).unwrap();
    std::fs::write(folder.join("grammatical.jsonl"), question(0)).unwrap();
    // Keys without wrong answers.
    let keys = "{\"tokens\": [1, 3, 119, 1, 4, 83, 98], \"key_positions\": [5]}\n";
    std::fs::write(folder.join("keys.jsonl"), keys).unwrap();
    let experiment = r#"
        evaluate = [{ name = "perplexity", data = "text.txt" }, { name = "multiple_choice", data = "choices.jsonl" }]
        measure = [{ name = "accuracy" }, { name = "kl_divergence" }]
        [task]
        name = "agreement"
        direction = "disagreement"
        train_examples = 64
        test_examples = 32
        [pruning]
        top_n = 20
        [tuning]
        steps = 3
        lr = 1e-2
    "#;
    std::fs::write(folder.join("mine.toml"), experiment).unwrap();
}

/// A mixture takes what its tasks give, and is judged as they are.
#[test]
fn a_mixture_of_tasks_is_discovered_tuned_and_judged_task_by_task() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let keys = |line: &str| format!("{{\"tokens\": {line}, \"key_positions\": [5]}}\n");
    let lines = keys("[1, 3, 119, 1, 4, 83, 98]").repeat(6);
    std::fs::write(here.join("keys.jsonl"), lines).unwrap();
    let task = |task: &str| {
        let sizes = "[tuning]\nsteps = 2\n[pruning]\ntop_n = 20\n";
        format!("metric = {{ name = \"loss\" }}\n[task]\n{task}\n{sizes}")
    };
    let agreement = "name = \"agreement\"\ntrain_examples = 9\ntest_examples = 8";
    let mixture = "name = \"mixture\"\ntasks = [{ name = \"agreement\", train_examples = 9, test_examples = 8 }, \
                   { name = \"tokens\", weight = 2, data = \"keys.jsonl\" }]";
    std::fs::write(here.join("one.toml"), task(agreement)).unwrap();
    std::fs::write(here.join("mixture.toml"), task(mixture)).unwrap();
    succeeds(here, &words("run one.toml --out one"));
    succeeds(here, &words("run mixture.toml --out mixture"));
    let [one, mixture] = ["one", "mixture"].map(|run| json(&here.join(run).join("summary.json")));
    for (name, value) in one["before"].as_object().unwrap() {
        assert_eq!(mixture["before"][&format!("agreement.{name}")], *value, "{name}");
    }
    assert!(figure(&mixture, "after", "tokens.loss") < figure(&mixture, "before", "tokens.loss"));
    // Six of one task, three of the other: as many as there are in that proportion.
    let circuit = json(&here.join("mixture/circuit-before.json"));
    assert_eq!(circuit["provenance"]["examples"], 9);
    refuses(here, &words("eval --task mixture"), &["there are no tasks"]);
}

#[test]
fn other_tasks_and_metrics_are_evaluated_beside_the_own_and_runs_compared() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    write_inputs(here);
    succeeds(here, &words("run mine.toml --out circuit --set controls.kinds=['random']"));
    let summary = json(&here.join("circuit/summary.json"));
    assert_eq!(figure(&summary, "before", "metric.kl_divergence"), 0.0);
    assert!(figure(&summary, "after", "metric.kl_divergence") > 0.0);
    // The flipped verb, which is trained on, is never the likeliest before.
    assert_eq!(figure(&summary, "before", "metric.accuracy"), 0.0);
    // Of the two questions one has the grammatical answer.
    assert_eq!(figure(&summary, "before", "multiple_choice.acc"), 0.5);
    let perplexity = |when: &str| figure(&summary, when, "perplexity.perplexity");
    assert!(perplexity("after") != perplexity("before"));
    assert!(
        figure(&summary["controls"]["kinds"][0]["after"], "mean", "perplexity.perplexity") > 1.0
    );

    succeeds(here, &words("run mine.toml --out full --set selector.name=all"));
    succeeds(
        here,
        &words("run mine.toml --out lora --set selector.name=lora --set selector.dropout=0.1"),
    );
    let table =
        succeeds(here, &words("compare circuit full lora --markdown table.md --json table.json"));
    assert_eq!(std::fs::read_to_string(here.join("table.md")).unwrap(), table);
    let rows = json(&here.join("table.json"));
    let names: Vec<&str> =
        rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["untuned", "circuit", "circuit, random", "full", "lora"]);
    let Some(table) = table.strip_prefix("### agreement\n\n") else { panic!("{table}") };
    assert!(table.lines().all(|line| line.starts_with('|') && line.ends_with('|')), "{table}");
    assert_eq!(rows[3]["tuned_parameters"], rows[3]["parameters"]);
    let tuned = |row: usize| rows[row]["tuned_parameters"].as_u64().unwrap();
    assert!(tuned(4) < tuned(3) && tuned(0) == 0);
    refuses(here, &words("compare nowhere"), &["nowhere", "no summary.json"]);
}

#[test]
fn an_adapter_is_saved_and_gives_the_same_figures_when_merged_on_loading() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    write_inputs(here);
    succeeds(
        here,
        &words(
            "run mine.toml --out lora --set selector.name=lora --set tuning.evaluate_every=2 --set tuning.checkpoint_every=2",
        ),
    );
    let summary = json(&here.join("lora/summary.json"));
    assert!(figure(&summary, "after", "logit_diff") < figure(&summary, "before", "logit_diff"));
    let evaluated = |model: &str| -> Value {
        let line = format!("eval --task agreement --set task.test_examples=32 --json {model}");
        serde_json::from_str(&succeeds(here, &words(&line))).unwrap()
    };
    let merged = evaluated("--model lora/model");
    let beside = evaluated("--set model.adapter='lora/adapter'");
    let checkpoint = evaluated("--model lora/checkpoint-2");
    for name in ["loss", "logit_diff"] {
        let after = figure(&summary, "after", name);
        for figures in [&merged, &beside] {
            assert!((figures[name].as_f64().unwrap() - after).abs() < 1e-4, "{name}");
        }
        assert!(checkpoint[name].as_f64().unwrap() != after);
    }
    std::fs::write(
        here.join("lora/adapter/adapter_config.json"),
        "{\"r\": 8, \"lora_alpha\": 16, \"use_dora\": true}",
    )
    .unwrap();
    refuses(
        here,
        &words("eval --set model.adapter='lora/adapter'"),
        &["lora/adapter", "plain LoRA"],
    );
}

#[test]
fn metrics_that_do_not_fit_are_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    write_inputs(here);
    let run = |rest: &str, parts: &[&str]| {
        refuses(here, &words(&format!("run mine.toml --out out {rest}")), parts);
        assert!(!here.join("out").exists(), "something was written");
    };
    run("--set metric.name=accuracy", &["`accuracy` only measures", "measure = "]);
    run("--set metric.name=kl_divergence", &["`kl_divergence` only measures"]);
    let keys = "--set task.name=tokens --set task.data='keys.jsonl'";
    run(
        &format!("{keys} --set metric.name=logit_diff"),
        &[
            "metric `logit_diff` doesn't fit task `tokens`",
            "keys.jsonl:1",
            "no wrong answer",
            "those that fit: answer_log_prob, loss",
        ],
    );
    run(
        "--set task.name=perplexity --set task.data='text.txt' --set discovery.positions=all",
        &["measuring metric `accuracy`", "window 1", "no key positions"],
    );
    run(
        "--set task.name=perplexity --set task.data='text.txt' --set measure=[]",
        &["no key positions", "positions = \"all\""],
    );
    run("--set selector.name=lora --set selector.rank=0", &["rank is 0", "at least 1"]);
    run("--set selector.name=lora --set selector.targets=['q_proj']", &["q_proj", "c_attn"]);
    run("--set evaluate=[{name='perplexty'}]", &["perplexty", "did you mean perplexity"]);
    run("--set evaluate=[{name='perplexity',data='nowhere.txt'}]", &["nowhere.txt"]);
    run(
        "--set task.name=math --set task.data='choices.jsonl'",
        &["choices.jsonl:1", "not a row of this task", "expected a string"],
    );
}

/// The right choice is held against the wrong ones' tokens.
#[test]
fn multiple_choice_is_discovered_with_logit_diff() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    write_inputs(here);
    let discover = "discover --task multiple_choice --data grammatical.jsonl --metric logit_diff --top-n 5 --circuit circuit.json";
    let shown = succeeds(here, &words(discover));
    let metric = shown.lines().find_map(|line| line.strip_prefix("metric")).unwrap();
    assert!(metric.trim().parse::<f64>().unwrap() > 1.0, "{shown}");
    assert_eq!(json(&here.join("circuit.json"))["edges"].as_array().unwrap().len(), 5);
}

/// Every combination that fits is run once, those that don't are named, and a second call goes on
/// where the first stopped.
#[test]
fn a_sweep_runs_what_fits_and_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    write_inputs(here);
    let mut experiment = std::fs::read_to_string(here.join("mine.toml")).unwrap();
    experiment =
        experiment.replace("measure = ", "# measure = ").replace("evaluate = ", "# evaluate = ");
    experiment.push_str(
        r#"
        [sweep]
        tasks = [{ name = "agreement", test_examples = 16 }, { name = "tokens", data = "keys.jsonl" }]
        metrics = ["logit_diff", "answer_log_prob"]
    "#,
    );
    std::fs::write(here.join("sweep.toml"), experiment).unwrap();
    let run = |rest: &str| succeeds(here, &words(&format!("run sweep.toml --out sweep {rest}")));
    let shown = run("");
    assert!(shown.contains("4/4 tokens-answer_log_prob"), "{shown}");
    let skipped = json(&here.join("sweep/skipped.json"));
    let [skipped] = &skipped.as_array().unwrap()[..] else { panic!("one doesn't fit: {skipped}") };
    assert_eq!(skipped["name"], "tokens-logit_diff");
    assert!(skipped["reason"].as_str().unwrap().contains("those that fit"), "{skipped}");
    let rows = json(&here.join("sweep/compare.json"));
    // Three runs, and the untuned model once for each task.
    assert_eq!(rows.as_array().unwrap().len(), 5);
    assert!(shown.contains(&std::fs::read_to_string(here.join("sweep/compare.md")).unwrap()));

    // One run is lost half way, the others stay as they are.
    let summary = |name: &str| here.join("sweep").join(name).join("summary.json");
    let modified = |name: &str| std::fs::metadata(summary(name)).unwrap().modified().unwrap();
    let (lost, kept) = ("agreement-answer_log_prob", "agreement-logit_diff");
    let before = modified(kept);
    std::fs::remove_file(summary(lost)).unwrap();
    let again = run("");
    assert_eq!(again.matches("done before").count(), 2, "{again}");
    assert!(summary(lost).exists());
    assert_eq!(modified(kept), before);
    // With other settings these are other runs.
    refuses(
        here,
        &words("run sweep.toml --out sweep --set tuning.lr=0.5"),
        &["sweep/agreement", "--out"],
    );
    refuses(
        here,
        &words("run sweep.toml --out none --set sweep.metrics=['logit_dif']"),
        &["none of the sweep's", "fits"],
    );
    let listed = succeeds(here, &words("list experiments"));
    assert!(listed.contains("smollm2-math") && !listed.contains("logit_diff"), "{listed}");
}
