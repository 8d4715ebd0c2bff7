//! What score files and circuits say of themselves: they come back as they were written, those of
//! another model are refused, and those of former versions are read.

use std::path::Path;

use circuit_framework::attribution::{Ablation, Positions};
use circuit_framework::graph::Kind;
use circuit_framework::graph::circuit::Circuit;
use circuit_framework::graph::pruning::Pruning;
use circuit_framework::results::circuit_file::CircuitFile;
use circuit_framework::results::provenance::{Geometry, Provenance};
use circuit_framework::{Model, Scores};
use proptest::prelude::*;
use serde_json::Value;

use crate::command_line::{json, program, refuses, succeeds, words};
use crate::graph::scores;
use crate::support::{few, geometries, repository};

fn provenance(model: &dyn Model) -> Provenance {
    Provenance {
        model: Geometry::of(model),
        model_path: "made".to_owned(),
        bos: None,
        task: "tokens".to_owned(),
        metric: "loss".to_owned(),
        method: "eap".to_owned(),
        ablation: Ablation::MeanPositional,
        positions: Positions::All,
        nodes: vec![Kind::Head, Kind::Mlp],
        seed: 3,
        examples: 7,
        version: "0".to_owned(),
    }
}

/// Replaces text in a score file's header.
fn rewrite(file: &Path, from: &str, to: &str) {
    let bytes = std::fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
    let header = format!("{:length$}", header.trim_end().replace(from, to));
    let written = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + length..]];
    std::fs::write(file, written.concat()).unwrap();
}

proptest! {
    #![proptest_config(few(32))]

    #[test]
    fn scores_and_circuits_come_back_from_their_files(
        geometry in geometries(),
        kinds in prop::sample::subsequence(vec![Kind::Head, Kind::Mlp, Kind::Embed, Kind::Logits], 2..5),
        seeds in prop::collection::vec(any::<i8>(), 1..40),
    ) {
        let model = geometry.model(0);
        let scores = scores(model.graph().subset(&kinds), &seeds);
        let circuit = Pruning::default().prune(&scores, &scores.magnitudes(), 10);
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        scores.save(&file("scores"), &provenance(&*model)).unwrap();
        prop_assert_eq!(Scores::load(&file("scores"), &*model).unwrap(), scores.clone());
        circuit.save(&file("circuit"), &provenance(&*model)).unwrap();
        let loaded = Circuit::load(&file("circuit"), &*model, &scores.graph).unwrap();
        prop_assert_eq!(&loaded, &circuit);
        let written = CircuitFile::read(&file("circuit")).unwrap();
        prop_assert_eq!(written.provenance, Some(provenance(&*model)));

        // As a former version wrote them: other names of axes and shared heads, nothing of the model.
        rewrite(&file("scores"), "\"writers\":", "\"upstream\":");
        rewrite(&file("scores"), "\"readers\":", "\"downstream\":");
        rewrite(&file("scores"), "\"provenance\":", "\"comment\":");
        rewrite(&file("scores"), ".kv", ".");
        prop_assert_eq!(Scores::load(&file("scores"), &*model).unwrap(), scores.clone());
        let text = serde_json::json!({ "edges": circuit.edges }).to_string().replace(".kv", ".");
        std::fs::write(file("circuit"), text).unwrap();
        prop_assert_eq!(&Circuit::load(&file("circuit"), &*model, &scores.graph).unwrap(), &circuit);
    }

    /// Even where all names of nodes are its own.
    #[test]
    fn results_of_another_model_are_refused(geometry in geometries(), change in 0..4usize) {
        let model = geometry.model(0);
        let own = Geometry::of(&*model);
        let other = match change {
            0 => Geometry { d_model: own.d_model + 2, ..own },
            1 => Geometry { layers: own.layers + 1, ..own },
            2 => Geometry { vocabulary: 50_257, ..own },
            _ => Geometry { architecture: "opt".to_owned(), ..own },
        };
        let provenance = Provenance { model: other, ..provenance(&*model) };
        let scores = scores(model.graph().clone(), &[1, 2, 3]);
        let circuit = Pruning::default().prune(&scores, &scores.magnitudes(), 3);
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        scores.save(&file("scores"), &provenance).unwrap();
        circuit.save(&file("circuit"), &provenance).unwrap();
        let errors = [
            Scores::load(&file("scores"), &*model).unwrap_err().to_string(),
            Circuit::load(&file("circuit"), &*model, model.graph()).unwrap_err().to_string(),
        ];
        let part = ["d_model", "layers", "50257 tokens in the vocabulary for 23", "opt for"][change];
        for error in errors {
            prop_assert!(error.contains("of another model") && error.contains(part), "{error}");
        }
    }
}

