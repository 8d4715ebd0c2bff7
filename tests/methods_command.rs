//! `methods`: attribution methods side by side.

use serde_json::Value;

use crate::command_line::{json, refuses, succeeds, words};
use crate::support::repository;

fn case(name: &str) -> String {
    let folder = repository("tests/reference").join(name);
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    format!("--model {} --task tokens --data {}", path("model"), path("examples.jsonl"))
}

fn row<'v>(comparison: &'v Value, method: &str) -> &'v Value {
    let rows = comparison["methods"].as_array().unwrap();
    rows.iter().find(|row| row["method"] == method).unwrap()
}

/// The reference agrees with itself; to `corrupt` the methods come near it, and not all as near; tables are
/// printed and written.
#[test]
fn methods_are_held_to_exact_edge_patching() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let line = format!(
        "methods --compare eap,eap-ig,relp --against exact --top 60 --metric logit_diff --ablation corrupt \
         {} --json out.json --markdown out.md",
        case("eval-gpt2-exact")
    );
    let printed = succeeds(here, &words(&line));
    assert_eq!(std::fs::read_to_string(here.join("out.md")).unwrap(), printed);
    let comparison = json(&here.join("out.json"));
    assert_eq!(comparison["top"], 60);
    assert_eq!(comparison["provenance"]["method"], "exact");
    assert_eq!(comparison["provenance"]["positions"], "all");
    let names: Vec<&Value> =
        comparison["methods"].as_array().unwrap().iter().map(|row| &row["method"]).collect();
    assert_eq!(names, ["eap", "eap-ig", "relp", "exact"]);
    let exact = row(&comparison, "exact");
    let number = |value: &Value| value.as_f64().unwrap();
    assert!((number(&exact["pearson"]) - 1.0).abs() < 1e-12);
    assert!((number(&exact["spearman"]) - 1.0).abs() < 1e-12);
    for (index, method) in ["eap", "eap-ig", "relp", "exact"].into_iter().enumerate() {
        let row = row(&comparison, method);
        assert_eq!(row["overlaps"][index], 1.0, "{method}");
        assert_eq!(row["overlaps"][3], exact["overlaps"][index], "{method}");
        assert!(row["seconds"].is_number());
        let line = printed.lines().find(|line| line.starts_with(&format!("| {method} "))).unwrap();
        assert!(line.contains(&format!("{:.4}", number(&row["spearman"]))), "{line}");
    }
    let eap = row(&comparison, "eap");
    assert!(number(&eap["pearson"]) > 0.5 && number(&eap["pearson"]) < 0.9999, "{eap}");
    assert!(number(&eap["overlaps"][3]) > 0.3 && number(&eap["overlaps"][3]) < 1.0, "{eap}");
}

/// With `--strongest-only` the edges that are correlated are scored as if all were, and only they.
#[test]
fn the_strongest_edges_alone_are_patched() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let compare = |rest: &str| {
        let line = format!(
            "methods --compare eap,relp --top 20 --ablation corrupt {} --json out.json --force {rest}",
            case("eval-gpt2-exact")
        );
        succeeds(here, &words(&line));
        json(&here.join("out.json"))
    };
    let (all, strongest) = (compare(""), compare("--strongest-only"));
    for method in ["eap", "relp"] {
        for figure in ["pearson", "spearman", "cpr", "cmd"] {
            let [all, strongest] =
                [&all, &strongest].map(|found| row(found, method)[figure].clone());
            assert!(all.is_number() && all == strongest, "{method} {figure}: {all} {strongest}");
        }
    }
    let exact = row(&strongest, "exact");
    assert!(exact["cpr"].is_null() && exact.get("pearson").is_none(), "{exact}");
    assert_eq!(strongest["graph_edges"], all["graph_edges"]);
}

/// The scores are those that `discover` writes, and the figures those that follow from its files.
#[test]
fn figures_are_those_of_the_score_files() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let settings =
        format!("--metric logit_diff --ablation zero --positions all {}", case("gpt2-relp"));
    let mut scores = Vec::new();
    for method in ["relp", "eap"] {
        let file = format!("{method}.safetensors");
        succeeds(here, &words(&format!("discover --method {method} --scores {file} {settings}")));
        let tensors = candle_core::safetensors::load(here.join(file), &candle_core::Device::Cpu);
        scores.push(tensors.unwrap()["scores"].flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }
    let mut order: Vec<usize> = (0..scores[0].len()).collect();
    order.sort_by(|&a, &b| scores[0][b].abs().total_cmp(&scores[0][a].abs()));
    let top = &order[..30];
    let of =
        |scores: &[f32]| -> Vec<f64> { top.iter().map(|&edge| f64::from(scores[edge])).collect() };
    let (x, y) = (of(&scores[0]), of(&scores[1]));
    let sums = |f: fn(f64, f64) -> f64| -> f64 { x.iter().zip(&y).map(|(&x, &y)| f(x, y)).sum() };
    let n = x.len() as f64;
    let (sx, sy) = (sums(|x, _| x), sums(|_, y| y));
    let (xx, yy, xy) = (sums(|x, _| x * x), sums(|_, y| y * y), sums(|x, y| x * y));
    let expected = (n * xy - sx * sy) / ((n * xx - sx * sx) * (n * yy - sy * sy)).sqrt();
    let line = format!("methods --compare relp --against eap --top 30 {settings} --json");
    let comparison: Value = serde_json::from_str(&succeeds(here, &words(&line))).unwrap();
    let pearson = row(&comparison, "relp")["pearson"].as_f64().unwrap();
    assert!((pearson - expected).abs() < 1e-9, "{pearson} for {expected}");
    // As `faithfulness` says of the same file.
    let settings = format!("--metric logit_diff --ablation zero {}", case("gpt2-relp"));
    for (ranking, area) in [("signed", "cpr"), ("absolute", "cmd")] {
        let line =
            format!("faithfulness --scores relp.safetensors --ranking {ranking} {settings} --json");
        let judged: Value = serde_json::from_str(&succeeds(here, &words(&line))).unwrap();
        let (found, expected) = (&row(&comparison, "relp")[area], &judged[ranking][area]);
        let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
        assert!((found - expected).abs() < 1e-9, "{area}: {found} for {expected}");
    }
}

#[test]
fn comparisons_that_cannot_be_made_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let case = case("gpt2-key-mean");
    let refused = |options: &str, parts: &[&str]| {
        let line = format!("methods --metric logit_diff {case} {options}");
        refuses(here, &words(&line), parts);
    };
    refused("--compare eap,rlep", &["rlep", "relp"]);
    refused("--top 100000", &["--top is 100000", "edges; give at most that"]);
    refused("--positions key", &["method `exact` scores at all positions"]);
}

/// A method is given with its options as a table, by its own flag too.
#[test]
fn a_method_takes_options_on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let edges = |method: &str| {
        let line = "discover --task agreement --set task.train_examples=4 --table t.csv --force";
        let mut call = words(line);
        call.extend(["--method", method]);
        succeeds(folder.path(), &call);
        std::fs::read_to_string(folder.path().join("t.csv")).unwrap()
    };
    let plain = edges("relp");
    assert_eq!(edges(r#"{name="relp",attention="constant"}"#), plain);
    assert_ne!(edges(r#"{name="relp",attention="gradient"}"#), plain);
    let call = ["discover", "--method", r#"{name="relp",attention="none"}"#];
    refuses(folder.path(), &call, &["relp", "`attention`", "constant, gradient"]);
}
