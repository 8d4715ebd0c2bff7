//! Circuits that are run: the reference cases by the command, what holds of any model, and what is refused.

use serde_json::Value;

use crate::command_line::{json, refuses, succeeds, words};
use crate::support::repository;

/// A reference case of kind `evaluate`.
struct Case {
    folder: String,
    settings: Value,
    expected: Value,
}

impl Case {
    fn open(name: &str) -> Self {
        let folder = repository("tests/reference").join(name);
        Self {
            settings: json(&folder.join("settings.json")),
            expected: json(&folder.join("expected.json")),
            folder: folder.to_string_lossy().into_owned(),
        }
    }

    /// The words with commas between of a list of settings.
    fn list(values: &Value) -> String {
        let word = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        values.as_array().unwrap().iter().map(word).collect::<Vec<_>>().join(",")
    }

    /// The call, up to what is judged.
    fn call(&self, dtype: &str) -> String {
        let Self { folder, settings, .. } = self;
        let text = |name: &str| settings[name].as_str().unwrap();
        let mut call = format!(
            "faithfulness --model {folder}/model --task tokens --data {folder}/examples.jsonl --metric {} \
             --ablation {} --nodes {} --dtype {dtype} --force --json out.json",
            text("metric"),
            text("ablation"),
            Self::list(&settings["nodes"])
        );
        if let Some(width) = settings["mlp_head_width"].as_u64() {
            call += &format!(" --mlp-head-width {width}");
        }
        if settings["prune"] == false {
            call += " --no-prune";
        }
        call
    }

    /// Every figure that is written, against what is expected.
    fn check(&self, dtype: &str, tolerance: f64) {
        let folder = tempfile::tempdir().unwrap();
        let run = |call: &str| {
            succeeds(folder.path(), &words(call));
            json(&folder.path().join("out.json"))
        };
        let call = self.call(dtype);
        if let Some(circuit) = self.settings["circuit"].as_str() {
            let knockouts = self.settings["knockouts"].as_array().unwrap().iter();
            let knockouts: String =
                knockouts.map(|nodes| format!(" --knockout {}", Self::list(nodes))).collect();
            let found =
                run(&format!("{call} --circuit {}/{circuit} --minimality{knockouts}", self.folder));
            return agree(&found, &self.expected, tolerance, "");
        }
        let fractions = Self::list(&self.settings["fractions"]);
        for ranking in self.settings["rankings"].as_array().unwrap() {
            let ranking = ranking.as_str().unwrap();
            let scores = self.settings["scores"].as_str().unwrap();
            let found = run(&format!(
                "{call} --scores {}/{scores} --ranking {ranking} --fractions {fractions} --batch-size 4",
                self.folder
            ));
            let keys = ["metric_full", "metric_empty", "edges", ranking];
            let expected = self.expected.as_object().unwrap().clone();
            let expected = expected.into_iter().filter(|(key, _)| keys.contains(&&key[..]));
            agree(&found, &Value::Object(expected.collect()), tolerance, "");
        }
    }
}

/// The same keys, the same counts, the same numbers up to the tolerance.
fn agree(found: &Value, expected: &Value, tolerance: f64, place: &str) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            let keys =
                |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
            let (mut ours, mut theirs) = (keys(found), keys(expected));
            ours.sort();
            theirs.sort();
            assert_eq!(ours, theirs, "{place}");
            for (key, expected) in expected {
                agree(&found[key], expected, tolerance, &format!("{place}/{key}"));
            }
        }
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len(), "{place}");
            for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
                agree(found, expected, tolerance, &format!("{place}/{index}"));
            }
        }
        (Value::Number(found), Value::Number(expected)) if !expected.is_u64() => {
            let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((found - expected).abs() <= tolerance, "{place}: {found}, not {expected}");
        }
        // A fraction of 1 is written as a whole number there.
        (Value::Number(found), Value::Number(expected)) => {
            assert_eq!(found.as_f64(), expected.as_f64(), "{place}");
        }
        _ => assert_eq!(found, expected, "{place}"),
    }
}

