//! Weights kept in bfloat16: a model computes what a float32 model of the same values computes, and rows
//! that are tuned have float32 masters, so that updates too small for bfloat16 are not lost.

use circuit_framework::attribution::{Discovery, Positions};
use circuit_framework::candle_core::DType;
use circuit_framework::model::Precision;
use circuit_framework::ops::composed::everywhere;
use circuit_framework::tuning::{Algorithm, Tuning};
use circuit_framework::{Model, Tensor};
use proptest::prelude::*;

use crate::properties::{distance, find, geometry_with_edges, tune};
use crate::support::{Geometry, examples, few};

/// Two models of the same values, in bfloat16 and in float32.
fn models(geometry: &Geometry) -> [Box<dyn Model>; 2] {
    let narrow = geometry.model_in(3, Precision::Bfloat16);
    let wide = geometry.model_in(3, Precision::Float32);
    let values = narrow.parameters().iter().map(|(_, p)| p.tensor.to_dtype(DType::F32).unwrap());
    wide.parameters().restore(&values.collect::<Vec<_>>()).unwrap();
    [narrow, wide]
}

/// The matrices' values, rounded to bfloat16.
fn rounded(model: &dyn Model) -> Vec<f32> {
    let matrices = model.parameters().iter().filter(|(_, p)| p.rows() > 1 && p.width() > 1);
    let values = |tensor: &Tensor| -> Vec<f32> {
        let rounded = tensor.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        rounded.flatten_all().unwrap().to_vec1().unwrap()
    };
    matrices.flat_map(|(_, parameter)| values(&parameter.tensor)).collect()
}

fn unlike(a: &[f32], b: &[f32]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}

proptest! {
    #![proptest_config(few(16))]

    #[test]
    fn scores_are_those_of_float32_weights_of_the_same_values(
        geometry in geometry_with_edges(),
        examples in examples(2..4),
        positions in prop::sample::select(vec![Positions::Key, Positions::All]),
        metric in prop::sample::select(vec!["logit_diff", "log_prob_diff", "loss"]),
    ) {
        let options = Discovery { positions, ..Discovery::default() };
        let [narrow, wide] = models(&geometry);
        let scores = |model: &dyn Model| find(model, &examples, metric, &options);
        prop_assert!(distance(&scores(&*narrow), &scores(&*wide)) < 1e-5);
        let composed = |model: &dyn Model| everywhere(|| scores(model));
        prop_assert!(distance(&composed(&*narrow), &composed(&*wide)) < 1e-5);
    }

    /// A step moves a weight by a tenth of what bfloat16 shows at its size; twenty move it as far as they
    /// move a float32 weight.
    #[test]
    fn small_updates_add_up(geometry in geometry_with_edges(), examples in examples(2..4), composed in any::<bool>()) {
        let [narrow, wide] = models(&geometry);
        let before = rounded(&*narrow);
        let tuning = Tuning {
            steps: Some(20), batch_size: 2, optimizer: Algorithm::AdamW, lr: 1e-4, shuffle: false, ..Tuning::default()
        };
        let tune = |model: &dyn Model| tune(model, &examples, "all", "loss", &tuning).unwrap();
        tune(&*wide);
        match composed {
            true => everywhere(|| tune(&*narrow)),
            false => tune(&*narrow),
        };
        let (after, expected) = (rounded(&*narrow), rounded(&*wide));
        let moved = unlike(&expected, &before);
        // Where a gradient is next to nothing its sign is rounding's, so the weights themselves may differ.
        let still = |index: &usize| expected[*index] != before[*index] && after[*index] == before[*index];
        let lost = (0..before.len()).filter(still).count();
        prop_assert!(lost * 2 < moved, "{lost} of {moved} weights that move in float32 do not");
    }
}
