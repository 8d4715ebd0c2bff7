//! The fused operations one by one, forward and backward, at GPT-2 small's and SmolLM2-135M's shapes:
//! `cargo bench --workspace --bench ops`. A whole step is timed by `circuit-tuning bench`.
#![allow(missing_docs, clippy::unwrap_used, reason = "criterion's macros; a benchmark may panic")]

use std::sync::Arc;

use candle_core::Var;
use circuit_framework::ops::activation::Activation;
use circuit_framework::ops::attention::Attention;
use circuit_framework::ops::backward::Rules;
use circuit_framework::ops::cross_entropy::{Target, weighted};
use circuit_framework::ops::norm::Norm;
use circuit_framework::ops::rotary::Rotary;
use circuit_framework::weights::parameters::{Param, ParamId};
use circuit_framework::{Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};

const BATCH: usize = 16;
const SEQ: usize = 32;
const ROWS: usize = BATCH * SEQ;

fn noise(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|index| (index as f32 * 0.618).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn param(shape: &[usize]) -> Param {
    Param { id: ParamId(0), tensor: noise(shape) }
}

/// Forward alone, and forward with the gradient of the sum.
fn both(c: &mut Criterion, name: &str, shape: &[usize], f: impl Fn(&Tensor) -> Tensor) {
    let x = noise(shape);
    c.bench_function(&format!("{name} forward"), |b| b.iter(|| f(&x)));
    let x = Var::from_tensor(&x).unwrap();
    c.bench_function(&format!("{name} forward and backward"), |b| {
        b.iter(|| f(&x).sum_all().unwrap().backward().unwrap())
    });
}

fn norms(c: &mut Criterion) {
    for (name, d, centred) in [("layer norm", 768, true), ("RMS norm", 576, false)] {
        let bias = centred.then(|| param(&[1, d]));
        let norm = Norm { weight: param(&[1, d]), bias, epsilon: 1e-5, offset: 0.0 };
        let (x, g) = (noise(&[ROWS, d]), noise(&[ROWS, d]));
        c.bench_function(&format!("{name} forward"), |b| b.iter(|| norm.forward(&x).unwrap()));
        c.bench_function(&format!("{name} backward"), |b| {
            b.iter(|| norm.pull_back(&x, &g, Rules::default()).unwrap())
        });
    }
}

fn attentions(c: &mut Criterion) {
    let frequencies: Vec<f64> = (0..32).map(|i| 100_000f64.powf(-f64::from(i) / 32.0)).collect();
    let rotary = Some(Arc::new(Rotary::new(&frequencies, SEQ)));
    for (name, heads, kv_heads, rotary) in
        [("attention", 12, 12, None), ("grouped attention", 9, 3, rotary)]
    {
        let attention = Attention { rotary, ..Attention::new(heads, kv_heads, 64) };
        both(c, name, &[BATCH, SEQ, attention.width()], |x| attention.forward(x).unwrap());
    }
}

fn activations(c: &mut Criterion) {
    both(c, "GELU", &[ROWS, 3072], |x| Activation::GeluTanh.apply(x).unwrap());
    both(c, "SwiGLU", &[ROWS, 2 * 1536], |x| Activation::Swiglu.apply(x).unwrap());
}

fn cross_entropies(c: &mut Criterion) {
    let (hidden, unembedding) = (noise(&[ROWS, 768]), noise(&[50257, 768]));
    let targets: Vec<Target> =
        (0..ROWS).map(|row| Target { token: row as u32, weight: 1.0 }).collect();
    let mut group = c.benchmark_group("unembedding and cross-entropy");
    group.sample_size(10);
    for with_gradient in [false, true] {
        group.bench_function(format!("gradient: {with_gradient}"), |b| {
            b.iter(|| weighted(&hidden, &unembedding, None, &targets, with_gradient).unwrap())
        });
    }
    group.finish();
}

criterion_group!(ops, norms, attentions, activations, cross_entropies);
criterion_main!(ops);
