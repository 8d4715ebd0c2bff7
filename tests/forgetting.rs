//! Examples that are to be forgotten: training goes the other way on them, beside others that it keeps to; and how
//! fast a model learns what it has forgotten.

use circuit_framework::peers::Alone;
use circuit_framework::tuning::{Algorithm, Objective, Tuner, Tuning};
use circuit_framework::{Example, Model, ParamSelector, PatchingMetric, Tensor};
use proptest::prelude::*;

use crate::command_line::{json, refuses, succeeds, words};
use crate::support::{examples, few, geometries, plugin};

const OBJECTIVES: [Objective; 4] =
    [Objective::Standard, Objective::Weighted, Objective::Alone, Objective::Set];

/// How one step of plain gradient descent moves all weights.
fn movement(
    model: &dyn Model,
    examples: &[Example],
    metric: &str,
    objective: Objective,
) -> Vec<f64> {
    let metric: Box<dyn PatchingMetric> = plugin(metric, "");
    let selector: Box<dyn ParamSelector> = plugin("all", "");
    let tuning = Tuning {
        steps: Some(1),
        batch_size: examples.len(),
        objective,
        key_weight_p: 0.5,
        optimizer: Algorithm::Sgd,
        momentum: 0.0,
        lr: 0.01,
        ..Tuning::default()
    };
    let tuner = Tuner {
        model,
        metric: &*metric,
        selector: &*selector,
        discovery: &Default::default(),
        pruning: &Default::default(),
        tuning: &tuning,
        matched: None,
        seed: 0,
        peers: &Alone,
    };
    let values = || -> Vec<f64> {
        let of = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        model.parameters().iter().flat_map(|(_, parameter)| of(&parameter.tensor)).collect()
    };
    let _back = model.parameters().put_back_on_drop().unwrap();
    let before = values();
    tuner.run(examples, &mut |_| Ok(())).unwrap();
    values().iter().zip(before).map(|(after, before)| after - before).collect()
}

proptest! {
    #![proptest_config(few(16))]

    /// The step on examples to be forgotten is the step on the same examples the other way, and that on both kinds
    /// together lies between: the gradients of one loss whose terms have signs.
    #[test]
    fn training_goes_the_other_way_on_what_is_to_be_forgotten(
        geometry in geometries(), seed in any::<u64>(), examples in examples(2..4),
        objective in prop::sample::select(OBJECTIVES.to_vec()),
        metric in prop::sample::select(vec!["loss", "logit_diff"]),
    ) {
        let model = geometry.model_in_float64(seed);
        let marked = |forget: fn(usize) -> bool| -> Vec<Example> {
            let mark = |(index, example): (usize, &Example)| {
                Example { forget: forget(index), ..example.clone() }
            };
            examples.iter().enumerate().map(mark).collect()
        };
        let [retain, forget, first, rest]: [Vec<f64>; 4] =
            [|_| false, |_| true, |index| index == 0, |index| index != 0]
                .map(|which: fn(usize) -> bool| movement(&*model, &marked(which), metric, objective));
        let largest = retain.iter().fold(0f64, |most, value| most.max(value.abs()));
        prop_assert!(largest > 0.0);
        for (one, other) in [(&retain, &forget), (&first, &rest)] {
            for (one, other) in one.iter().zip(other) {
                prop_assert!((one + other).abs() <= 1e-9 * largest, "{one} {other} of {largest}");
            }
        }
        prop_assert!(first.iter().zip(&retain).any(|(one, all)| (one - all).abs() > 1e-6 * largest));
    }
}

/// The built-in model forgets a pronoun's gender and keeps two other abilities, one of which it isn't trained on;
/// it learns again from a few examples.
#[test]
fn one_task_is_forgotten_others_are_kept_and_the_first_is_learned_again() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let experiment = r#"
        metric = { name = "logit_diff" }
        selector = { name = "nodes" }
        [task]
        name = "mixture"
        tasks = [
            { name = "bias", role = "forget", test_examples = 40 },
            { name = "agreement", role = "retain", weight = 3, test_examples = 40 },
            { name = "ioi", role = "control", test_examples = 40 },
        ]
        [tuning]
        objective = "alone"
        steps = 24
        lr = 3e-3
        [discovery]
        bootstrap = 0
    "#;
    std::fs::write(here.join("forget.toml"), experiment).unwrap();
    succeeds(here, &words("run forget.toml --out run"));
    let summary = json(&here.join("run/summary.json"));
    let figure = |when: &str, name: &str| summary[when][name].as_f64().unwrap();
    assert!(figure("before", "bias.right_share") > 0.9);
    assert!(figure("after", "bias.right_share") < 0.6, "{summary}");
    assert!(figure("after", "agreement.right_share") > 0.9, "{summary}");
    assert!(summary["after"]["ioi.right_share"].is_number());

    let relearn = "relearn --model run/model --task bias --examples 0,8,64 --objective alone --lr 3e-3 \
                   --epochs 2 --set task.test_examples=40 --json";
    let curve: serde_json::Value = serde_json::from_str(&succeeds(here, &words(relearn))).unwrap();
    let share = |point: usize| curve[point]["figures"]["right_share"].as_f64().unwrap();
    assert_eq!(share(0), figure("after", "bias.right_share"));
    assert!(share(2) > share(0), "{curve}");
    assert_eq!(curve[2]["steps"], 8);
    // Every point is tuned from the same start.
    let alone = relearn.replace("0,8,64", "64");
    let alone: serde_json::Value = serde_json::from_str(&succeeds(here, &words(&alone))).unwrap();
    assert_eq!(alone[0], curve[2]);
    refuses(here, &words("relearn --examples 1,9999999"), &["9999999 examples", "gives"]);

    let mixture = |tasks: &str| format!("eval --task mixture --set task.tasks=[{tasks}]");
    for (tasks, part) in [
        ("{name='ioi',role='control'}", "all tasks are controls"),
        ("{name='ioi',role='control',weight=2},{name='bias'}", "leave its weight out"),
        ("{name='ioi',role='forgotten'}", "forget"),
    ] {
        refuses(here, &words(&mixture(tasks)), &[part]);
    }
}