macro_rules! cases {
    ($($test:ident = $name:literal),* $(,)?) => {
        $(#[test] fn $test() {
            let case = Case::open($name);
            case.check("float64", 1e-12);
            case.check("float32", 1e-5);
        })*
    };
}

cases!(
    eval_gpt2_circuit = "eval-gpt2-circuit",
    eval_gpt2_corrupt = "eval-gpt2-corrupt",
    eval_gpt2_mean_lengths = "eval-gpt2-mean-lengths",
    eval_gpt2_zero_unpruned = "eval-gpt2-zero-unpruned",
    eval_llama_corrupt_lengths = "eval-llama-corrupt-lengths",
    eval_llama_mean_positional = "eval-llama-mean-positional",
    eval_llama_zero_lengths = "eval-llama-zero-lengths",
);

/// A call on a reference case, up to what is judged.
fn on_case(name: &str, data: &str) -> String {
    let folder = repository("tests/reference").join(name);
    let folder = folder.display();
    let data = data.replace("CASE", &folder.to_string());
    format!("faithfulness --model {folder}/model --task tokens --data {data} --metric logit_diff")
}

#[test]
fn what_can_not_be_evaluated_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let case = repository("tests/reference/eval-gpt2-corrupt");
    let call = on_case("eval-gpt2-corrupt", "CASE/examples.jsonl");
    let scores = format!("--scores {}/scores.safetensors --ranking absolute", case.display());
    let refused = |arguments: &str, parts: &[&str]| {
        refuses(folder.path(), &words(arguments), parts);
    };
    for fraction in ["1.5", "-0.1", "nan"] {
        refused(
            &format!("{call} --ablation zero {scores} --fractions=0.5,{fraction}"),
            &["fraction", "from 0 to 1"],
        );
    }
    refused(&format!("{call} --ablation zero {scores} --fractions=half"), &["half"]);
    // Of another model: by what the file says, and by its nodes where it says nothing.
    succeeds(
        folder.path(),
        &words(
            "discover --task agreement --set task.train_examples=4 --top-n 5 --scores s --circuit c",
        ),
    );
    for judged in ["--circuit c", "--scores s --ranking signed"] {
        refused(&format!("{call} --ablation zero {judged}"), &["of another model"]);
    }
    let llama = on_case("eval-llama-corrupt-lengths", "CASE/examples.jsonl");
    refused(&format!("{llama} --ablation zero {scores}"), &["scores.safetensors", "no writer"]);
    let circuit = repository("tests/reference/eval-gpt2-circuit/circuit.json");
    let circuit = format!("--circuit {}", circuit.display());
    refused(&format!("{llama} --ablation zero {circuit}"), &["circuit.json", "no edge"]);
    refused(&format!("{call} --ablation zero {circuit} --nodes head,mlp"), &["no edge"]);
    refused(&format!("{call} --ablation zero {circuit} --nodes head,tail"), &["tail"]);
    refused(
        &format!("{call} --ablation zero {circuit} --knockout head.9.9"),
        &["head.9.9", "no edge of the graph"],
    );
    refused(&format!("{call} --ablation zero {circuit} --knockout horse"), &["horse", "no node"]);
    refused(
        &format!("{} --ablation zero --nodes head,mlp {scores} --ranking greedy", call)
            .replace("--ranking absolute", ""),
        &["greedy", "logits"],
    );
    refused(&format!("{call} --ablation none {scores}"), &["none"]);
    refused(&format!("{call} --ablation zero {scores} --set faithfulness.reach=2"), &["reach"]);
}

