//! config.json in transformers' two spellings. Version 5 has rotary settings in a table, `rope_parameters`, and
//! Gemma 3's windows in `layer_types`; version 4 passes these over without a word, and computes with its defaults.

use circuit_framework::{Result, refuse};
use serde_json::{Value, json};

/// Spells Gemma 3's settings as version 4 does: version 5 has a table of rotary settings for layers with a window and
/// one for those without.
pub(super) fn read(config: &mut Value, origin: &str) -> Result<()> {
    let [full, local] =
        ["full_attention", "sliding_attention"].map(|kind| config["rope_parameters"][kind].clone());
    let is_gemma3 = config["model_type"] == "gemma3_text";
    let Some(settings) = config.as_object_mut().filter(|_| is_gemma3) else {
        return Ok(());
    };
    if settings.contains_key("sliding_window_pattern") {
        settings.remove("_sliding_window_pattern");
    }
    if full.is_null() || local.is_null() {
        return Ok(());
    }
    if is_scaled(&local) {
        refuse!(
            "{origin}: config.json: `rope_parameters.sliding_attention.rope_type` is {}; what can be read is \"default\"",
            local["rope_type"]
        );
    }
    settings.remove("rope_parameters");
    settings.insert("rope_theta".to_owned(), full["rope_theta"].clone());
    settings.insert("rope_local_base_freq".to_owned(), local["rope_theta"].clone());
    settings.insert("rope_scaling".to_owned(), if is_scaled(&full) { full } else { Value::Null });
    Ok(())
}

/// Whether a table of rotary settings asks for other frequencies than those of its base.
fn is_scaled(rope: &Value) -> bool {
    !matches!(rope["rope_type"].as_str(), None | Some("default"))
}

/// The configuration that is saved: in float32, and with what either version goes by.
pub(super) fn to_save(config: &Value) -> Value {
    let mut config = config.clone();
    for key in ["torch_dtype", "dtype"] {
        if !config[key].is_null() {
            config[key] = json!("float32");
        }
    }
    let class = config["model_type"].as_str().and_then(class);
    let rope = config["rope_parameters"].clone();
    let mut more = vec![
        // llama.cpp's converter and TransformerLens go by the class.
        ("architectures", class.map_or(Value::Null, |class| json!([class]))),
        ("rope_theta", rope["rope_theta"].clone()),
        ("rope_scaling", if is_scaled(&rope) { rope.clone() } else { Value::Null }),
    ];
    match config["model_type"].as_str() {
        // llama.cpp's converter reads the older of the two names.
        Some("gpt2") => more.push(("n_ctx", config["n_positions"].clone())),
        Some("gpt_neox") => {
            let first = |values: [&Value; 2]| {
                values.into_iter().find(|value| !value.is_null()).cloned().unwrap_or_default()
            };
            let share = "partial_rotary_factor";
            more.push(("rotary_pct", first([&rope[share], &config[share]])));
            more.push(("rotary_emb_base", first([&rope["rope_theta"], &config["rope_theta"]])));
        }
        Some("gemma3_text") => more.push(("sliding_window_pattern", pattern(&config))),
        _ => {}
    }
    for (key, value) in more {
        if config[key].is_null() && !value.is_null() {
            config[key] = value;
        }
    }
    if let Some(settings) = config.as_object_mut()
        && settings.contains_key("sliding_window_pattern")
    {
        // The same under the name of an attribute, which neither version reads.
        settings.remove("_sliding_window_pattern");
    }
    config
}

/// Transformers' class of a family.
fn class(model_type: &str) -> Option<&'static str> {
    Some(match model_type {
        "gpt2" => "GPT2LMHeadModel",
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        "mistral" => "MistralForCausalLM",
        "gemma2" => "Gemma2ForCausalLM",
        "gemma3_text" => "Gemma3ForCausalLM",
        "gpt_neox" => "GPTNeoXForCausalLM",
        "olmo2" => "Olmo2ForCausalLM",
        _ => return None,
    })
}

/// The n of which every n-th layer, and no other, has no window; null where no n says so.
fn pattern(config: &Value) -> Value {
    let Some(kinds) = config["layer_types"].as_array() else {
        return config["_sliding_window_pattern"].clone();
    };
    let is_full = |kind: &Value| kind == "full_attention";
    let every = kinds.iter().position(is_full).unwrap_or(kinds.len()) + 1;
    let fits = |(layer, kind): (usize, &Value)| is_full(kind) == (layer + 1).is_multiple_of(every);
    json!(kinds.iter().enumerate().all(fits).then_some(every))
}
