//! Circuits that are run: the reference cases by the command, what holds of any model, and what is refused.

use serde_json::Value;

use crate::command_line::{json, succeeds, words};
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
             --ablation {} --nodes {} --dtype {dtype} --json out.json",
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
