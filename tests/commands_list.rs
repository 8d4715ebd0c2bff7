//! `list`: what is registered, and what each model has.

use serde_json::Value;

use crate::command_line::{succeeds, words};

#[test]
fn list_shows_everything_registered() {
    let folder = tempfile::tempdir().unwrap();
    let shown = succeeds(folder.path(), &["list"]);
    let names: Vec<&str> = (shown.lines())
        .filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(
        names,
        [
            "gemma2",
            "gemma3_text",
            "gpt2",
            "gpt_neox",
            "llama",
            "mistral",
            "olmo2",
            "qwen2",
            "qwen3",
            "agreement",
            "arithmetic",
            "bias",
            "greater_than",
            "ioi",
            "logic",
            "math",
            "mcqa",
            "mixture",
            "multiple_choice",
            "perplexity",
            "reading",
            "tokens",
            "answer_log_prob",
            "log_prob_diff",
            "logit_diff",
            "loss",
            "prob_diff",
            "accuracy",
            "kl_divergence",
            "clean-corrupted",
            "eap",
            "eap-ig",
            "eap-ig-activations",
            "exact",
            "relp",
            "all",
            "complement",
            "lora",
            "modules",
            "nodes",
            "random",
            "random_parameters",
            "static",
            "embedded",
            "embedded-analyses",
            "embedded-model",
            "gemma3-ioi",
            "smollm2-agreement",
            "smollm2-bias",
            "smollm2-controls",
            "smollm2-disagreement",
            "smollm2-forget",
            "smollm2-ioi",
            "smollm2-logic",
            "smollm2-math",
            "smollm2-reading",
        ]
    );
    assert!(shown.contains("task.direction = \"agreement\""), "{shown}");
}

/// Every architecture's features are read off the model of its example; GGUF's name is where such files can be read.
#[test]
fn list_shows_what_each_model_has() {
    let folder = tempfile::tempdir().unwrap();
    let listed = succeeds(folder.path(), &words("list models --json"));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let models = listed["models"].as_array().unwrap();
    let shown: Vec<String> = (models.iter())
        .map(|model| {
            let features: Vec<&str> =
                model["features"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            let (name, gguf) = (model["name"].as_str().unwrap(), model["gguf"].as_str());
            format!("{name} ({}): {}", gguf.unwrap_or("no GGUF"), features.join(", "))
        })
        .collect();
    assert_eq!(
        shown,
        [
            "gemma2 (gemma2): rotary positions, grouped-query attention, sliding windows in some layers, \
             a soft cap on scores, a soft cap on logits, RMS norms before and after sub-layers, gated MLPs, \
             scaled embeddings",
            "gemma3_text (gemma3): rotary positions, of other frequencies where there is a window, \
             grouped-query attention, norms on each head's queries and keys, sliding windows in some layers, \
             RMS norms before and after sub-layers, gated MLPs, scaled embeddings",
            "gpt2 (no GGUF): learned positions, biases on queries, keys and values, layer norms",
            "gpt_neox (gptneox): rotary positions on a part of each head, biases on queries, keys and values, \
             layer norms, attention and MLP side by side",
            "llama (llama): rotary positions, grouped-query attention, RMS norms, gated MLPs",
            "mistral (no GGUF): rotary positions, grouped-query attention, sliding windows, RMS norms, gated MLPs",
            "olmo2 (olmo2): rotary positions, grouped-query attention, \
             norms on all heads' queries and keys together, RMS norms after sub-layers, gated MLPs",
            "qwen2 (qwen2): rotary positions, grouped-query attention, biases on queries, keys and values, \
             sliding windows in some layers, RMS norms, gated MLPs",
            "qwen3 (qwen3): rotary positions, grouped-query attention, norms on each head's queries and keys, \
             sliding windows in some layers, RMS norms, gated MLPs",
        ]
    );
    let shown = succeeds(folder.path(), &words("list models"));
    assert!(shown.contains("files: Hugging Face folders, GGUF (`gemma3`)"), "{shown}");
    assert!(shown.contains("All of them: generation with a cache"), "{shown}");
}
