//! Generation against the slow way: a whole forward pass for every token, one prompt at a time. And
//! chat templates against Hugging Face's rendering of them.

use candle_core::DType;
use circuit_framework::data::chat::Message;
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::ops::composed::everywhere;
use circuit_framework::peers::Alone;
use circuit_framework::{Evaluation, Generation, Model, Pass, Setting, Tensor, progress};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Family, Geometry, VOCABULARY, few, geometries, repository};

const CONTEXT: usize = 16;

fn evaluation(model: &dyn Model, batch_size: usize) -> Evaluation<'_> {
    Evaluation {
        model,
        setting: Setting { tokenizer: None, context: CONTEXT, seed: 7, counterfactuals: false },
        batch_size,
        report: &progress::silent,
        peers: &Alone,
        folder: None,
        untuned: None,
        circuit: None,
    }
}

/// The likeliest tokens after a prompt, without a cache.
fn greedy(model: &dyn Model, prompt: &[u32], most: usize, stop: u32) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    while tokens.len() < CONTEXT && tokens.len() < prompt.len() + most {
        let input = Tensor::new(&tokens[..], &model.device()).unwrap().unsqueeze(0).unwrap();
        let readout = model.forward(&Pass::forward_only(), &input).unwrap();
        let logits = readout.logits(&[tokens.len() as u32 - 1]).unwrap().squeeze(0).unwrap();
        let logits: Vec<f64> = logits.to_dtype(DType::F64).unwrap().to_vec1().unwrap();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        if best as u32 == stop {
            break;
        }
        tokens.push(best as u32);
    }
    tokens.split_off(prompt.len())
}

proptest! {
    #![proptest_config(few(48))]

    #[test]
    fn generation_equals_the_slow_way_for_any_batch(
        geometry in geometries(),
        seed in any::<u64>(),
        prompts in prop::collection::vec(
            prop::collection::vec(0..VOCABULARY as u32, 1..CONTEXT), 1..6),
        most in 1..9usize,
        stop in 0..VOCABULARY as u32,
        batch_size in 1..4usize,
    ) {
        let model = geometry.model_in_float64(seed);
        let options = Generation { max_new_tokens: most, temperature: 0.0 };
        let written =
            evaluation(&*model, batch_size).generate(&prompts, &options, &[stop]).unwrap();
        // With the operations as they are on a GPU too.
        let composed = everywhere(|| {
            evaluation(&*model, batch_size).generate(&prompts, &options, &[stop])
        });
        prop_assert_eq!(&composed.unwrap(), &written);
        for (prompt, written) in prompts.iter().zip(&written) {
            prop_assert_eq!(written, &greedy(&*model, prompt, most, stop));
        }
    }

    #[test]
    fn samples_depend_on_the_seed_and_not_on_the_batch(
        geometry in geometries(),
        seed in any::<u64>(),
        prompts in prop::collection::vec(
            prop::collection::vec(0..VOCABULARY as u32, 1..8), 2..6),
    ) {
        let model = geometry.model_in_float64(seed);
        let options = Generation { max_new_tokens: 8, temperature: 1.0 };
        let sample = |batch_size: usize, seed: u64| {
            let mut evaluation = evaluation(&*model, batch_size);
            evaluation.setting.seed = seed;
            evaluation.generate(&prompts, &options, &[]).unwrap()
        };
        prop_assert_eq!(sample(1, 3), sample(4, 3));
        prop_assert!((4..9).any(|seed| sample(4, seed) != sample(4, 3)));
    }
}

#[test]
fn more_tokens_than_the_context_has_are_refused() {
    let geometry = Geometry {
        family: Family::Llama,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        d_head: 2,
        mlp_heads: 1,
        split_mlp: false,
        tied: true,
    };
    let model = geometry.model(0);
    let generate = |max_new_tokens: usize| {
        let options = Generation { max_new_tokens, temperature: 0.0 };
        evaluation(&*model, 1).generate(&[vec![1]], &options, &[])
    };
    assert_eq!(generate(CONTEXT - 1).unwrap()[0].len(), CONTEXT - 1);
    for many in [CONTEXT, usize::MAX] {
        let error = generate(many).unwrap_err().to_string();
        assert!(error.contains(&format!("max_new_tokens is {many}")), "{error}");
        assert!(error.contains("give at most 15"), "{error}");
    }
}

/// A tokenizer of two special tokens, with a chat template.
fn templated(template: &str) -> Tokenizer {
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null, "added_tokens": [],
        "model": { "type": "WordLevel", "vocab": { "<s>": 0, "</s>": 1 }, "unk_token": "<s>" },
    });
    Tokenizer {
        inner: json.to_string().parse().unwrap(),
        beginning: Some(0),
        end: Some(1),
        add_beginning: true,
        chat_template: Some(template.to_owned()),
    }
}

#[test]
fn chat_templates_render_as_hugging_face_renders_them() {
    let file = std::fs::read_to_string(repository("tests/fixtures/chat_templates.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    let text = |value: &Value, key: &str| value[key].as_str().unwrap().to_owned();
    for case in file["cases"].as_array().unwrap() {
        let tokenizer = templated(&text(case, "template"));
        let turns: Vec<(String, String)> = (case["messages"].as_array().unwrap().iter())
            .map(|message| (text(message, "role"), text(message, "content")))
            .collect();
        let messages: Vec<Message> =
            turns.iter().map(|(role, content)| Message { role, content }).collect();
        let prompted = case["add_generation_prompt"].as_bool().unwrap();
        let rendered = tokenizer.render(&messages, prompted);
        let name = text(case, "template_name");
        match case["expected"].as_str() {
            Some(expected) => assert_eq!(rendered.unwrap(), expected, "{name}"),
            None => {
                let error = rendered.unwrap_err().to_string();
                assert!(error.contains("roles must alternate"), "{error}");
            }
        }
    }
}
