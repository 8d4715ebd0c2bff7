//! Scores by example, and the bootstrap that is made of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use circuit_framework::attribution::{
    Ablation, AttributionMethod, Discovered, Discovery, EdgeOrder, MethodChoice, Positions, Run,
    Scoring, discover, discover_by_example,
};
use circuit_framework::evaluation::task::{Setting, Split};
use circuit_framework::peers::Alone;
use circuit_framework::plugin::registry;
use circuit_framework::{
    Batch, Dataset, Example, Model, PatchingMetric, Result, Scores, Task, progress, register,
};
use circuit_models::Loaded;
use proptest::prelude::*;

use crate::command_line::{json, refuses, succeeds, words};
use crate::support::{at, examples, few, geometries, load, plugin};

/// Examples' own scores, each by edge.
type ByExample = Vec<Vec<f64>>;

pub fn by_example(
    model: &dyn Model,
    examples: &[Example],
    metric: &dyn PatchingMetric,
    options: &Discovery,
) -> (Discovered, bool, ByExample) {
    let all: Vec<&Example> = examples.iter().collect();
    let edges = model.graph().subset(&options.nodes).edge_count();
    let taken = RefCell::new(vec![Vec::new(); examples.len()]);
    let take = |examples: &[usize], scores: &[f64]| {
        assert_eq!(scores.len(), examples.len() * edges);
        for (&example, scores) in examples.iter().zip(scores.chunks(edges)) {
            assert!(taken.borrow()[example].is_empty(), "example {example} is scored twice");
            taken.borrow_mut()[example] = scores.to_vec();
        }
        Ok(())
    };
    let (found, is_sum) =
        discover_by_example(model, &all, metric, options, (&Alone, &progress::silent), &take)
            .unwrap();
    (found, is_sum, taken.into_inner())
}

/// The built-in model and sentences of its grammar.
pub fn sentences(options: &str, seed: u64, counterfactuals: bool) -> (Loaded, Box<dyn Dataset>) {
    let model = load(at(Path::new("embedded")));
    let task: Box<dyn Task> = plugin("agreement", options);
    let setting = Setting {
        tokenizer: model.tokenizer.as_ref(),
        context: model.model.context(),
        seed,
        counterfactuals,
    };
    let data = task.load(Split::Train, &setting).unwrap();
    (model, data)
}

fn bits(scores: &Scores) -> Vec<u32> {
    scores.values.iter().map(|score| score.to_bits()).collect()
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |largest, value| largest.max(value.abs()))
}

const ABLATIONS: [Ablation; 4] =
    [Ablation::Mean, Ablation::MeanPositional, Ablation::Zero, Ablation::Corrupt];

proptest! {
    #![proptest_config(few(10))]

    /// For every registered method: they are terms of the scores, which are to the very bits what they are
    /// without; and they are the same in batches of one, each its own example's.
    #[test]
    fn scores_by_example_are_the_scores_terms(
        geometry in geometries(),
        examples in examples(3..6),
        ablation in prop::sample::select(ABLATIONS.to_vec()),
        positions in prop::sample::select(vec![Positions::Key, Positions::All]),
        metric in prop::sample::select(vec!["logit_diff", "log_prob_diff", "loss"]),
    ) {
        let model = geometry.model_in_float64(1);
        let metric: Box<dyn PatchingMetric> = plugin(metric, "");
        for method in registry::all::<dyn AttributionMethod>().unwrap() {
            if method.name == "sizes" {
                continue;
            }
            let needs = method.build(&toml::Table::new()).unwrap().needs();
            let positions = if needs.all_positions { Positions::All } else { positions };
            let options = Discovery {
                method: MethodChoice::named(method.name),
                ablation,
                positions,
                ig_steps: 2,
                batch_size: 2,
                ..Discovery::default()
            };
            let (found, is_sum, terms) = by_example(&*model, &examples, &*metric, &options);
            let all: Vec<&Example> = examples.iter().collect();
            let plain = discover(&*model, &all, &*metric, &options, &Alone, &progress::silent).unwrap();
            prop_assert_eq!(bits(&plain.scores), bits(&found.scores), "{}", method.name);
            prop_assert!(is_sum, "{}", method.name);

            let graph = &found.scores.graph;
            let order = EdgeOrder::of(graph);
            // In float64 every product is exact to 1e-16 of what it is of; a mean that is taken off can
            // leave less than was there.
            let scale = largest(terms.iter().flatten().copied()).max(1e-6);
            for (writer, reader) in graph.edges() {
                let place = order.place(writer, reader);
                let sum: f64 = terms.iter().map(|scores| scores[place]).sum();
                let score = f64::from(found.scores.of(writer, reader));
                let rounding = score.abs() * f64::from(f32::EPSILON) + 1e-9 * scale;
                prop_assert!((sum - score).abs() <= rounding, "{}: {sum} for {score}", method.name);
            }

            let singly = Discovery { batch_size: 1, ..options };
            let (_, _, single) = by_example(&*model, &examples, &*metric, &singly);
            for (a, b) in terms.iter().flatten().zip(single.iter().flatten()) {
                prop_assert!((a - b).abs() <= 1e-9 * scale, "{}: {a} and {b}", method.name);
            }
        }
    }

    /// Where no mean joins examples, an example's own score is the score on it alone, times its share of
    /// the metric's weight.
    #[test]
    fn an_examples_own_score_is_its_score_alone(
        geometry in geometries(),
        examples in examples(2..5),
        ablation in prop::sample::select(vec![Ablation::Zero, Ablation::Corrupt]),
        positions in prop::sample::select(vec![Positions::Key, Positions::All]),
        method in prop::sample::select(vec!["eap", "eap-ig", "eap-ig-activations", "clean-corrupted", "relp"]),
        metric in prop::sample::select(vec!["logit_diff", "loss"]),
    ) {
        let model = geometry.model_in_float64(2);
        let metric: Box<dyn PatchingMetric> = plugin(metric, "");
        let method = MethodChoice::named(method);
        let options = Discovery { method, ablation, positions, ig_steps: 2, ..Discovery::default() };
        let (found, _, terms) = by_example(&*model, &examples, &*metric, &options);
        let graph = &found.scores.graph;
        let order = EdgeOrder::of(graph);
        let weight: f64 = examples.iter().map(|example| metric.weight(example)).sum();
        let scale = largest(terms.iter().flatten().copied()).max(1e-6);
        for (example, terms) in examples.iter().zip(&terms) {
            let alone = discover(&*model, &[example], &*metric, &options, &Alone, &progress::silent).unwrap();
            let share = metric.weight(example) / weight;
            for (writer, reader) in graph.edges() {
                let expected = share * f64::from(alone.scores.of(writer, reader));
                let own = terms[order.place(writer, reader)];
                // The score alone was rounded to float32.
                let rounding = expected.abs() * f64::from(f32::EPSILON) + 1e-9 * scale;
                prop_assert!((own - expected).abs() <= rounding, "{own} for {expected}");
            }
        }
    }
}