#[test]
fn data_that_does_not_fit_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let case = repository("tests/reference/eval-gpt2-corrupt");
    let scores = format!("--scores {}/scores.safetensors --ranking absolute", case.display());
    let refused = |data: &str, rest: &str, parts: &[&str]| {
        std::fs::write(folder.path().join("d.jsonl"), data).unwrap();
        let call = on_case("eval-gpt2-corrupt", "d.jsonl");
        refuses(folder.path(), &words(&format!("{call} {scores} {rest}")), parts);
    };
    refused(
        r#"{"tokens": [1, 2, 3], "key_positions": [2]}"#,
        "--ablation zero",
        &["logit_diff", "d.jsonl:1", "those that fit"],
    );
    let keys = r#""key_positions": [2], "wrong": [5]"#;
    refused(
        &format!(r#"{{"tokens": [1, 2, 3], {keys}}}"#),
        "--ablation corrupt",
        &["d.jsonl:1", "no counterfactual"],
    );
    refused(
        &format!(r#"{{"tokens": [1, 2, 3], "corrupt_tokens": [1, 2], {keys}}}"#),
        "--ablation corrupt",
        &["d.jsonl:1", "equal lengths"],
    );
    // A counterfactual that is no other: m(M) = m(∅).
    refused(
        &format!(r#"{{"tokens": [1, 2, 3], "corrupt_tokens": [1, 2, 3], {keys}}}"#),
        "--ablation corrupt",
        &["faithfulness is undefined"],
    );
    for dtype in ["float32", "float64"] {
        refused(
            &format!(r#"{{"tokens": [1, 2, 3], "corrupt_tokens": [1, 2, 3], {keys}}}"#),
            &format!("--ablation corrupt --dtype {dtype}"),
            &["faithfulness is undefined"],
        );
    }
}

/// The kinds of nodes are those that scores and circuits were found with; the plot is drawn.
#[test]
fn scores_and_circuits_know_their_graph() {
    let folder = tempfile::tempdir().unwrap();
    let task = "--task agreement --set task.train_examples=16 --set task.test_examples=8";
    succeeds(
        folder.path(),
        &words(&format!(
            "discover {task} --positions all --ablation zero --nodes head,mlp --top-n 40 --scores s --circuit c"
        )),
    );
    let call =
        format!("faithfulness {task} --ablation zero --force --json out.json --plot plot.svg");
    let mut counts = Vec::new();
    for judged in ["--scores s --ranking absolute", "--circuit c --knockout mlp.0"] {
        let shown = succeeds(folder.path(), &words(&format!("{call} {judged}")));
        assert!(shown.contains("faithfulness"), "{shown}");
        let found = json(&folder.path().join("out.json"));
        counts.push(found["edges"].as_u64().unwrap());
        let plot = std::fs::read_to_string(folder.path().join("plot.svg")).unwrap();
        assert!(plot.contains(">random</text>"), "{plot}");
    }
    // Without a ranking, `absolute`.
    succeeds(folder.path(), &words(&format!("{call} --scores s")));
    assert!(json(&folder.path().join("out.json"))["absolute"]["cpr"].is_number());
    let all = succeeds(
        folder.path(),
        &words(&format!("{call} --circuit c --nodes head,mlp,embed,logits")),
    );
    assert!(all.contains("edges"), "{all}");
    let edges = json(&folder.path().join("out.json"))["edges"].as_u64().unwrap();
    assert_eq!(counts[0], counts[1]);
    assert!(edges > counts[0]);
    refuses(
        folder.path(),
        &words(&format!("{call} --scores s --ranking absolute --nodes head,mlp,embed,logits")),
        &["no score of embed", "--nodes"],
    );
}

#[test]
fn eval_judges_a_circuit_alone() {
    let folder = tempfile::tempdir().unwrap();
    let task = "--task agreement --set task.train_examples=16 --set task.test_examples=8";
    let discover = format!("discover {task} --nodes head,mlp");
    let figures = |rest: &str| -> Value {
        let shown = succeeds(folder.path(), &words(&format!("eval {task} --json {rest}")));
        serde_json::from_str(&shown).unwrap()
    };
    let shown: Value =
        serde_json::from_str(&succeeds(folder.path(), &words(&format!("{discover} --json"))))
            .unwrap();
    let edges = shown["graph_edges"].as_u64().unwrap();
    succeeds(folder.path(), &words(&format!("{discover} --top-n {edges} --circuit all")));
    succeeds(folder.path(), &words(&format!("{discover} --top-n 1 --circuit one")));
    for ablation in ["zero", "mean", "mean-positional"] {
        assert_eq!(figures(&format!("--circuit all --ablation {ablation}")), figures(""));
        assert_ne!(figures(&format!("--circuit one --ablation {ablation}")), figures(""));
    }
    std::fs::write(folder.path().join("text"), "the dog runs and the cats run".repeat(9)).unwrap();
    let perplexity =
        "eval --task perplexity --data text --set task.window=8 --circuit one --ablation";
    succeeds(folder.path(), &words(&format!("{perplexity} mean")));
    refuses(folder.path(), &words(&format!("{perplexity} corrupt")), &["no counterfactual"]);
    let output = crate::command_line::program(folder.path(), &words("eval --circuit one"));
    assert_eq!(output.status.code(), Some(2));
}

/// `[faithfulness]` leaves its figures in the summary and the curves beside it, also of a fixed circuit.
#[test]
fn a_run_evaluates_its_circuits() {
    let folder = tempfile::tempdir().unwrap();
    let experiment = "
        [task]
        name = 'agreement'
        direction = 'disagreement'
        train_examples = 24
        test_examples = 8
        [discovery]
        ablation = 'corrupt'
        positions = 'all'
        [pruning]
        top_n = 60
        [tuning]
        steps = 2
        [faithfulness]
        ranking = 'signed'
        reach = 0.8
        examples = 6";
    std::fs::write(folder.path().join("e.toml"), experiment).unwrap();
    succeeds(folder.path(), &words("run e.toml --out out"));
    let out = folder.path().join("out");
    let summary = json(&out.join("summary.json"));
    for when in ["before", "after"] {
        let found = &summary[format!("faithfulness_{when}")];
        for figure in ["metric_full", "metric_empty", "edges", "cpr", "cmd"] {
            assert!(found[figure].is_number(), "{figure}: {found}");
        }
        assert_eq!(found["circuit"]["n"], 60);
        assert!(found["circuit"]["complement"]["faithfulness"].is_number());
        let smallest = &found["smallest"];
        assert!(smallest["faithfulness"].as_f64().unwrap() >= 0.8, "{smallest}");
        assert!(smallest["n"].as_u64() <= found["edges"].as_u64());
        let curve = json(&out.join(format!("faithfulness-{when}.json")));
        let points = curve["curve"]["points"].as_array().unwrap();
        assert_eq!(points.len(), 11);
        assert_eq!(
            (&points[0]["faithfulness"], &points[10]["faithfulness"]),
            (&0.0.into(), &1.0.into())
        );
        assert_eq!(curve["cpr"], found["cpr"]);
    }
    // The command on the same circuit says the same.
    let call = "--task agreement --seed 0 --set task.direction=disagreement --set task.test_examples=8 \
                --set faithfulness.examples=6 --ablation corrupt --circuit out/circuit-before.json --json c";
    succeeds(folder.path(), &words(&format!("faithfulness {call}")));
    let circuit = json(&folder.path().join("c"));
    let close = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-6;
    let before = &summary["faithfulness_before"];
    assert!(
        close(&circuit["faithfulness"], &before["circuit"]["faithfulness"]),
        "{circuit} {before}"
    );
    assert!(close(&circuit["metric_empty"], &before["metric_empty"]));
    let fixed = "run e.toml --set tuning.circuit='out/circuit-before.json' --out fixed";
    succeeds(folder.path(), &words(fixed));
    let fixed = json(&folder.path().join("fixed/summary.json"));
    assert_eq!(fixed["faithfulness_before"], *before);
    refuses(
        folder.path(),
        &words("run e.toml --out none --set faithfulness.fractions=[0.5,2]"),
        &["fraction 2", "from 0 to 1"],
    );
    assert!(!folder.path().join("none").exists());
}
