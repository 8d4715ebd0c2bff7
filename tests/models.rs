//! Models out of files: what would change a model's numbers is done or refused by name, never passed
//! over.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, safetensors};
use circuit_framework::{Device, Model, Pass, Tensor};
use serde_json::{Value, json};

use crate::command_line::words;
use crate::support::{at, load, repository};

pub fn case(name: &str) -> PathBuf {
    repository("tests/reference").join(name).join("model")
}

pub fn json_of(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A copy of a reference case's model, its configuration changed.
pub fn with_config(name: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let weights = "model.safetensors";
    std::fs::copy(case(name).join(weights), folder.path().join(weights)).unwrap();
    let mut config = json_of(&case(name).join("config.json"));
    change(&mut config);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

pub fn tensors(name: &str) -> HashMap<String, Tensor> {
    safetensors::load(case(name).join("model.safetensors"), &Device::Cpu).unwrap()
}

/// A reference case's model with other tensors.
fn with_tensors(name: &str, tensors: &HashMap<String, Tensor>) -> tempfile::TempDir {
    let folder = with_config(name, |_| {});
    safetensors::save(tensors, folder.path().join("model.safetensors")).unwrap();
    folder
}

/// Logits of a few tokens, far enough apart for the rotation to show.
pub fn logits(model: &dyn Model) -> Vec<Vec<f64>> {
    let vocabulary = model.vocabulary().min(97) as u32;
    let tokens: Vec<u32> = (0..24).map(|index| (index * 7 + 5) % vocabulary).collect();
    let tokens = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let readout = model.forward(&Pass::forward_only(), &tokens).unwrap();
    readout.logits(&[3, 11, 23]).unwrap().to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

/// Loading fails with one line that has all of `parts`.
pub fn refuses(path: &Path, parts: &[&str]) {
    let error = circuit_models::load(&at(path)).err().unwrap().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn rope_settings_that_are_not_implemented_are_refused_in_both_spellings() {
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4 });
    let longrope = json!({ "rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0] });
    for settings in [
        json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 1e4 }),
        json!({ "type": "linear", "factor": 2.0 }),
        json!({ "rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4 }),
        json!({ "type": "dynamic", "factor": 2.0 }),
        yarn,
        longrope,
    ] {
        let kind = settings.get("rope_type").unwrap_or(&settings["type"]).to_string();
        for spelling in ["rope_parameters", "rope_scaling"] {
            let folder = with_config("llama-key-mean", |config| {
                config["rope_scaling"] = Value::Null;
                config[spelling] = settings.clone();
            });
            refuses(folder.path(), &["config.json", &format!("`{spelling}.rope_type`"), &kind]);
        }
    }
    let partial =
        json!({ "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5 });
    for (key, value, name) in [
        ("partial_rotary_factor", json!(0.5), "`partial_rotary_factor` is 0.5"),
        ("rope_parameters", partial, "`partial_rotary_factor` is 0.5"),
        (
            "rope_parameters",
            json!({ "rope_type": "default", "attention_factor": 2.0 }),
            "`rope_parameters.attention_factor`",
        ),
        ("rope_parameters", json!({ "full_attention": { "rope_theta": 1e4 } }), "full_attention"),
        ("rope_theta", json!("large"), "`rope_theta`"),
    ] {
        let folder = with_config("llama-key-mean", |config| config[key] = value);
        refuses(folder.path(), &["config.json", name]);
    }
}

#[test]
fn rope_settings_mean_the_same_in_both_spellings() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    });
    let plain = logits(&*load(at(&case("llama-key-mean"))).model);
    let old = with_config("llama-key-mean", |config| {
        config["rope_theta"] = json!(500.0);
        config["rope_scaling"] = llama3.clone();
    });
    let new = with_config("llama-key-mean", |config| {
        let settings = config.as_object_mut().unwrap();
        settings.remove("rope_theta");
        settings.remove("rope_scaling");
        config["rope_parameters"] = llama3;
        config["rope_parameters"]["rope_theta"] = json!(500.0);
    });
    let scaled = logits(&*load(at(old.path())).model);
    assert_ne!(scaled, plain);
    assert_eq!(logits(&*load(at(new.path())).model), scaled);
    // Without a base of its own, the one beside it counts; without any, 10,000.
    for (key, theta) in [("rope_theta", json!(1e4)), ("rope_parameters", json!({}))] {
        let folder = with_config("llama-key-mean", |config| {
            config.as_object_mut().unwrap().remove("rope_theta");
            config["rope_parameters"] = json!({ "rope_type": "default" });
            config[key] = theta;
        });
        assert_eq!(logits(&*load(at(folder.path())).model), plain);
    }
}

#[test]
fn configurations_that_are_not_implemented_are_refused_by_name() {
    let llama = [
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("hidden_act", json!("gelu")),
        ("head_dim", json!(5)),
        ("num_key_value_heads", json!(3)),
        ("num_attention_heads", json!(0)),
        ("sliding_window", json!(4)),
        ("layer_types", json!(["full_attention", "sliding_attention", "full_attention"])),
        ("quantization_config", json!({ "quant_method": "gptq", "bits": 4 })),
    ];
    let gpt2 = [
        ("activation_function", json!("relu")),
        ("scale_attn_weights", json!(false)),
        ("scale_attn_weights", json!(null)),
        ("scale_attn_by_inverse_layer_idx", json!(true)),
        ("add_cross_attention", json!(true)),
        ("tie_word_embeddings", json!(false)),
        ("tie_word_embeddings", json!(null)),
        ("n_head", json!(0)),
        ("quantization_config", json!({ "quant_method": "bitsandbytes" })),
    ];
    for (name, keys) in [("llama-key-mean", &llama[..]), ("gpt2-key-mean", &gpt2[..])] {
        for (key, value) in keys {
            let folder = with_config(name, |config| config[key] = value.clone());
            refuses(folder.path(), &["config.json", key]);
        }
    }
}

#[test]
fn configurations_that_change_nothing_are_read() {
    let llama = [
        ("pretraining_tp", json!(2)),
        ("hidden_act", json!("swish")),
        ("tie_word_embeddings", json!(null)),
        ("quantization_config", json!(null)),
        ("sliding_window", json!(4096)),
        ("partial_rotary_factor", json!(1.0)),
        ("layer_types", json!(["full_attention", "full_attention", "full_attention"])),
        ("rope_scaling", json!({ "rope_type": "default" })),
    ];
    let gpt2 = [
        ("reorder_and_upcast_attn", json!(true)),
        ("scale_attn_by_inverse_layer_idx", json!(null)),
        ("resid_pdrop", json!(0.5)),
    ];
    for (name, keys) in [("llama-key-mean", &llama[..]), ("gpt2-key-mean", &gpt2[..])] {
        let plain = logits(&*load(at(&case(name))).model);
        for (key, value) in keys {
            let folder = with_config(name, |config| config[key] = value.clone());
            assert_eq!(logits(&*load(at(folder.path())).model), plain, "{name} {key}");
        }
    }
}

#[test]
fn an_unembedding_beside_a_tied_one_must_be_the_embedding() {
    let cases = [
        ("gpt2-key-mean", "transformer.wte.weight"),
        ("llama-tied-lengths", "model.embed_tokens.weight"),
    ];
    for (name, embedding) in cases {
        let mut tensors = tensors(name);
        tensors.insert("lm_head.weight".to_owned(), tensors[embedding].copy().unwrap());
        let folder = with_tensors(name, &tensors);
        let plain = logits(&*load(at(&case(name))).model);
        assert_eq!(logits(&*load(at(folder.path())).model), plain);
        let other = tensors[embedding].affine(1.0, 0.125).unwrap();
        tensors.insert("lm_head.weight".to_owned(), other);
        let folder = with_tensors(name, &tensors);
        refuses(folder.path(), &["`lm_head.weight`", "tie_word_embeddings"]);
    }
}

#[test]
fn a_weight_that_is_not_finite_is_refused_by_name() {
    for (name, broken) in [
        ("gpt2-key-mean", "transformer.h.1.mlp.c_fc.weight"),
        ("gpt2-key-mean", "transformer.ln_f.bias"),
        ("llama-key-mean", "model.layers.2.self_attn.k_proj.weight"),
    ] {
        for bad in [f64::NAN, f64::INFINITY] {
            let mut tensors = tensors(name);
            let mut values: Vec<f32> = tensors[broken].flatten_all().unwrap().to_vec1().unwrap();
            *values.last_mut().unwrap() = bad as f32;
            let shape = tensors[broken].shape().clone();
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            tensors.insert(broken.to_owned(), tensor);
            let folder = with_tensors(name, &tensors);
            let short = broken.trim_start_matches("transformer.");
            refuses(folder.path(), &[&format!("{short}`"), "not finite"]);
        }
    }
}

/// A folder of two shards, `place` saying which of them hold a tensor and which of them the index names.
fn sharded(place: impl Fn(&str) -> (Vec<usize>, Option<usize>)) -> tempfile::TempDir {
    let folder = with_config("gpt2-key-mean", |_| {});
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mut shards = [HashMap::new(), HashMap::new()];
    let mut map = serde_json::Map::new();
    for (name, tensor) in tensors("gpt2-key-mean") {
        let (holders, named) = place(&name);
        for shard in holders {
            shards[shard].insert(name.clone(), tensor.affine(1.0 + shard as f64, 0.0).unwrap());
        }
        if let Some(shard) = named {
            map.insert(name, json!(format!("shard-{shard}.safetensors")));
        }
    }
    for (number, tensors) in shards.iter().enumerate() {
        let file = folder.path().join(format!("shard-{number}.safetensors"));
        safetensors::save(tensors, file).unwrap();
    }
    let index = json!({ "weight_map": map }).to_string();
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    folder
}

#[test]
fn shards_hold_what_the_index_says() {
    const MOVED: &str = "transformer.h.1.attn.c_attn.weight";
    let home = |name: &str| usize::from(name.contains(".h.1."));
    let moved = |holders: &[usize], named: Option<usize>| {
        let holders = holders.to_vec();
        sharded(move |name| match name == MOVED {
            true => (holders.clone(), named),
            false => (vec![home(name)], Some(home(name))),
        })
    };
    assert!(circuit_models::load(&at(moved(&[1], Some(1)).path())).is_ok());
    let index = "model.safetensors.index.json";
    let two = ["two shards", "shard-0.safetensors", "shard-1.safetensors"];
    for named in [0, 1] {
        refuses(moved(&[0, 1], Some(named)).path(), &[&[index, MOVED], &two[..]].concat());
    }
    refuses(moved(&[1], Some(0)).path(), &[index, MOVED, "shard-0.safetensors"]);
    refuses(moved(&[], Some(0)).path(), &[index, MOVED, "shard-0.safetensors"]);
    refuses(moved(&[1], None).path(), &[index, MOVED, "shard-1.safetensors"]);
}

/// Runs the program in a folder with one variable of its environment set.
pub fn program_with(folder: &Path, arguments: &str, (name, value): (&str, &Path)) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_circuit-tuning"));
    for variable in ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"] {
        command.env_remove(variable);
    }
    command.args(words(arguments)).current_dir(folder).env(name, value).output().unwrap()
}

#[test]
fn a_model_is_found_by_its_name_in_hugging_faces_cache() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("hf");
    let model = home.join("hub/models--someone--a-model");
    let snapshot = model.join("snapshots/0123abcd");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(model.join("refs")).unwrap();
    std::fs::write(model.join("refs/main"), "0123abcd").unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(case("gpt2-key-mean").join(file), snapshot.join(file)).unwrap();
    }
    let data = repository("tests/reference/gpt2-key-mean/examples.jsonl");
    let data = format!("--task tokens --data {}", data.display());
    let eval = |model: &str| format!("eval --model {model} {data}");
    let direct = program_with(
        folder.path(),
        &eval(&case("gpt2-key-mean").to_string_lossy()),
        ("HF_HOME", &home),
    );
    let hub = home.join("hub");
    let cache = folder.path().join("user/.cache");
    std::fs::create_dir_all(&cache).unwrap();
    std::os::unix::fs::symlink(&home, cache.join("huggingface")).unwrap();
    for variable in [
        ("HF_HOME", home.as_path()),
        ("HF_HUB_CACHE", hub.as_path()),
        ("XDG_CACHE_HOME", cache.as_path()),
        ("HOME", &folder.path().join("user")),
    ] {
        let found = program_with(folder.path(), &eval("someone/a-model"), variable);
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        assert_eq!(found.stdout, direct.stdout);
    }
    let missing = |name: &str, parts: &[&str]| {
        let output = program_with(folder.path(), &eval(name), ("HF_HOME", &home));
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), error.lines().count()), (Some(2), 1), "{error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    missing("someone/another", &["someone/another: there is no such model", "hf/hub"]);
    missing("./no/such/folder", &["./no/such/folder: there is no such model"]);
    std::fs::write(model.join("refs/main"), "4567").unwrap();
    missing("someone/a-model", &["refs/main", "snapshots/4567"]);
}

#[test]
fn an_adapter_names_its_base_model() {
    let folder = tempfile::tempdir().unwrap();
    let tune = |out: &str, flags: &str| {
        let arguments = format!(
            "tune --task agreement --selector lora --steps 1 --batch-size 2 --set task.train_examples=4 --set task.test_examples=4 --out {out} {flags}"
        );
        let output = program_with(folder.path(), &arguments, ("HF_HOME", folder.path()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        json_of(&folder.path().join(out).join("adapter/adapter_config.json"))
    };
    assert_eq!(tune("read", "")["base_model_name_or_path"], "embedded");
    let drawn = tune("drawn", "--random-init 3");
    assert_eq!(drawn["base_model_name_or_path"], Value::Null);
}
