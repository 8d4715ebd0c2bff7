//! `report`: what the page of a run holds, and how it behaves in a browser.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::command_line::{refuses, succeeds, words};
use crate::support::{repository, skip};

/// Text that would be a tag, a script's end, or an attribute's.
const MARKUP: &str = r#"</script><img src=x onerror="window.hacked=1">"#;

/// A run with everything that a page shows, and its own page.
fn real_run(folder: &Path) {
    let experiment = "
        seed = 2
        evaluate = [{ name = 'agreement', direction = 'agreement', test_examples = 20 }]
        [task]
        name = 'agreement'
        direction = 'disagreement'
        test_examples = 20
        [discovery]
        examples = 32
        bootstrap = 20
        [pruning]
        top_n = 20
        [controls]
        kinds = ['random']
        seeds = 2
        [faithfulness]
        examples = 8
        [report]
        examples = 12
        heads = 3
        [tuning]
        steps = 8
        batch_size = 8
        lr = 1e-3
        rediscover_every = 2
        evaluate_every = 4
    ";
    std::fs::write(folder.join("mine.toml"), experiment).unwrap();
    succeeds(folder, &words("run mine.toml --out run"));
}

/// A sweep over seeds whose second selector has no circuit.
fn real_sweep(folder: &Path) {
    let experiment = "
        [task]
        name = 'agreement'
        test_examples = 10
        [discovery]
        examples = 16
        bootstrap = 0
        [tuning]
        steps = 3
        batch_size = 4
        [sweep]
        selectors = ['nodes', 'all']
        seeds = [0, 1]
    ";
    std::fs::write(folder.join("sweep.toml"), experiment).unwrap();
    succeeds(folder, &words("run sweep.toml --out sweep"));
}

fn provenance() -> Value {
    json!({
        "model": {
            "architecture": "llama", "layers": 30, "heads": 9, "key_value_heads": 3, "d_model": 576,
            "d_head": 64, "mlp_width": 1536, "vocabulary": 49152,
        },
        "model_path": "models/SmolLM2.gguf", "task": "tokens", "metric": "logit_diff", "method": "eap",
        "ablation": "mean", "positions": "key", "nodes": ["head", "mlp"], "seed": 0, "examples": 20,
        "version": "0.1.0",
    })
}

/// The edges of SmolLM2's size of graph from this one on, a hash's order, with scores as of a circuit.
fn edges(count: usize, from: usize) -> Vec<Value> {
    let edge = |index: usize| {
        let hash = (index + from).wrapping_mul(2_654_435_761) >> 7;
        let (writer, reader) = (hash % 29, hash % 29 + 1 + (hash >> 8) % (29 - hash % 29));
        let port = ["q", "kv", "mlp"][(hash >> 16) % 3];
        let reader = match port {
            "q" => format!("head.{reader}.{}.q", (hash >> 20) % 9),
            "kv" => format!("head.{reader}.kv{}.v", (hash >> 20) % 3),
            _ => format!("mlp.{reader}.up"),
        };
        // Digits that no compression foresees, as of real scores.
        let fraction = (hash % 1_000_003) as f64 / 1_000_003.0;
        let score = 0.3 / (index as f64 + 1.0 + fraction) * if hash & 64 == 0 { -1.0 } else { 1.0 };
        json!({ "writer": format!("head.{writer}.{}", (hash >> 12) % 9), "reader": reader, "score": score })
    };
    (0..count).map(edge).collect()
}

/// A run folder with so many circuits of so many edges.
fn made_run(folder: &Path, stops: usize, count: usize) {
    std::fs::create_dir_all(folder).unwrap();
    let config = "description = 'made'\nseed = 0\nmodel.path = 'models/SmolLM2.gguf'\n";
    std::fs::write(folder.join("config.toml"), config).unwrap();
    let inputs = json!({ "data.jsonl": "07", "models/SmolLM2.gguf": "f42a" });
    std::fs::write(folder.join("inputs.json"), inputs.to_string()).unwrap();
    let circuit = json!({ "provenance": provenance(), "edges": edges(count, 0) });
    std::fs::write(folder.join("circuit-before.json"), circuit.to_string()).unwrap();
    let lines = |line: &dyn Fn(usize) -> Value| -> String {
        (0..stops).map(|step| format!("{}\n", line(step))).collect()
    };
    let circuits = lines(&|step| json!({ "step": step, "edges": edges(count, step) }));
    std::fs::write(folder.join("circuits.jsonl"), circuits).unwrap();
    let log =
        lines(&|step| json!({ "step": step, "loss": 3.0 - step as f64 / 500.0, "metric": 1.0 }));
    std::fs::write(folder.join("log.jsonl"), log).unwrap();
}

