//! `convert`: what it writes is read by a reader of EAP-IG's format that knows nothing of ours, every edge
//! comes back, and what isn't right is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use circuit_framework::Device;
use serde_json::{Value, json};

use crate::command_line::{self, refuses, succeeds, words};
use crate::support::repository;

/// A graph as EAP-IG reads it: which edges there are follows from `cfg` alone, and the file has to name them.
struct Graph {
    scores: BTreeMap<String, f64>,
    in_graph: BTreeSet<String>,
    nodes: BTreeSet<String>,
}

/// Their edges by name: of every node of the stream into the next ones, layer by layer.
fn edges_of(cfg: &Value) -> BTreeSet<String> {
    let count = |key: &str| cfg[key].as_u64().unwrap();
    assert_eq!(cfg["parallel_attn_mlp"], false);
    let mut edges = BTreeSet::new();
    let mut stream = vec!["input".to_owned()];
    for layer in 0..count("n_layers") {
        let heads: Vec<String> =
            (0..count("n_heads")).map(|head| format!("a{layer}.h{head}")).collect();
        for (parent, head) in stream.iter().flat_map(|p| heads.iter().map(move |h| (p, h))) {
            edges.extend(["q", "k", "v"].map(|letter| format!("{parent}->{head}<{letter}>")));
        }
        stream.extend(heads);
        edges.extend(stream.iter().map(|parent| format!("{parent}->m{layer}")));
        stream.push(format!("m{layer}"));
    }
    edges.extend(stream.iter().map(|parent| format!("{parent}->logits")));
    edges
}

fn read(path: &Path) -> Graph {
    let file = command_line::json(path);
    let edges = file["edges"].as_object().unwrap();
    assert_eq!(edges.keys().cloned().collect::<BTreeSet<_>>(), edges_of(&file["cfg"]));
    let d_model = file["cfg"]["d_model"].as_u64().unwrap();
    assert!(d_model > 0);
    let scores = edges.iter().map(|(name, edge)| (name.clone(), edge["score"].as_f64().unwrap()));
    let kept = |entries: &Value| -> BTreeSet<String> {
        let entries = entries.as_object().unwrap().iter();
        let kept = entries.filter(|(_, entry)| entry["in_graph"].as_bool().unwrap());
        kept.map(|(name, _)| name.clone()).collect()
    };
    let (in_graph, nodes) = (kept(&file["edges"]), kept(&file["nodes"]));
    Graph { scores: scores.collect(), in_graph, nodes }
}

fn model(case: &str) -> PathBuf {
    repository("tests/reference").join(case).join("model")
}

/// Finds a circuit with its scores, as `c.json` and `s.safetensors`.
fn discover(here: &Path, case: &str, top_n: usize) {
    let data = repository("tests/reference").join(case).join("examples.jsonl");
    let line = format!(
        "discover --model {} --task tokens --data {} --metric logit_diff --ablation zero --positions all \
         --top-n {top_n} --circuit c.json --scores s.safetensors",
        model(case).display(),
        data.display()
    );
    succeeds(here, &words(&line));
}

fn convert(here: &Path, case: &str, line: &str) -> Value {
    let line = format!("convert --model {} {line} --json", model(case).display());
    serde_json::from_str(&succeeds(here, &words(&line))).unwrap()
}

/// The scores of a file, by its writers' and readers' names.
fn scores(path: &Path) -> BTreeMap<(String, String), f32> {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = safetensors(&bytes);
    let names = |key: &str| -> Vec<String> {
        serde_json::from_str(header["__metadata__"][key].as_str().unwrap()).unwrap()
    };
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    let values = tensors["scores"].to_vec2::<f32>().unwrap();
    let (writers, readers) = (names("writers"), names("readers"));
    let rows = writers.iter().zip(values);
    rows.flat_map(|(writer, row)| {
        readers.iter().zip(row).map(|(reader, score)| ((writer.clone(), reader.clone()), score))
    })
    .collect()
}

fn safetensors(bytes: &[u8]) -> (usize, Value) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (length, serde_json::from_slice(&bytes[8..8 + length]).unwrap())
}

/// Of a circuit file: each edge with its score.
fn circuit(path: &Path) -> BTreeMap<(String, String), f32> {
    let file = command_line::json(path);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let edges = file["edges"].as_array().unwrap().iter();
    edges
        .map(|edge| {
            ((text(&edge["writer"]), text(&edge["reader"])), edge["score"].as_f64().unwrap() as f32)
        })
        .collect()
}

/// GPT-2's name in their files of an edge of ours.
fn their_name((writer, reader): &(String, String)) -> String {
    let node = |name: &str| -> String {
        let parts: Vec<&str> = name.split('.').collect();
        match parts[..] {
            ["embed"] => "input".to_owned(),
            ["head", layer, head] => format!("a{layer}.h{head}"),
            ["head", layer, head, port] => format!("a{layer}.h{head}<{port}>"),
            ["mlp", layer] => format!("m{layer}"),
            _ => name.to_owned(),
        }
    };
    format!("{}->{}", node(writer), node(reader))
}

