//! Where heads look, held against each example alone on small models of every family.

use std::sync::{Arc, Mutex};

use circuit_framework::evaluation::ablation::Ablation;
use circuit_framework::graph::Node;
use circuit_framework::{Example, Pass, Tensor};
use proptest::prelude::*;

use crate::analysis::{alone, analyse, cases, close, model_of, vector};
use crate::support::few;

proptest! {
    #![proptest_config(few(24))]

    #[test]
    fn shares_of_attention_are_those_of_each_example_alone((geometry, examples, seed, batch_size) in cases()) {
        let model = model_of(&geometry, seed);
        let found = analyse(&*model, &examples, batch_size, Ablation::Zero, |a| a.attention(&[], None, 1).unwrap());
        let heads: Vec<Node> =
            model.graph().writers().iter().copied().filter(|n| matches!(n, Node::Head { .. })).collect();
        prop_assert_eq!(found.heads.iter().map(|head| head.node).collect::<Vec<_>>(), heads.clone());
        for (name, span) in [("mark", Some(vec![0, 1])), ("(first)", Some(vec![0])), ("(self)", None)] {
            let having: Vec<&Example> =
                examples.iter().filter(|e| name != "mark" || e.spans.contains_key(name)).collect();
            prop_assert_eq!(found.spans[name], having.len());
            for (index, head) in found.heads.iter().enumerate() {
                let (mut share, mut largest) = (0.0, 0.0);
                for example in &having {
                    let seen: Arc<Mutex<Vec<Tensor>>> = Arc::default();
                    let shown = seen.clone();
                    let pass = Pass::forward_only().on_attention(move |_, p| {
                        shown.lock().unwrap().push(p.copy().unwrap());
                        Ok(())
                    });
                    model.forward(&pass, &alone(example, &*model).tokens).unwrap();
                    let p = &seen.lock().unwrap()[index / geometry.heads];
                    for key in &example.keys {
                        let query = key.position - 1;
                        let weights = vector(&p.get(0).unwrap().get(index % geometry.heads).unwrap().get(query).unwrap());
                        let span = span.clone().unwrap_or(vec![query]);
                        let n = (example.keys.len() * having.len()) as f64;
                        share += span.iter().filter(|&&t| t <= query).map(|&t| weights[t]).sum::<f64>() / n;
                        let best = (0..weights.len()).fold(0, |b, i| if weights[i] > weights[b] { i } else { b });
                        largest += f64::from(span.contains(&best)) / n;
                    }
                }
                prop_assert!(close(head.looks[name].share, share), "{} {name}", head.node);
                prop_assert!(close(head.looks[name].largest, largest), "{} {name}", head.node);
            }
        }
        // What stands at the key or behind it is seen by none.
        let sees_last = examples.iter().any(|e| e.spans.get("last").is_some_and(|s| e.keys.iter().any(|k| s[0] < k.position)));
        prop_assert_eq!(found.spans.contains_key("last"), sees_last);
        prop_assert_eq!(found.patterns.len(), examples[0].keys.len());
        for (pattern, key) in found.patterns.iter().zip(&examples[0].keys) {
            prop_assert_eq!(&pattern.tokens[..], &examples[0].tokens[..key.position]);
            prop_assert!(pattern.heads.values().all(|weights| close(weights.iter().sum(), 1.0)));
        }
    }

    #[test]
    fn heads_look_from_a_span_as_from_a_key_that_its_last_token_predicts((geometry, examples, seed, batch_size) in cases()) {
        let model = model_of(&geometry, seed);
        let marked: Vec<Example> = examples.iter().filter(|e| e.spans.contains_key("mark")).cloned().collect();
        let keyed: Vec<Example> = marked.iter().map(|example| {
            let mut example = example.clone();
            example.keys.truncate(1);
            example.keys[0].position = example.spans["mark"].last().unwrap() + 1;
            example
        }).collect();
        let of = |examples: &[Example], from: Option<&str>| {
            analyse(&*model, examples, batch_size, Ablation::Zero, |a| a.attention(&[], from, 1).unwrap())
        };
        let (found, expected) = (of(&examples, Some("mark")), of(&keyed, None));
        prop_assert_eq!(&found.spans, &expected.spans);
        prop_assert_eq!(found.heads.len(), expected.heads.len());
        for (found, expected) in found.heads.iter().zip(&expected.heads) {
            for (name, look) in &expected.looks {
                prop_assert!(close(found.looks[name].share, look.share), "{} {name}", found.node);
                prop_assert!(close(found.looks[name].largest, look.largest), "{} {name}", found.node);
            }
        }
        prop_assert_eq!(found.patterns.len(), 1);
        prop_assert_eq!(&found.patterns[0].tokens, &expected.patterns[0].tokens);
        let other = analyse(&*model, &examples, batch_size, Ablation::Zero, |a| a.attention(&[], Some("other"), 0));
        prop_assert!(other.unwrap_err().to_string().contains("last, mark"));
    }
}
