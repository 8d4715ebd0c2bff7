//! What memory a step will take, reckoned from config.json, held against what one took.

use serde_json::{Value, json};

use crate::command_line::{refuses, succeeds, words};

fn shown(folder: &std::path::Path, line: &str) -> Value {
    serde_json::from_str(&succeeds(folder, &words(line))).unwrap()
}

/// A folder with a model's config.json.
fn folder_of(config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

#[test]
fn a_plan_is_within_a_tenth_of_the_peak() {
    let gpt2 = json!({
        "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12,
        "n_head": 12, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
    });
    let folder = folder_of(&gpt2);
    let bench = "bench --model config.json --random-init 0 --nodes head,mlp --json";
    for (line, edges) in
        [("--batch-size 16 --seq-len 32", 500), ("--batch-size 8 --seq-len 128", 20)]
    {
        let line = format!("{bench} {line} --top-n {edges}");
        let measured = shown(folder.path(), &format!("{line} --steps 1"));
        let share = measured["tuned_share_of_nodes"].as_f64().unwrap();
        let plan = shown(folder.path(), &format!("{line} --plan --tuned-share {share}"));
        let peak = measured["peak_rss_bytes"].as_u64().unwrap() as f64;
        let number = |name: &str| plan[name].as_u64().unwrap() as f64;
        let reckoned = number("discovery").max(number("tuning"));
        assert_eq!(number("parameters"), 124_439_808.0);
        assert!(
            (reckoned / peak - 1.0).abs() < 0.1,
            "{reckoned} reckoned, {peak} measured: {plan}"
        );
    }
}

/// Llama 3.1 8B: 32 GB that no test machine need have.
#[test]
fn a_plan_of_what_has_no_room_takes_none() {
    let llama = json!({
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "tie_word_embeddings": false, "hidden_act": "silu",
    });
    let folder = folder_of(&llama);
    let plan = |more: &str| {
        shown(folder.path(), &format!("bench --plan --model config.json --json {more}"))
    };
    let whole = plan("");
    assert_eq!(whole["parameters"], 8_030_261_248u64);
    assert_eq!(whole["weights"], 4 * 8_030_261_248u64);
    let part = plan("--tuned-share 0.05 --dtype bfloat16");
    let number = |plan: &Value, name: &str| plan[name].as_u64().unwrap();
    assert!(number(&part, "tuning") < number(&whole, "tuning") / 3, "{part} {whole}");
    let narrow = plan(
        "--set discovery.activation_checkpointing=true --set tuning.activation_checkpointing=true",
    );
    assert!(number(&narrow, "activations") < number(&whole, "activations") / 3, "{narrow}");
    refuses(folder.path(), &words("bench --plan --model config.json --tuned-share 2"), &["0 to 1"]);
}
