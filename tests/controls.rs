//! Controls: matched to the circuit's run step by step, tuned with every seed, and summed up with intervals.

use std::collections::BTreeMap;
use std::path::Path;

use circuit_framework::attribution::Discovery;
use circuit_framework::graph::{Kind, Port};
use circuit_framework::peers::Alone;
use circuit_framework::run::experiment::Experiment;
use circuit_framework::tuning::{DiscoveredAt, Event, Matched, Step, Tuned, Tuner, Tuning};
use circuit_framework::{
    Circuit, Example, Model, Owner, ParamSelector, PatchingMetric, Pruning, Selection,
};
use proptest::prelude::*;
use serde_json::Value;

use crate::command_line::{json, program, refuses, succeeds, words};
use crate::properties::geometry_with_edges;
use crate::support::{examples, few, plugin};

/// Tunes for a few steps, discovering at each where nothing is matched; what each step did, and the circuits.
fn tune(
    model: &dyn Model,
    examples: &[Example],
    selector: &dyn ParamSelector,
    matched: Option<&Matched>,
    seed: u64,
) -> (Tuned, Vec<Step>, Vec<DiscoveredAt>) {
    let metric: Box<dyn PatchingMetric> = plugin("logit_diff", "");
    let edges = 3.min(model.graph().edge_count());
    let tuner = Tuner {
        model,
        metric: &*metric,
        selector,
        discovery: &Discovery::default(),
        pruning: &Pruning { top_n: Some(edges), ..Pruning::default() },
        tuning: &Tuning { steps: Some(4), batch_size: 2, lr: 0.05, ..Tuning::default() },
        matched,
        seed,
        peers: &Alone,
    };
    let (mut steps, mut circuits) = (Vec::new(), Vec::new());
    let tuned = tuner.run(examples, &mut |event| {
        match event {
            Event::Circuit { step, circuit, nodes } => circuits.push(DiscoveredAt {
                step,
                edges: circuit.edges.clone(),
                nodes: Some(nodes.clone()),
            }),
            Event::Step { step, .. } => steps.push(step.clone()),
            Event::Adapters { .. } => {}
        }
        Ok(())
    });
    (tuned.unwrap(), steps, circuits)
}

/// How many rows of each kind, layer and port are selected.
fn sorts(
    selection: &Selection,
    model: &dyn Model,
) -> BTreeMap<(Kind, Option<usize>, Option<Port>), usize> {
    let mut sorts = BTreeMap::new();
    for (id, parameter) in model.parameters().iter() {
        for row in selection.ranges(id).iter().cloned().flatten() {
            let block = parameter.blocks.iter().find(|block| block.rows.contains(&row)).unwrap();
            let sort = match block.owner {
                Owner::Writer(node) => (node.kind(), node.layer(), None),
                Owner::Reader(input) => (input.node.kind(), input.node.layer(), Some(input.port)),
                Owner::Shared => panic!("row {row} of {} is no node's", parameter.name),
            };
            *sorts.entry(sort).or_default() += parameter.width();
        }
    }
    sorts
}

proptest! {
    #![proptest_config(few(24))]

    /// At every step, and over all steps together, a control tunes as many parameters as the circuit it is
    /// matched to; `random` as many of each kind in each layer; `complement` less than a row fewer; `static` what
    /// the circuit's run tunes at its first step.
    #[test]
    fn controls_are_matched_at_every_step(
        geometry in geometry_with_edges(),
        examples in examples(3..6),
        selector in prop::sample::select(vec!["nodes", "modules"]),
        seed in any::<u64>(),
    ) {
        let selector: Box<dyn ParamSelector> = plugin(selector, "");
        let model = geometry.model(2);
        let untuned = model.parameters().snapshot().unwrap();
        let (own, own_steps, circuits) = tune(&*model, &examples, &*selector, None, seed);
        prop_assert_eq!(circuits.len(), 4);
        let circuits_first = circuits[0].edges.clone();
        let matched = Matched { selector: &*selector, circuits };
        let widest = model.parameters().iter().map(|(_, p)| p.width()).max().unwrap();
        let first = Circuit { edges: circuits_first };
        let first = selector.select(&first, &*model, seed).unwrap();
        let counts = |steps: &[Step]| -> Vec<usize> {
            steps.iter().map(|step| step.tuned_parameters).collect()
        };
        for kind in ["random", "random_parameters", "complement", "static"] {
            let control: Box<dyn ParamSelector> = plugin(kind, "");
            let again = || {
                model.parameters().restore(&untuned).unwrap();
                tune(&*model, &examples, &*control, Some(&matched), seed)
            };
            let (tuned, steps, discovered) = again();
            prop_assert!(discovered.is_empty());
            prop_assert!(again().0.tuned == tuned.tuned, "{}: another selection", kind);
            if kind == "static" {
                prop_assert!(tuned.tuned == first);
                prop_assert_eq!(counts(&steps), vec![own_steps[0].tuned_parameters; 4]);
            } else if kind == "complement" {
                for (step, own) in counts(&steps).iter().zip(counts(&own_steps)) {
                    let near = own.saturating_sub(*step) < widest;
                    prop_assert!(*step <= own && near, "{} of {}", step, own);
                }
            } else {
                prop_assert_eq!(counts(&steps), counts(&own_steps), "{}", kind);
                prop_assert_eq!(tuned.tuned_parameters, own.tuned_parameters, "{}", kind);
            }
            if kind == "random" {
                prop_assert_eq!(sorts(&tuned.tuned, &*model), sorts(&own.tuned, &*model));
            }
        }
    }
}