/// A method that is no sum over examples: EAP's scores without their sign.
#[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Sizes {}

impl AttributionMethod for Sizes {
    fn add(&self, scoring: &mut Scoring, batch: &Batch) -> Result<Option<Run>> {
        plugin::<dyn AttributionMethod>("eap", "").add(scoring, batch)
    }

    fn finish(&self, scoring: Scoring, _: &[Vec<&Example>]) -> Result<Discovered> {
        let mut found = scoring.finish()?;
        found.scores.values = found.scores.magnitudes();
        Ok(found)
    }
}

register!(dyn AttributionMethod, Sizes, "sizes", "EAP's scores without their sign");

#[test]
fn a_method_that_is_no_sum_over_examples_is_told() {
    let (model, data) = sentences("train_examples = 8", 0, false);
    let metric: Box<dyn PatchingMetric> = plugin("logit_diff", "");
    for (name, expected) in [("eap", true), ("sizes", false)] {
        let options = Discovery { method: MethodChoice::named(name), ..Discovery::default() };
        let (_, is_sum, _) = by_example(&*model.model, data.examples(), &*metric, &options);
        assert_eq!(is_sum, expected, "{name}");
    }
}

const SMALL: &str = "--set task.train_examples=40 --top-n 25";

fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

/// The files say what a bootstrap said, and are without one what they were.
#[test]
fn files_and_table_say_how_sure_an_edge_is() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let discover = |name: &str, more: &str| {
        let files = format!("--scores {name}.safetensors --circuit {name}.json --table {name}.csv");
        succeeds(here, &words(&format!("discover {SMALL} {files} {more}")))
    };
    let read = |file: &str| std::fs::read(here.join(file)).unwrap();
    discover("plain", "");
    discover("none", "--bootstrap 0");
    assert_eq!(read("plain.safetensors"), read("none.safetensors"));
    assert_eq!(read("plain.json"), read("none.json"));
    assert_eq!(
        tensors(&here.join("plain.safetensors")).into_keys().collect::<Vec<_>>(),
        ["scores"]
    );
    assert!(!String::from_utf8(read("plain.json")).unwrap().contains("resample"));

    let shown = discover("sure", "--bootstrap 50 --per-example each.safetensors");
    let found = tensors(&here.join("sure.safetensors"));
    let matrix = |name: &str| found[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let plain = &tensors(&here.join("plain.safetensors"))["scores"];
    assert_eq!(matrix("scores"), plain.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    // A circuit of 25 edges is cut from each of the resamples.
    let shares: f32 = matrix("resample_share").iter().sum();
    assert!((shares - 25.0).abs() < 1e-3, "{shares}");

    let circuit = json(&here.join("sure.json"));
    let overlap = circuit["bootstrap"]["overlap"].as_f64().unwrap();
    assert_eq!(circuit["bootstrap"]["resamples"], 50);
    assert!(overlap > 0.0 && overlap <= 1.0);
    assert!(shown.contains(&format!("overlap  {overlap:.4}")), "{shown}");

    let table = String::from_utf8(read("sure.csv")).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
    let edges = circuit["edges"].as_array().unwrap();
    for row in &rows[1..] {
        let own: Vec<f32> = row[4..6].iter().map(|cell| cell.parse().unwrap()).collect();
        assert!(own[0] >= 0.0 && (0.0..=1.0).contains(&own[1]), "{row:?}");
        if let Some(edge) = edges.iter().find(|e| e["writer"] == row[0] && e["reader"] == row[1]) {
            assert_eq!(edge["standard_error"].as_f64().unwrap() as f32, own[0]);
            assert_eq!(edge["resample_share"].as_f64().unwrap() as f32, own[1]);
        }
    }
    let plain = String::from_utf8(read("plain.csv")).unwrap();
    assert_eq!(plain.lines().next(), table.lines().next());
    assert!(plain.lines().skip(1).all(|line| line.contains(",,,")));

    // The examples' own scores add up, and their spread is the standard error.
    let each = &tensors(&here.join("each.safetensors"))["scores"];
    assert_eq!(each.dims()[0], 40);
    let each = each.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
    let scores = matrix("scores");
    let scale = largest(scores.iter().map(|&score| f64::from(score)));
    let mut ratios = Vec::new();
    for (place, error) in matrix("standard_error").into_iter().enumerate() {
        let own: Vec<f64> = each.iter().map(|scores| f64::from(scores[place])).collect();
        let sum: f64 = own.iter().sum();
        assert!((sum - f64::from(scores[place])).abs() < 1e-5 * scale, "{sum} {}", scores[place]);
        let spread: f64 = own.iter().map(|term| (term - sum / 40.0).powi(2)).sum::<f64>().sqrt();
        if error > 0.0 {
            ratios.push(f64::from(error) / spread);
        }
    }
    // Of 50 resamples a standard deviation is known to a tenth.
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    assert!((mean - 1.0).abs() < 0.1, "{mean}");
    assert!(ratios.iter().all(|ratio| (0.5..1.6).contains(ratio)), "{ratios:?}");
}

/// A run's circuits are resampled unless it is told otherwise, and its summary says how they hold.
#[test]
fn a_run_says_how_sure_its_circuits_are() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let line = "tune --steps 1 --set task.train_examples=40 --set task.test_examples=8 --top-n 25";
    succeeds(here, &words(&format!("{line} --out sure")));
    succeeds(here, &words(&format!("{line} --set discovery.bootstrap=0 --out plain")));
    let summary = json(&here.join("sure/summary.json"));
    for when in ["before", "after"] {
        let circuit = json(&here.join(format!("sure/circuit-{when}.json")));
        assert_eq!(circuit["bootstrap"], summary[format!("bootstrap_{when}")]);
        assert_eq!(circuit["bootstrap"]["resamples"], 200);
        assert!(circuit["edges"][0]["standard_error"].is_number());
        let plain = json(&here.join(format!("plain/circuit-{when}.json")));
        assert!(
            plain.get("bootstrap").is_none() && plain["edges"][0].get("resample_share").is_none()
        );
    }
    let plain = json(&here.join("plain/summary.json"));
    assert!(plain.get("bootstrap_before").is_none());
    assert_eq!(plain["after"], summary["after"]);
}

