//! Tuning that goes on from a state in a file: the same bits as tuning that was never ended, for any family,
//! optimizer and precision, with adapters, smoothing and a schedule, fused and composed.

use circuit_framework::attribution::{Discovery, Smoothing};
use circuit_framework::model::Precision;
use circuit_framework::ops::composed::everywhere;
use circuit_framework::peers::Alone;
use circuit_framework::tuning::{Algorithm, Event, Tuned, Tuner, Tuning};
use circuit_framework::{Error, Example, Model, ParamSelector, PatchingMetric, Pruning, Result};
use proptest::prelude::*;

use crate::support::{examples, few, geometries, plugin, weights};

const STEPS: usize = 4;

/// Weights, and with adapters theirs.
fn left(model: &dyn Model, tuned: &Tuned) -> Vec<Vec<f64>> {
    let mut all: Vec<Vec<f64>> = weights(model)
        .into_values()
        .map(|values| values.into_iter().map(f64::from).collect())
        .collect();
    let adapters = tuned.adapters.iter().flat_map(|adapters| adapters.parameters().iter());
    all.extend(adapters.map(|(_, parameter)| {
        let values = parameter.tensor.flatten_all().unwrap();
        values.to_dtype(circuit_framework::candle_core::DType::F64).unwrap().to_vec1().unwrap()
    }));
    all
}

proptest! {
    #![proptest_config(few(16))]

    #[test]
    fn a_state_goes_on_to_the_same_bits(
        geometry in geometries(),
        examples in examples(3..6),
        optimizer in prop::sample::select(vec![Algorithm::Sgd, Algorithm::Adam, Algorithm::AdamW]),
        dtype in prop::sample::select(vec![Precision::Float32, Precision::Float64, Precision::Bfloat16]),
        selector in prop::sample::select(vec![
            ("nodes", ""), ("random", ""), ("lora", "rank = 1\ndropout = 0.4"),
        ]),
        smooths in any::<bool>(),
        as_on_a_gpu in any::<bool>(),
        ended in 1..STEPS,
    ) {
        let metric: Box<dyn PatchingMetric> = plugin("logit_diff", "");
        let selector: Box<dyn ParamSelector> = plugin(selector.0, selector.1);
        let smoothing = smooths.then_some(Smoothing { beta1: 0.5, beta2: 0.5 });
        let tuning = Tuning {
            steps: Some(STEPS), batch_size: 2, optimizer, smoothing, lr: 0.01, ..Tuning::default()
        };
        let (discovery, pruning) = (Discovery::default(), Pruning { top_n: Some(3), ..Pruning::default() });
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.safetensors");
        let (metric, selector) = (&*metric, &*selector);
        macro_rules! tuner {
            ($model:expr) => {
                Tuner {
                    model: $model,
                    metric,
                    selector,
                    discovery: &discovery,
                    pruning: &pruning,
                    tuning: &tuning,
                    matched: None,
                    seed: 5,
                    peers: &Alone,
                }
            };
        }
        let all = || -> [Vec<Vec<f64>>; 2] {
            let models = [(); 3].map(|()| geometry.model_in(7, dtype));
            let [model, other, third] = models.each_ref().map(|model| &**model);
            let whole = tuner!(model).run(&examples, &mut |_| Ok(())).unwrap();
            let whole = left(model, &whole);
            let stopped = tuner!(other).run(&examples, &mut |event| match event {
                Event::Step { state, .. } if state.step() == ended => {
                    state.write(&file, other, true)?;
                    Err(Error::Stopped)
                }
                _ => Ok(()),
            });
            assert!(matches!(stopped, Err(Error::Stopped)));
            let resumed = resume(&tuner!(third), &examples, &file).unwrap();
            [whole, left(third, &resumed)]
        };
        let [whole, resumed] = if as_on_a_gpu { everywhere(all) } else { all() };
        prop_assert_eq!(whole, resumed);
    }
}

fn resume(tuner: &Tuner, examples: &[Example], file: &std::path::Path) -> Result<Tuned> {
    tuner.resume(examples, Some(file), &mut |_| Ok(()))
}