/// Another seed draws other nodes and rows, and the complement takes what scores lowest first.
#[test]
fn seeds_draw_and_the_complement_begins_at_the_lowest_score() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    write_experiment(here);
    succeeds(here, &words("run mine.toml --out out"));
    let tuned = |path: &str| -> Vec<u64> {
        let text = std::fs::read_to_string(here.join("out").join(path)).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| line["tuned_parameters"].as_u64().unwrap()).collect()
    };
    let own = tuned("log.jsonl");
    assert!(own.windows(2).any(|steps| steps[0] != steps[1]), "the circuit never changes: {own:?}");
    for kind in ["random", "complement"] {
        for (seed, circuit) in [(3, own.clone()), (4, tuned("controls/seed-4/circuit/log.jsonl"))] {
            let control = tuned(&format!("controls/seed-{seed}/{kind}/log.jsonl"));
            assert_eq!(control.len(), circuit.len());
            for (control, circuit) in control.into_iter().zip(circuit) {
                let apart = control.abs_diff(circuit) as f64;
                assert!(apart <= 0.01 * circuit as f64, "{kind}: {control} for {circuit}");
            }
        }
    }
    // The nodes that score lowest are not the circuit's.
    let text = std::fs::read_to_string(here.join("out/circuits.jsonl")).unwrap();
    let first: DiscoveredAt = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let nodes = first.nodes.unwrap();
    let best = first.edges[0].writer;
    let lowest = nodes.writers.iter().min_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    assert!(nodes.writers[&best] > nodes.writers[lowest]);
    assert!(first.edges.iter().all(|edge| edge.writer != *lowest));
}

/// Two kinds, two seeds, a side task.
fn write_experiment(folder: &Path) {
    let text = "the keys to the cabinet are old . the key to the cabinets is old .\n";
    std::fs::write(folder.join("text.txt"), text.repeat(8)).unwrap();
    let experiment = r#"
        seed = 3
        evaluate = [{ name = "perplexity", data = "text.txt" }]
        [model]
        path = "embedded"
        mlp_head_width = 32
        [task]
        name = "agreement"
        direction = "disagreement"
        train_examples = 64
        test_examples = 32
        [discovery]
        nodes = ["head", "mlp"]
        [pruning]
        top_n = 20
        [controls]
        kinds = ["random", { name = "complement" }]
        seeds = [3, 4]
        [tuning]
        steps = 6
        lr = 1e-2
        rediscover_every = 2
    "#;
    std::fs::write(folder.join("mine.toml"), experiment).unwrap();
}