/// A folder of a former version, whose scores are all zero.
fn zero_run(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.toml"), "description = 'zero'\n").unwrap();
    let readers = ["head.1.0.q", "head.1.0.k", "mlp.0", "logits"];
    let edges: Vec<Value> = (readers.iter())
        .map(|reader| json!({ "writer": "head.0.1", "reader": reader, "score": 0.0 }))
        .collect();
    let circuit = json!({ "edges": edges });
    std::fs::write(folder.join("circuit-before.json"), circuit.to_string()).unwrap();
}

/// A folder whose names, tokens and figures are markup.
fn markup_run(folder: &Path) {
    zero_run(folder);
    let config = toml::to_string(&json!({ "description": MARKUP, "task": { "name": MARKUP } }));
    std::fs::write(folder.join("config.toml"), config.unwrap()).unwrap();
    let lens = json!([{ "layer": null, "right": { "probability": 0.5, "rank": 1.0 }, "wrong": { "probability": 0.1, "rank": 2.0 } }]);
    let observed = json!({
        "heads": [], "nodes": [], "looks": [], "spans": {}, "movements": [],
        "examples": [{
            "origin": MARKUP, "tokens": [MARKUP, " <b>token</b>"], "spans": { MARKUP: [0] },
            "keys": [{ "position": 1, "right": [MARKUP], "wrong": ["</script>"], "lens": lens }],
        }],
    });
    std::fs::write(folder.join("observed-before.json"), observed.to_string()).unwrap();
    let summary = json!({
        "experiment": MARKUP, "before": { "<i>figure</i>": 1.0, MARKUP: "NaN" }, "after": { "<i>figure</i>": 2.0 },
        "task": MARKUP, "selector": MARKUP, "parameters": 10, "tuned_parameters": 1,
        "tuned_parameter_ratio": 0.1, "steps": 1, "discovery_seconds": 0.0, "tuning_seconds": 0.0, "seconds": 0.0,
    });
    std::fs::write(folder.join("summary.json"), summary.to_string()).unwrap();
}

/// The page of a folder.
fn page(folder: &Path, name: &str) -> String {
    succeeds(folder, &["report", name, "--out", &format!("{name}.html")]);
    std::fs::read_to_string(folder.join(format!("{name}.html"))).unwrap()
}

/// That a page asks for nothing: the one address in it names SVG's elements.
fn assert_offline(page: &str) {
    let addresses = page.replace("http://www.w3.org/2000/svg", "");
    for address in ["http://", "https://", "url(", "@import", "src=\"", "<link"] {
        assert!(!addresses.contains(address), "{address}");
    }
}

#[test]
fn a_run_ends_with_a_page_that_asks_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    real_run(folder.path());
    let own = std::fs::read_to_string(folder.path().join("run/report.html")).unwrap();
    assert_offline(&own);
    for part in [
        "logit_diff",
        "agreement.right_share",
        "random",
        "circuit-tuning run run/config.toml",
        "<svg",
    ] {
        assert!(own.contains(part), "{part}");
    }
    // It is made of the folder alone, and the same again.
    let again = page(folder.path(), "run");
    assert_eq!(own.len(), again.len());
    let observed = |when: &str| {
        crate::command_line::json(&folder.path().join(format!("run/observed-{when}.json")))
    };
    let (before, after) = (observed("before"), observed("after"));
    let examples = before["examples"].as_array().unwrap();
    assert_eq!(examples.len(), 12);
    assert_eq!(before["heads"], after["heads"]);
    for (name, pattern) in examples[0]["attention"].as_object().unwrap() {
        let tokens = examples[0]["tokens"].as_array().unwrap().len();
        let pattern = pattern.as_array().unwrap();
        assert_eq!(pattern.len(), tokens * (tokens + 1) / 2, "{name}");
        // Each query's weights add up to 1, which 255 stands for.
        let mut rest = &pattern[..];
        for query in 0..tokens {
            let (row, others) = rest.split_at(query + 1);
            let sum: u64 = row.iter().map(|weight| weight.as_u64().unwrap()).sum();
            assert!(sum.abs_diff(255) <= tokens as u64, "{name}: {sum}");
            rest = others;
        }
    }
    let moved = after["movements"].as_array().unwrap();
    assert!(moved.iter().any(|of| of["moved"].as_f64().unwrap() > 0.0));
    let shared = moved.iter().find(|of| of["owner"] == "shared").unwrap();
    assert_eq!(shared["moved"], 0.0, "no node's own rows stay as they were");
}

