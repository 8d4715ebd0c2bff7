//! `draw`: what is in the picture of a circuit, and that it fits a screen.

use std::path::Path;

use serde_json::{Value, json};

use crate::command_line::{refuses, succeeds, words};

/// The number of an attribute.
fn number(tag: &str, attribute: &str) -> f64 {
    let (_, rest) = tag.split_once(&format!(" {attribute}=\"")).unwrap();
    rest.split('"').next().unwrap().parse().unwrap()
}

/// The rectangles with this rounding: 5 are nodes, 6 frames. Left, top, right, bottom.
fn rectangles(svg: &str, rounding: &str) -> Vec<[f64; 4]> {
    let tags = svg.lines().filter(|line| line.starts_with("<rect") && line.contains(rounding));
    tags.map(|tag| {
        let [x, y, width, height] = ["x", "y", "width", "height"].map(|name| number(tag, name));
        [x, y, x + width, y + height]
    })
    .collect()
}

fn assert_apart(rectangles: &[[f64; 4]]) {
    for (index, a) in rectangles.iter().enumerate() {
        for b in &rectangles[..index] {
            let apart = a[0] >= b[2] || b[0] >= a[2] || a[1] >= b[3] || b[1] >= a[3];
            assert!(apart, "{a:?} and {b:?} overlap");
        }
    }
}

/// The words in the picture, tooltips left out.
fn texts(svg: &str) -> Vec<&str> {
    let texts = svg.split("<text").skip(1);
    texts.filter_map(|text| text.split_once('>')?.1.split('<').next()).collect()
}

fn provenance() -> Value {
    json!({
        "model": {
            "architecture": "llama", "layers": 30, "heads": 9, "key_value_heads": 3, "d_model": 576,
            "d_head": 64, "mlp_width": 1536, "vocabulary": 49152,
        },
        "model_path": "models/SmolLM2.gguf", "task": "tokens", "metric": "logit_diff", "method": "eap-ig",
        "ablation": "corrupt", "positions": "key", "nodes": ["head", "mlp", "embed", "logits"], "seed": 0,
        "examples": 20, "version": "0.1.0",
    })
}

fn write(path: &Path, edges: &[(String, String)], provenance: Option<Value>) {
    let edges: Vec<Value> = (edges.iter().enumerate())
        .map(|(index, (writer, reader))| {
            let score = if index % 3 == 0 { -1.0 } else { 1.0 } / (index + 1) as f64;
            json!({ "writer": writer, "reader": reader, "score": score })
        })
        .collect();
    let mut circuit = json!({ "edges": edges });
    if let Some(provenance) = provenance {
        circuit["provenance"] = provenance;
    }
    std::fs::write(path, circuit.to_string()).unwrap();
}

/// A hundred edges all over a model of SmolLM2's size.
fn scattered() -> Vec<(String, String)> {
    let edge = |index: usize| {
        let layer = index * 11 % 28;
        let later = layer + 1 + index % 2;
        let head = index % 9;
        let writer = match index % 3 {
            0 => format!("mlp.{layer}"),
            1 => format!("head.{layer}.{head}"),
            _ => "embed".to_owned(),
        };
        let reader = match index % 6 {
            0 => format!("head.{later}.{head}.q"),
            1 => format!("head.{later}.kv{}.k", head / 3),
            2 => format!("head.{later}.kv{}.v", head / 3),
            3 => format!("mlp.{later}.gate"),
            4 => format!("mlp.{later}.up"),
            _ => "logits".to_owned(),
        };
        (writer, reader)
    };
    (0..100).map(edge).collect()
}

#[test]
fn a_hundred_edges_of_thirty_layers_fit_a_screen_and_no_node_covers_another() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("c.json"), &scattered(), Some(provenance()));
    let landscape = succeeds(folder.path(), &words("draw c.json --landscape"));
    let svg = landscape.lines().next().unwrap();
    assert!(number(svg, "width") <= 1800.0 && number(svg, "height") <= 1000.0, "{svg}");
    let portrait = succeeds(folder.path(), &words("draw c.json"));
    let svg = portrait.lines().next().unwrap();
    assert!(number(svg, "width") < number(svg, "height"), "{svg}");
    for picture in [landscape, portrait] {
        assert_eq!(picture.matches("<path").count(), 100);
        assert_apart(&rectangles(&picture, "rx=\"5\""));
        assert_apart(&rectangles(&picture, "rx=\"6\""));
    }
}

#[test]
fn shared_keys_and_values_are_an_input_of_the_whole_group() {
    let folder = tempfile::tempdir().unwrap();
    let edges = [("embed".to_owned(), "head.23.kv1.v".to_owned())];
    write(&folder.path().join("c.json"), &edges, Some(provenance()));
    let picture = succeeds(folder.path(), &words("draw c.json --landscape"));
    let [frame] = rectangles(&picture, "rx=\"6\"")[..] else { panic!("{picture}") };
    let inside = (rectangles(&picture, "rx=\"5\"").into_iter())
        .filter(|node| node[0] >= frame[0] && node[2] <= frame[2] && node[1] >= frame[1]);
    assert_eq!(inside.count(), 3, "{picture}");
    let shown = texts(&picture);
    for text in ["23.3", "23.4", "23.5", "v"] {
        assert!(shown.contains(&text), "{shown:?}");
    }
    assert!(!shown.contains(&"23.1"), "{shown:?}");
}

#[test]
fn a_drawing_names_what_it_is_of_and_shows_the_nodes_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let small = "--set task.train_examples=8";
    let line = format!("discover {small} --top-n 6 --circuit c.json --drawing discovered.svg");
    succeeds(here, &words(&line));
    succeeds(here, &words("draw c.json --out drawn.svg"));
    let read = |name: &str| std::fs::read_to_string(here.join(name)).unwrap();
    assert_eq!(read("drawn.svg"), read("discovered.svg"));
    let drawn = read("drawn.svg");
    let shown = texts(&drawn);
    assert_eq!(shown[0], "embedded: agreement");
    let of = "logit_diff, eap, mean ablation at key positions, 8 examples; 6 edges";
    assert_eq!(shown[1], of);
    let all = succeeds(here, &words("draw c.json --model embedded --all-nodes"));
    let nodes = |picture: &str| rectangles(picture, "rx=\"5\"").len();
    // embed, logits, and four layers of four heads and an MLP.
    assert_eq!(nodes(&all), 22);
    assert!(nodes(&drawn) < 12, "{drawn}");
    assert_apart(&rectangles(&all, "rx=\"5\""));
    let few = succeeds(here, &words("draw c.json --top 2"));
    assert_eq!(few.matches("<path").count(), 2);
    assert!(few.contains("the 2 strongest edges; 4 weaker ones are left out"), "{few}");
}

#[test]
fn a_circuit_without_provenance_is_drawn_and_one_of_another_model_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let edges = [("head.0.1".to_owned(), "head.3.2.k".to_owned())];
    write(&here.join("old.json"), &edges, None);
    let picture = succeeds(here, &words("draw old.json"));
    assert!(texts(&picture).contains(&"old.json"), "{picture}");
    assert!(texts(&picture).contains(&"k"), "{picture}");
    refuses(here, &words("draw old.json --all-nodes"), &["--all-nodes", "--model"]);
    write(&here.join("other.json"), &scattered(), Some(provenance()));
    refuses(here, &words("draw other.json --model embedded"), &["other.json", "another model"]);
    refuses(here, &words("draw nowhere.json"), &["nowhere.json"]);
}
