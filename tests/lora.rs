//! Low-rank adapters: their gradients, their file layout, and that merging changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use candle_core::DType;
use circuit_framework::lora::{Adapters, Training};
use circuit_framework::ops::cross_entropy::Target;
use circuit_framework::pass::scalar;
use circuit_framework::tuning::gradients::Gradients;
use circuit_framework::{
    Batch, Circuit, Example, Lora, Model, ParamSelector, Pass, Selection, Tensor,
    plugin::conformance,
};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::command_line::{json, refuses, succeeds, words};
use crate::support::{Family, Geometry, examples, few, geometries, load, plugin};

/// Adapters on every projection, B drawn too, so that they do something.
fn adapters(model: &dyn Model, dropout: f64, seed: u64) -> Arc<Adapters> {
    let everything = Selection::blocks(model.parameters(), |_, _| true);
    let lora = Lora { rank: 2, alpha: 3.0, dropout, layers: Vec::new() };
    let adapters =
        Adapters::new(model.parameters(), model.projections(), &everything, lora, seed).unwrap();
    for (index, (_, parameter)) in adapters.parameters().iter().enumerate() {
        let values: Vec<f64> = (0..parameter.tensor.elem_count())
            .map(|entry| 0.5 * ((entry * 7 + index * 3 + seed as usize % 5) as f64).sin())
            .collect();
        let values = Tensor::from_vec(values, parameter.tensor.shape(), &model.device()).unwrap();
        parameter
            .tensor
            .slice_set(&values.to_dtype(parameter.tensor.dtype()).unwrap(), 0, 0)
            .unwrap();
    }
    Arc::new(adapters)
}

/// The same dropout every time.
fn training(adapters: &Arc<Adapters>) -> Option<Training> {
    let random = Arc::new(Mutex::new(ChaCha8Rng::seed_from_u64(3)));
    Some(Training { adapters: adapters.clone(), random })
}

/// The summed loss of all predicted tokens.
fn loss(model: &dyn Model, pass: &Pass, batch: &Batch) -> Tensor {
    let readout = model.forward(pass, &batch.tokens).unwrap();
    let (rows, targets) = (batch.predicted())
        .map(|(example, position, row)| {
            let token = batch.examples[example].tokens[position];
            (row, Target { token, weight: 1.0 })
        })
        .unzip::<_, _, Vec<_>, Vec<_>>();
    readout.cross_entropy(&rows, targets).unwrap()
}

fn batch<'a>(model: &dyn Model, examples: &'a [Example]) -> Batch<'a> {
    Batch::new(examples.iter().collect(), &model.device()).unwrap()
}

proptest! {
    #![proptest_config(few(24))]

    #[test]
    fn gradients_agree_with_central_differences(
        geometry in geometries(),
        seed in any::<u64>(),
        examples in examples(1..3),
        with_dropout in any::<bool>(),
    ) {
        let model = geometry.model_in_float64(seed);
        let adapters = adapters(&*model, if with_dropout { 0.3 } else { 0.0 }, seed);
        let batch = batch(&*model, &examples);
        let pass = Pass::with_gradients(&model.device()).unwrap().with_adapters(training(&adapters));
        let parameters = adapters.parameters();
        let mut gradients =
            Gradients::new(parameters, Selection::blocks(parameters, |_, _| true));
        let loss_of_pass = loss(&*model, &pass, &batch);
        pass.backward(&loss_of_pass, &mut |left| gradients.accumulate_adapters(&left)).unwrap();
        let refused = model.forward(&pass.with_checkpoints(true), &batch.tokens).err();
        prop_assert!(refused.is_some_and(|error| error.to_string().contains("LoRA")));
        let value = || {
            let pass = Pass::forward_only().with_adapters(training(&adapters));
            scalar(&loss(&*model, &pass, &batch)).unwrap()
        };
        for (id, parameter) in parameters.iter() {
            let entry = seed as usize % parameter.tensor.elem_count();
            let expected =
                conformance::central_difference(&parameter.tensor, entry, || Ok(value())).unwrap();
            let gradient = gradients.get(id).unwrap().flatten_all().unwrap();
            let got = gradient.to_vec1::<f64>().unwrap()[entry];
            prop_assert!(
                (got - expected).abs() <= 1e-5 * (1.0 + expected.abs()),
                "{}: {got}, not {expected}", parameter.name
            );
        }
    }

    #[test]
    fn saved_loaded_and_merged_adapters_give_the_adapters_logits(
        geometry in geometries(),
        seed in any::<u64>(),
        examples in examples(1..3),
    ) {
        let model = geometry.model_in_float64(seed);
        let adapters = adapters(&*model, 0.0, seed);
        let batch = batch(&*model, &examples);
        let logits = |pass: &Pass| -> Vec<f64> {
            let rows: Vec<u32> = batch.predicted().map(|(_, _, row)| row).collect();
            let readout = model.forward(pass, &batch.tokens).unwrap();
            readout.logits(&rows).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let plain = logits(&Pass::forward_only());
        let beside = logits(&Pass::forward_only().with_adapters(training(&adapters)));
        prop_assert_ne!(&plain, &beside);
        let folder = tempfile::tempdir().unwrap();
        adapters.save(&folder.path().join("adapter"), None).unwrap();
        let loaded = Adapters::load(&folder.path().join("adapter"), model.parameters(), model.projections()).unwrap();
        let merged = loaded
            .while_merged(model.parameters(), || Ok(logits(&Pass::forward_only())))
            .unwrap();
        // Adapters are saved in float32.
        let near = beside.iter().zip(&merged).all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + a.abs()));
        prop_assert!(near, "{beside:?} {merged:?}");
        prop_assert_eq!(plain, logits(&Pass::forward_only()));
    }
}