#[test]
fn what_is_looked_at_is_as_much_as_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let common = "tune --task agreement --set task.test_examples=10 --steps 1 --set discovery.bootstrap=0 --set discovery.examples=8";
    succeeds(folder.path(), &words(&format!("{common} --set report.examples=0 --out none")));
    assert!(!folder.path().join("none/observed-before.json").exists());
    succeeds(folder.path(), &words(&format!("{common} --set report.megabytes=0 --out small")));
    let small = crate::command_line::json(&folder.path().join("small/observed-before.json"));
    let examples = small["examples"].as_array().unwrap();
    assert_eq!(examples.len(), 10);
    assert!(examples.iter().all(|example| example.get("attention").is_none()));
}

#[test]
fn names_that_hold_markup_are_text() {
    let folder = tempfile::tempdir().unwrap();
    markup_run(&folder.path().join("markup"));
    let page = page(folder.path(), "markup");
    assert!(!page.contains("<img") && !page.contains("<i>figure") && !page.contains("<b>token"));
    assert!(page.contains("&lt;img src=x"));
    assert_eq!(page.matches("</script>").count(), 2, "of the data and of the script");
    assert_offline(&page);
}

#[test]
fn two_hundred_circuits_of_five_hundred_edges_are_below_8_megabytes() {
    let folder = tempfile::tempdir().unwrap();
    made_run(&folder.path().join("large"), 200, 500);
    let page = page(folder.path(), "large");
    assert!(page.len() < 8_000_000, "{}", page.len());
    assert!(
        page.contains("models/SmolLM2.gguf: llama, 30 layers of 9 heads, width 576, SHA-256 f42a")
    );
}

#[test]
fn runs_that_differ_by_their_seed_have_a_mean_with_its_interval() {
    let folder = tempfile::tempdir().unwrap();
    real_sweep(folder.path());
    let page = page(folder.path(), "sweep");
    let cells = |start: &str| -> Vec<&str> {
        let line = page.lines().find(|line| line.starts_with(start)).unwrap();
        line.split(['<', '>'])
            .filter(|part| !part.is_empty() && !part.starts_with(['t', '/']))
            .collect()
    };
    let losses = [0, 1].map(|seed| {
        let summary = folder.path().join(format!("sweep/nodes-seed{seed}/summary.json"));
        crate::command_line::json(&summary)["after"]["loss"].as_f64().unwrap()
    });
    // After `nodes`, `after` and the tuned share come the figures by name: `logit_diff`, `loss`.
    let after = cells("<tr><th scope=\"row\">nodes</th><td>after</td>");
    let (mean, margin) = after[4].split_once(" ± ").unwrap();
    let [mean, margin] = [mean, margin].map(|number| number.parse::<f64>().unwrap());
    assert!((mean - (losses[0] + losses[1]) / 2.0).abs() <= 0.5 * margin, "{mean} {losses:?}");
    // With one degree of freedom t is 12.7062, and s/√2 half the distance.
    let expected = 12.7062 * (losses[0] - losses[1]).abs() / 2.0;
    assert!((margin - expected).abs() <= 0.06 * expected, "{margin} {expected}");
    // A run alone has none.
    assert!(!cells("<tr><th scope=\"row\">nodes-seed0</th><td>after</td>")[4].contains('±'));
}

#[test]
fn folders_that_hold_no_run_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    refuses(folder.path(), &words("report ."), &["is no run folder"]);
    refuses(folder.path(), &words("report nowhere"), &["nowhere"]);
    zero_run(&folder.path().join("zero"));
    std::fs::write(folder.path().join("zero/log.jsonl"), "{\n").unwrap();
    refuses(folder.path(), &words("report zero"), &["log.jsonl:1"]);
}

/// Debian's program, or what CHROMIUM names.
fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    let path = named.unwrap_or_else(|| PathBuf::from("/usr/bin/chromium"));
    path.exists().then_some(path)
}

#[test]
#[ignore = "slow: starts a browser"]
fn the_page_works_in_a_browser() {
    let Some(chromium) = chromium() else {
        return skip("no chromium; install it, or name it with CHROMIUM").unwrap_or_default();
    };
    if !repository("report/node_modules/playwright-core").exists() {
        return skip("no playwright-core; run npm ci in report/").unwrap_or_default();
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    real_run(root);
    real_sweep(root);
    made_run(&root.join("large"), 200, 500);
    made_run(&root.join("huge"), 20, 3000);
    zero_run(&root.join("zero"));
    markup_run(&root.join("markup"));
    for name in ["run", "sweep", "large", "huge", "zero", "markup"] {
        page(root, name);
    }
    let status = Command::new("node")
        .args(["--test", "--test-reporter=spec", "tests/browser.mjs"])
        .current_dir(repository("report"))
        .env("PAGES", root)
        .env("CHROMIUM", chromium)
        .status()
        .unwrap();
    assert!(status.success());
}