#[test]
fn the_embedded_models_geometry_is_its_configuration() {
    let model = crate::support::load(crate::support::at(Path::new("embedded"))).model;
    let config = model.config().clone();
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let geometry = Geometry::of(&*model);
    assert_eq!(geometry.architecture, "gpt2");
    assert_eq!((geometry.layers, geometry.heads), (number("n_layer"), number("n_head")));
    assert_eq!(geometry.key_value_heads, geometry.heads);
    assert_eq!((geometry.d_model, geometry.vocabulary), (number("n_embd"), number("vocab_size")));
    assert_eq!(geometry.d_head * geometry.heads, geometry.d_model);
    assert_eq!(
        geometry.mlp_width,
        config["n_inner"].as_u64().map_or(4 * geometry.d_model, |n| n as usize)
    );
}

/// A circuit says what it is of; another model's, and one without edges, are not tuned.
#[test]
fn circuits_of_other_models_empty_ones_and_former_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let case = repository("tests/reference/gpt2-key-mean");
    let (model, data) = (case.join("model"), case.join("examples.jsonl"));
    let of_case = format!("--model {} --task tokens --data {}", model.display(), data.display());
    succeeds(folder.path(), &words(&format!("discover {of_case} --top-n 5 --circuit c.json")));
    let written = json(&folder.path().join("c.json"));
    assert_eq!(written["provenance"]["model"]["architecture"], "gpt2");
    assert_eq!(written["provenance"]["metric"], "logit_diff");
    assert!(written["provenance"]["examples"].as_u64().unwrap() > 0);
    refuses(
        folder.path(),
        &words("tune --circuit c.json --steps 1 --out out"),
        &["c.json", "of another model"],
    );
    let mut empty: Value = written;
    empty["edges"] = Value::Array(Vec::new());
    std::fs::write(folder.path().join("empty.json"), empty.to_string()).unwrap();
    refuses(
        folder.path(),
        &words(&format!("tune {of_case} --circuit empty.json --steps 1 --out out")),
        &["empty.json", "no edges"],
    );
    // Without provenance it is read, and that is said.
    empty = json(&folder.path().join("c.json"));
    empty.as_object_mut().unwrap().remove("provenance");
    std::fs::write(folder.path().join("former.json"), empty.to_string()).unwrap();
    let line = format!("tune {of_case} --circuit former.json --steps 1 --out former");
    let output = program(folder.path(), &words(&line));
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("former.json: doesn't say which model"), "{said}");
    // The run's settings say which version's they are; a former version's mean something else.
    let config = std::fs::read_to_string(folder.path().join("former/config.toml")).unwrap();
    assert!(config.starts_with("format = 2\n"), "{config}");
    std::fs::write(folder.path().join("old.toml"), config.replace("format = 2\n", "")).unwrap();
    refuses(
        folder.path(),
        &words("run old.toml --out old"),
        &["old.toml", "format 1", "mean-positional"],
    );
    refuses(
        folder.path(),
        &words(&format!("tune {of_case} --set pruning.threshold=1e30 --steps 1 --out none")),
        &["no edges", "threshold"],
    );
}
