//! Metrics against their definitions, computed the slow way from the logits.

use circuit_framework::pass::scalar;
use circuit_framework::peers::Alone;
use circuit_framework::{
    Batch, Evaluation, Example, MeasuringMetric, Model, Pass, PatchingMetric, Setting, Tensor,
    progress,
};
use proptest::prelude::*;

use crate::support::{examples, few, geometries, plugin};

/// log p of every token at a position of an example, one example at a time.
fn log_probs(model: &dyn Model, example: &Example, position: usize) -> Vec<f64> {
    let tokens = Tensor::new(&example.tokens[..], &model.device()).unwrap().unsqueeze(0).unwrap();
    let readout = model.forward(&Pass::forward_only(), &tokens).unwrap();
    let logits = readout.logits(&[position as u32]).unwrap().squeeze(0).unwrap();
    let logits: Vec<f64> = logits.to_vec1().unwrap();
    let normaliser = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
    logits.iter().map(|logit| logit - normaliser).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// A number of a key: of log-probabilities by token, and the right and wrong answers.
type OfKey<'a> = &'a dyn Fn(&[f64], &[u32], &[u32]) -> f64;

/// The mean over examples of the mean over an example's keys of a number.
fn over_keys(model: &dyn Model, examples: &[Example], value: OfKey) -> f64 {
    mean(examples.iter().map(|example| {
        mean(example.keys.iter().map(|key| {
            let log_probs = log_probs(model, example, key.position - 1);
            value(&log_probs, &key.correct, &key.wrong)
        }))
    }))
}

fn value(model: &dyn Model, metric: &dyn PatchingMetric, examples: &[Example]) -> f64 {
    let batch = Batch::new(examples.iter().collect(), &model.device()).unwrap();
    let readout = model.forward(&Pass::forward_only(), &batch.tokens).unwrap();
    let weight: f64 = examples.iter().map(|example| metric.weight(example)).sum();
    scalar(&metric.sum(&readout, &batch).unwrap()).unwrap() / weight
}

fn evaluation<'a>(model: &'a dyn Model, untuned: Option<&'a [Tensor]>) -> Evaluation<'a> {
    Evaluation {
        model,
        setting: Setting {
            tokenizer: None,
            context: model.context(),
            seed: 0,
            counterfactuals: false,
        },
        batch_size: 2,
        report: &progress::silent,
        peers: &Alone,
        folder: None,
        untuned,
        circuit: None,
    }
}

/// Puts other values into one parameter.
fn shift(model: &dyn Model, parameter: usize, entry: usize, by: f64) {
    let (_, parameter) = model.parameters().iter().nth(parameter).unwrap();
    let mut values: Vec<f64> = parameter.tensor.flatten_all().unwrap().to_vec1().unwrap();
    values[entry] += by;
    let values = Tensor::from_vec(values, parameter.tensor.shape(), &model.device()).unwrap();
    parameter.tensor.slice_set(&values, 0, 0).unwrap();
}

proptest! {
    #![proptest_config(few(24))]

    #[test]
    fn values_are_those_of_the_definitions(
        geometry in geometries(),
        seed in any::<u64>(),
        examples in examples(1..4),
    ) {
        let model = geometry.model_in_float64(seed);
        // A logit is a log-probability up to a constant, which the difference loses.
        let logit = |p: &[f64], set: &[u32]| mean(set.iter().map(|&token| p[token as usize]));
        let prob = |p: &[f64], set: &[u32]| set.iter().map(|&token| p[token as usize].exp()).sum::<f64>();
        let over = |value: OfKey| over_keys(&*model, &examples, value);
        let expected: [(&str, f64); 4] = [
            ("logit_diff", over(&|p, right, wrong| logit(p, right) - logit(p, wrong))),
            ("log_prob_diff", over(&|p, right, wrong| (prob(p, right) / prob(p, wrong)).ln())),
            ("prob_diff", over(&|p, right, wrong| prob(p, right) - prob(p, wrong))),
            ("answer_log_prob", over(&|p, right, _| prob(p, right).ln())),
        ];
        for (name, expected) in expected {
            let metric: Box<dyn PatchingMetric> = plugin(name, "");
            let got = value(&*model, &*metric, &examples);
            prop_assert!((got - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{name}: {got}, not {expected}");
        }
    }

    #[test]
    fn report_metrics_are_those_of_the_definitions(
        geometry in geometries(),
        seed in any::<u64>(),
        examples in examples(1..5),
    ) {
        let model = geometry.model_in_float64(seed);
        let keys = || examples.iter().flat_map(|example| example.keys.iter().map(move |key| (example, key)));
        let at_keys = || -> Vec<Vec<f64>> {
            keys().map(|(example, key)| log_probs(&*model, example, key.position - 1)).collect()
        };
        let accuracy: Box<dyn MeasuringMetric> = plugin("accuracy", "");
        let hits = mean(keys().zip(at_keys()).map(|((_, key), p)| {
            let best = key.correct.iter().map(|&token| p[token as usize]).fold(f64::MIN, f64::max);
            f64::from(p.iter().all(|&other| other <= best))
        }));
        prop_assert_eq!(accuracy.measure(&evaluation(&*model, None), &examples).unwrap(), hits);

        // Among a key's answers alone: the best right one beats every wrong one.
        let figures = evaluation(&*model, None).language_modelling(&examples).unwrap();
        let wins = mean(keys().zip(at_keys()).map(|((_, key), p)| {
            let best = |set: &[u32]| set.iter().map(|&token| p[token as usize]).fold(f64::MIN, f64::max);
            f64::from(best(&key.correct) > best(&key.wrong))
        }));
        prop_assert_eq!(figures["right_share"], wins);

        let kl: Box<dyn MeasuringMetric> = plugin("kl_divergence", "");
        prop_assert_eq!(kl.measure(&evaluation(&*model, None), &examples).unwrap(), 0.0);
        let untuned = model.parameters().snapshot().unwrap();
        let before = at_keys();
        for parameter in 0..model.parameters().len() {
            shift(&*model, parameter, 0, 0.7);
        }
        let after = at_keys();
        let expected = mean(before.iter().zip(&after).map(|(before, after)| {
            before.iter().zip(after).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
        }));
        let got = kl.measure(&evaluation(&*model, Some(&untuned)), &examples).unwrap();
        prop_assert!((got - expected).abs() < 1e-9 * (1.0 + expected), "{got}, not {expected}");
        // The model is as it was tuned.
        prop_assert_eq!(at_keys(), after);
    }
}