/// There and back: circuit and scores are the same, to the last bit.
#[test]
fn gpt2_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    discover(here, "gpt2-relp", 25);
    let said = convert(here, "gpt2-relp", "c.json --to eap-ig --scores s.safetensors --out g.json");
    assert_eq!(said["edges"], 25);
    assert_eq!(said["losses"], json!(["what the circuit is of: task, metric, method, settings"]));
    let graph = read(&here.join("g.json"));
    let (kept, all) = (circuit(&here.join("c.json")), scores(&here.join("s.safetensors")));
    assert_eq!(graph.in_graph, kept.keys().map(their_name).collect());
    for (name, score) in all.iter().map(|(ends, score)| (their_name(ends), score)) {
        if let Some(found) = graph.scores.get(&name) {
            assert_eq!(*found as f32, *score, "{name}");
        }
    }
    // A node that nothing leads into, or nothing out of, is not in the graph.
    for node in &graph.nodes {
        let into = |edge: &String| {
            let child = edge.split("->").nth(1).unwrap();
            child.split('<').next() == Some(node)
        };
        let out_of = |edge: &String| edge.starts_with(&format!("{node}->"));
        assert!(node == "input" || node == "logits" || graph.in_graph.iter().any(into), "{node}");
        assert!(node == "logits" || graph.in_graph.iter().any(out_of), "{node}");
    }
    convert(here, "gpt2-relp", "g.json --from eap-ig --out back.json --scores back.safetensors");
    assert_eq!(circuit(&here.join("back.json")), kept);
    assert_eq!(scores(&here.join("back.safetensors")), all);
    // What came back is a circuit and scores like any other.
    convert(here, "gpt2-relp", "back.json --to eap-ig --scores back.safetensors --out again.json");
    let bytes = |name: &str| std::fs::read(here.join(name)).unwrap();
    assert_eq!(bytes("g.json"), bytes("again.json"));
}

/// Where heads share keys and values every edge comes back, with its score; those into MLPs stand for a gate
/// and an up projection.
#[test]
fn llamas_edges_all_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let case = "llama-all-corrupt";
    discover(here, case, 40);
    let said = convert(here, case, "c.json --to eap-ig --out g.json");
    let losses = said["losses"].to_string();
    for part in ["alone", "that heads share", "outside the circuit"] {
        assert!(losses.contains(part), "{part}: {losses}");
    }
    read(&here.join("g.json"));
    convert(here, case, "g.json --from eap-ig --out back.json --scores back.safetensors");
    let (kept, back) = (circuit(&here.join("c.json")), circuit(&here.join("back.json")));
    for (ends, score) in &kept {
        let found = back.get(ends).unwrap_or_else(|| panic!("{ends:?} is lost"));
        let is_mlp = ends.1.starts_with("mlp");
        assert!(
            is_mlp || (found - score).abs() <= 1e-6 * score.abs(),
            "{ends:?}: {found} for {score}"
        );
    }
    let added = back.keys().filter(|ends| !kept.contains_key(*ends));
    assert!(
        added.clone().all(|(_, reader)| reader.starts_with("mlp")),
        "{:?}",
        added.collect::<Vec<_>>()
    );
    let refused = format!(
        "convert c.json --model {} --to eap-ig --scores s.safetensors --out g2.json",
        model(case).display()
    );
    refuses(here, &words(&refused), &["heads share them", "without --scores"]);
    assert!(!here.join("g2.json").exists());
}

/// Scores of theirs into what heads share are added up.
#[test]
fn scores_into_a_group_are_summed() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let case = "llama-all-corrupt";
    discover(here, case, 40);
    convert(here, case, "c.json --to eap-ig --out g.json");
    let mut graph = command_line::json(&here.join("g.json"));
    for (index, (_, edge)) in graph["edges"].as_object_mut().unwrap().iter_mut().enumerate() {
        *edge = json!({ "score": index as f64, "in_graph": false });
    }
    let edges = graph["edges"].clone();
    std::fs::write(here.join("g.json"), graph.to_string()).unwrap();
    convert(here, case, "g.json --from eap-ig --out back.json --scores back.safetensors");
    assert!(circuit(&here.join("back.json")).is_empty());
    let config = command_line::json(&model(case).join("config.json"));
    let count = |key: &str| config[key].as_u64().unwrap();
    let group = count("num_attention_heads") / count("num_key_value_heads");
    assert!(group > 1);
    let all = scores(&here.join("back.safetensors"));
    let theirs = |name: String| edges[&name]["score"].as_f64().unwrap() as f32;
    for head in 0..count("num_key_value_heads") {
        for port in ["k", "v"] {
            let group = head * group..(head + 1) * group;
            let sum: f32 = group.map(|head| theirs(format!("m0->a1.h{head}<{port}>"))).sum();
            let found = all[&("mlp.0".to_owned(), format!("head.1.kv{head}.{port}"))];
            assert_eq!(found, sum, "{head} {port}");
        }
    }
    let into = |port: &str| all[&("embed".to_owned(), format!("mlp.1.{port}"))];
    assert_eq!(into("gate") + into("up"), theirs("input->m1".to_owned()));
}