#[test]
fn a_summary_has_every_seed_the_means_their_intervals_and_the_paired_differences() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    write_experiment(here);
    let shown = succeeds(here, &words("run mine.toml --out out"));
    let summary = json(&here.join("out/summary.json"));
    let controls = &summary["controls"];
    assert_eq!(controls["seeds"], serde_json::json!([3, 4]));
    let figure = |table: &Value, name: &str| table[name].as_f64().unwrap();
    // What stands outside is the first seed's.
    let names = ["logit_diff", "right_share", "perplexity.perplexity"];
    for name in names {
        assert_eq!(controls["before"]["repeats"][0][name], summary["before"][name]);
        assert_eq!(controls["circuit"]["after"]["repeats"][0][name], summary["after"][name]);
    }
    // With one degree of freedom t is 12.7062, and s/√2 half the distance.
    let check = |estimate: &Value, name: &str| {
        let [a, b] = [0, 1].map(|seed| figure(&estimate["repeats"][seed], name));
        let (mean, margin) = (figure(&estimate["mean"], name), figure(&estimate["margin"], name));
        assert!((mean - (a + b) / 2.0).abs() <= 1e-12 * mean.abs(), "{name}: {mean}");
        let expected = 12.706_204_736 * (a - b).abs() / 2.0;
        assert!((margin - expected).abs() <= 1e-6 * (1.0 + expected), "{name}: {margin}");
    };
    let kinds = controls["kinds"].as_array().unwrap();
    let of: Vec<&str> = kinds.iter().map(|control| control["kind"].as_str().unwrap()).collect();
    assert_eq!(of, ["random", "complement"]);
    for name in names {
        check(&controls["before"], name);
        check(&controls["circuit"]["after"], name);
        for control in kinds {
            check(&control["after"], name);
            check(&control["difference"], name);
            for seed in 0..2 {
                let difference = figure(&control["after"]["repeats"][seed], name)
                    - figure(&controls["circuit"]["after"]["repeats"][seed], name);
                assert_eq!(figure(&control["difference"]["repeats"][seed], name), difference);
            }
        }
    }
    // Data are generated anew with each seed.
    let before = &controls["before"]["repeats"];
    assert_ne!(before[0]["logit_diff"], before[1]["logit_diff"]);
    assert_eq!(kinds[0]["tuned_parameters"], controls["circuit"]["tuned_parameters"]);
    assert_eq!(controls["circuit"]["tuned_parameters"][0], summary["tuned_parameters"]);

    for part in [
        "±",
        "complement",
        "less the circuit with the same seed",
        "seeds 3, 4",
        "perplexity.perplexity",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let table = succeeds(here, &words("compare out --json rows.json"));
    let rows = json(&here.join("rows.json"));
    let rows = rows.as_array().unwrap();
    let of: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(of, ["untuned", "out", "out, random", "out, complement"]);
    assert_eq!(rows[2]["margins"], kinds[0]["after"]["margin"]);
    assert_eq!(
        table.matches('±').count(),
        4 * kinds[0]["after"]["mean"].as_object().unwrap().len()
    );
    let same = succeeds(here, &words("run --resume out"));
    assert!(same.contains("less the circuit"), "{same}");
}

#[test]
fn full_fine_tuning_and_adapters_are_controls_too() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    write_experiment(here);
    let kinds = "controls.kinds=['all',{name='lora',rank=2},{name='lora',rank=4}]";
    let line = format!("run mine.toml --out out --set {kinds} --set controls.seeds=1");
    let shown = succeeds(here, &words(&line));
    assert!(!shown.contains('±'), "{shown}");
    let summary = json(&here.join("out/summary.json"));
    let kinds = summary["controls"]["kinds"].as_array().unwrap();
    let of: Vec<&str> = kinds.iter().map(|control| control["kind"].as_str().unwrap()).collect();
    assert_eq!(of, ["all", "lora", "lora-2"]);
    assert_eq!(kinds[0]["tuned_parameter_ratio"], 1.0);
    assert!(here.join("out/controls/seed-3/lora-2/adapter").exists());
    assert!(kinds[0]["after"]["margin"].as_object().unwrap().is_empty());
}

#[test]
fn a_former_control_is_read_with_a_note_and_what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let line = "tune --steps 1 --set task.train_examples=16 --set task.test_examples=8 --top-n 20";
    let output = program(here, &words(&format!("{line} --set control.name=random --out former")));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("[control] is now controls.kinds = [\"random\"]"), "{said}");
    let config = std::fs::read_to_string(here.join("former/config.toml")).unwrap();
    let config: Experiment = toml::from_str(&config).unwrap();
    assert_eq!(config.controls.kinds[0].name, "random");

    let refused = |rest: &str, parts: &[&str]| {
        refuses(here, &words(&format!("{line} --out out {rest}")), parts);
        assert!(!here.join("out").exists(), "something was written");
    };
    refused(
        "--set control.name=random --set controls.seeds=2",
        &["[controls] and its former name [control]", "controls.kinds = [\"random\"]"],
    );
    refused("--selector complement", &["`complement` is a control", "controls.kinds"]);
    refused("--selector static", &["`static` is a control", "controls.kinds"]);
    refused(
        "--selector all --set controls.kinds=complement",
        &["control `complement` needs the scores of all nodes", "selector `all`"],
    );
    refused("--set controls.seeds=0", &["controls.seeds is 0"]);
    refused("--set controls.kinds=randm", &["there is no selector `randm`", "random"]);
    refused("--set controls.kinds=[3]", &["a selector's name, or a table"]);
}