/// PEFT's documented layout: `base_model.model.` before the module's name, A [rank, in], B [out,
/// rank], and the settings under its names.
#[test]
fn adapters_are_saved_in_the_layout_of_peft() {
    let llama = Geometry {
        family: Family::Llama,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        d_head: 4,
        mlp_heads: 3,
        split_mlp: false,
        tied: true,
    };
    let gpt2 = Geometry { family: Family::Gpt2, kv_heads: 2, ..llama.clone() };
    let gpt_neox = Geometry { family: Family::GptNeox, kv_heads: 2, ..llama.clone() };
    let llama_shapes = [
        ("model.layers.0.mlp.down_proj", [12, 8]),
        ("model.layers.0.mlp.gate_proj", [8, 12]),
        ("model.layers.0.mlp.up_proj", [8, 12]),
        ("model.layers.0.self_attn.k_proj", [8, 4]),
        ("model.layers.0.self_attn.o_proj", [8, 8]),
        ("model.layers.0.self_attn.q_proj", [8, 8]),
        ("model.layers.0.self_attn.v_proj", [8, 4]),
    ];
    let gpt2_shapes = [
        ("transformer.h.0.attn.c_attn", [8, 24]),
        ("transformer.h.0.attn.c_proj", [8, 8]),
        ("transformer.h.0.mlp.c_fc", [8, 12]),
        ("transformer.h.0.mlp.c_proj", [12, 8]),
    ];
    let gpt_neox_shapes = [
        ("gpt_neox.layers.0.attention.dense", [8, 8]),
        ("gpt_neox.layers.0.attention.query_key_value", [8, 24]),
        ("gpt_neox.layers.0.mlp.dense_4h_to_h", [12, 8]),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h", [8, 12]),
    ];
    for (geometry, shapes) in
        [(llama, &llama_shapes[..]), (gpt2, &gpt2_shapes[..]), (gpt_neox, &gpt_neox_shapes[..])]
    {
        let model = geometry.model(0);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter");
        adapters(&*model, 0.25, 1).save(&path, None).unwrap();
        let saved =
            candle_core::safetensors::load(path.join("adapter_model.safetensors"), &model.device())
                .unwrap();
        assert_eq!(saved.len(), 2 * shapes.len());
        for (module, [input, output]) in shapes {
            let tensor =
                |matrix: &str| &saved[&format!("base_model.model.{module}.lora_{matrix}.weight")];
            assert_eq!(tensor("A").dims(), [2, *input], "{module}");
            assert_eq!(tensor("B").dims(), [*output, 2], "{module}");
            assert_eq!(tensor("A").dtype(), DType::F32);
        }
        let config = std::fs::read_to_string(path.join("adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let targets: Vec<&str> = config["target_modules"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t.as_str().unwrap())
            .collect();
        let mut last: Vec<&str> =
            shapes.iter().map(|(module, _)| module.rsplit('.').next().unwrap()).collect();
        last.sort_unstable();
        last.dedup();
        assert_eq!(targets, last);
        assert_eq!((&config["r"], &config["lora_alpha"]), (&2.into(), &3.0.into()));
        assert_eq!((&config["peft_type"], &config["lora_dropout"]), (&"LORA".into(), &0.25.into()));
        assert_eq!(config["fan_in_fan_out"], geometry.family == Family::Gpt2);
    }
}

#[test]
fn targets_are_projections_of_the_model() {
    let model = load(crate::support::at(std::path::Path::new("embedded"))).model;
    let select = |targets: &str| {
        let selector: Box<dyn ParamSelector> =
            plugin("lora", &format!("rank = 4\ntargets = {targets}"));
        let selection = selector.select(&Circuit::default(), &*model, 0);
        selection.and_then(|selection| {
            Adapters::new(
                model.parameters(),
                model.projections(),
                &selection,
                selector.lora(&*model).unwrap().unwrap(),
                0,
            )
        })
    };
    let layers = model.projections().len() / 4;
    assert_eq!(select("[\"c_attn\"]").unwrap().parameters().len(), 2 * layers);
    // In GPT-2 both an attention layer and an MLP have a `c_proj`.
    assert_eq!(select("[\"c_proj\"]").unwrap().parameters().len(), 4 * layers);
    let error = select("[\"q_proj\"]").err().unwrap().to_string();
    assert!(error.contains("`q_proj`; known: all-linear, c_attn, c_fc, c_proj"), "{error}");
}

/// Layers whose edges an earlier run changed more have adapters of higher rank, all together as many parameters as
/// with an even rank, and what is saved is what was trained.
#[test]
fn ranks_follow_the_change_of_edges() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let settings = "--set task.direction=disagreement --set task.test_examples=20 --set discovery.bootstrap=0 \
                    --set discovery.examples=16 --lr 3e-3 --steps 6";
    succeeds(here, &words(&format!("tune --top-n 60 {settings} --out first")));
    let by_change = "--selector lora --set selector.rank=3 --set selector.rank_by=edge_change";
    let line = format!("tune {by_change} --set selector.change_of=first {settings} --out changed");
    succeeds(here, &words(&line));
    let line = format!("tune --selector lora --set selector.rank=3 {settings} --out even");
    succeeds(here, &words(&line));
    let edges = |when: &str| -> BTreeSet<(String, String)> {
        let circuit = json(&here.join(format!("first/circuit-{when}.json")));
        let name = |edge: &Value, end: &str| edge[end].as_str().unwrap().to_owned();
        let edges = circuit["edges"].as_array().unwrap().iter();
        edges.map(|edge| (name(edge, "writer"), name(edge, "reader"))).collect()
    };
    let (before, after) = (edges("before"), edges("after"));
    let mut changes = BTreeMap::new();
    for (_, reader) in before.symmetric_difference(&after) {
        if let Some(layer) = reader.split('.').nth(1) {
            *changes.entry(layer.parse::<usize>().unwrap()).or_insert(0) += 1;
        }
    }
    let path = here.join("changed/adapter/adapter_model.safetensors");
    let tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
    let mut ranks: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (name, tensor) in tensors.iter().filter(|(name, _)| name.contains("lora_A")) {
        let layer = name.split('.').find_map(|part| part.parse().ok()).unwrap();
        ranks.entry(layer).or_default().insert(tensor.dims()[0]);
    }
    assert!(ranks.values().all(|of_layer| of_layer.len() == 1), "{ranks:?}");
    let ranks: BTreeMap<usize, usize> =
        ranks.into_iter().map(|(layer, of)| (layer, of.into_iter().next().unwrap())).collect();
    assert_eq!(ranks.values().sum::<usize>(), 3 * ranks.len());
    let change = |layer: &usize| changes.get(layer).copied().unwrap_or(0);
    for (a, b) in ranks.keys().flat_map(|a| ranks.keys().map(move |b| (a, b))) {
        assert!(change(a) <= change(b) || ranks[a] >= ranks[b], "{ranks:?} {changes:?}");
    }
    assert!(
        ranks.values().any(|rank| *rank != 3),
        "the test wants layers that differ: {changes:?}"
    );
    let [changed, even] = ["changed", "even"].map(|run| json(&here.join(run).join("summary.json")));
    assert_eq!(changed["tuned_parameters"], even["tuned_parameters"]);
    // The adapter, loaded beside the model that it was trained for, is the merged model.
    let logits = |of: &str| -> Value {
        let line = format!("logits --tokens 5,7,9 --top 5 --json {of}");
        serde_json::from_str(&succeeds(here, &words(&line))).unwrap()
    };
    let (merged, beside) =
        (logits("--model changed/model"), logits("--set model.adapter=changed/adapter"));
    assert_eq!(merged["tokens"], beside["tokens"]);
    let difference = merged["loss"].as_f64().unwrap() - beside["loss"].as_f64().unwrap();
    assert!(difference.abs() < 1e-5, "{difference}");
    for (settings, parts) in [
        (by_change.to_owned(), ["edge_change", "selector.change_of"]),
        (
            format!("{by_change} --set selector.change_of=nowhere"),
            ["nowhere/circuit-before.json", "is not there"],
        ),
        ("--selector lora --set selector.change_of=first".to_owned(), ["rank_by", "leave it out"]),
    ] {
        refuses(here, &words(&format!("tune {settings} --steps 1 --out refused")), &parts);
    }
}