#[test]
fn no_spread_and_no_end_of_resamples_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    refuses(
        here,
        &words("discover --bootstrap 1"),
        &["discovery.bootstrap is 1", "give 2 or more"],
    );
    let many = words("discover --bootstrap 1000000000");
    refuses(here, &many, &["1000000000", "GiB", "give at most"]);
    let line = "discover --bootstrap 9 --set discovery.examples=1 --circuit c.json";
    succeeds(here, &words(line));
    assert!(json(&here.join("c.json")).get("bootstrap").is_none());
}

/// On one thread or three, and in whatever batches but for rounding.
#[test]
fn a_bootstrap_is_the_same_bits_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let discover = |threads: &str, more: &[&str]| {
        let out = folder.path().join(format!("{threads}{}.safetensors", more.concat()));
        let each = out.with_extension("each");
        let line =
            "discover --set task.train_examples=48 --positions all --bootstrap 30 --top-n 40";
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_circuit-tuning"))
            .args(words(line))
            .args(more)
            .arg("--scores")
            .arg(&out)
            .arg("--per-example")
            .arg(&each)
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (std::fs::read(&out).unwrap(), std::fs::read(&each).unwrap(), tensors(&out))
    };
    let one = discover("1", &[]);
    let three = discover("3", &[]);
    assert!(one.0 == three.0, "the scores' files differ");
    assert!(one.1 == three.1, "the examples' scores' files differ");
    let batches = discover("3", &["--batch-size", "5"]);
    for (name, tolerance) in [("standard_error", 1e-4), ("resample_share", 0.05)] {
        let values = |of: &BTreeMap<String, Tensor>| {
            of[name].flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (a, b) = (values(&one.2), values(&batches.2));
        let scale = largest(a.iter().map(|&value| f64::from(value)));
        for (a, b) in a.iter().zip(&b) {
            assert!(f64::from((a - b).abs()) <= tolerance * scale, "{name}: {a} and {b}");
        }
    }
}