/// With scores one file; without, nine circuits, none larger than its size allows, each in the next.
#[test]
fn submissions_to_mib_are_laid_out() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    discover(here, "gpt2-relp", 200);
    let to = "c.json --to mib --task ioi --out";
    convert(here, "gpt2-relp", &format!("{to} scored --scores s.safetensors"));
    let graph = read(&here.join("scored/ioi_gpt2/importances.json"));
    assert!(graph.scores.values().filter(|score| **score != 0.0).count() > 200);
    convert(here, "gpt2-relp", &format!("{to} circuits"));
    let folder = here.join("circuits/ioi_gpt2");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 9);
    let mut before: BTreeSet<String> = BTreeSet::new();
    for percent in ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"] {
        let graph = read(&folder.join(format!("{percent}.json")));
        let most = percent.parse::<f64>().unwrap() / 100.0 * graph.scores.len() as f64;
        assert!(graph.in_graph.len() as f64 <= most && graph.in_graph.len() as f64 > most - 1.0);
        assert!(before.is_subset(&graph.in_graph));
        before = graph.in_graph;
    }
}

#[test]
fn what_is_not_right_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    discover(here, "gpt2-relp", 20);
    convert(here, "gpt2-relp", "c.json --to eap-ig --scores s.safetensors --out g.json");
    let good = std::fs::read_to_string(here.join("g.json")).unwrap();
    let refused = |line: &str, parts: &[&str]| {
        let line = format!("convert --model {} {line}", model("gpt2-relp").display());
        refuses(here, &words(&line), parts);
        assert!(!here.join("out.json").exists(), "{line}");
    };
    let spoilt = |change: &dyn Fn(&mut Value), parts: &[&str]| {
        let mut graph: Value = serde_json::from_str(&good).unwrap();
        change(&mut graph);
        // As Python writes what is no number.
        let text = graph.to_string().replace("\"NaN\"", "NaN").replace("\"-inf\"", "-Infinity");
        std::fs::write(here.join("bad.json"), text).unwrap();
        refused("bad.json --from eap-ig --out out.json", parts);
    };
    spoilt(&|graph| graph["cfg"]["n_layers"] = 12.into(), &["bad.json", "12 layers for 3"]);
    spoilt(&|graph| graph["cfg"]["n_heads"] = 7.into(), &["another model", "7 heads"]);
    spoilt(&|graph| graph["cfg"]["parallel_attn_mlp"] = true.into(), &["parallel attention"]);
    spoilt(&|graph| graph["edges"]["input->m0"]["score"] = "NaN".into(), &["`input->m0` is NaN"]);
    spoilt(&|graph| graph["edges"]["m0->logits"]["score"] = "-inf".into(), &["-Infinity"]);
    spoilt(&|graph| graph["edges"]["m0->m1"]["score"] = Value::Null, &["`m0->m1` is null"]);
    let named = |name: &'static str| {
        move |graph: &mut Value| graph["edges"][name] = json!({ "score": 1.0, "in_graph": true })
    };
    spoilt(&named("a9.h0->m0"), &["`a9.h0->m0` is no edge"]);
    spoilt(&named("mlp.0->logits"), &["`mlp.0->logits` is no edge", "a0.h0->m0"]);
    spoilt(&|graph| drop(graph.as_object_mut().unwrap().remove("edges")), &["bad.json", "edges"]);
    std::fs::write(here.join("bad.json"), "[]").unwrap();
    refused("bad.json --from eap-ig --out out.json", &["no graph file of EAP-IG's"]);
    refused("c.json --to mib --out out.json", &["--task"]);
    refused("c.json --to eap-ig --task ioi --out out.json", &["--to mib"]);
    refused("c.json --to mib --task oio --out out.json", &["no task `oio`", "ioi"]);
    refused("--mlp-head-width 16 c.json --to eap-ig --out out.json", &["MLP"]);
    let other = format!(
        "convert c.json --model {} --to eap-ig --out out.json",
        model("llama-all-corrupt").display()
    );
    refuses(here, &words(&other), &["another model"]);
    // Nodes may have no score of their own: EAP-IG writes NaN for them.
    let mut graph: Value = serde_json::from_str(&good).unwrap();
    graph["nodes"]["m0"]["score"] = "NaN".into();
    std::fs::write(here.join("nodes.json"), graph.to_string().replace("\"NaN\"", "NaN")).unwrap();
    let said = convert(here, "gpt2-relp", "nodes.json --from eap-ig --out fine.json");
    assert!(said["losses"].to_string().contains("nodes' own scores"), "{said}");
}
