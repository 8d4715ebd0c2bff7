//! Every operation's hand-written gradient against central differences in float64, and its value
//! against the composed operation's, over random shapes.

mod attention;

use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::*;

use super::activation::Activation;
use super::backward::Rules;
use super::cap;
use super::composed::everywhere;
use super::cross_entropy::{self, Target};
use super::differentiable;
use super::norm::Norm;
use super::weight;
use crate::weights::parameters::{Param, ParamId};

/// A reproducible tensor without a pattern that an operation could hide behind.
fn noise(shape: &[usize], seed: f64) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f64> = (0..count)
        .map(|index| (12.9898 * (index as f64 + 1.0) + 78.233 * seed).sin() * 1.7)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
    assert_eq!(a.dims(), b.dims());
    for (a, b) in values(a).into_iter().zip(values(b)) {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{a} for {b}");
    }
}

/// The gradient of Σ w ⊙ f(x), for a noisy w, against central differences.
fn gradient_is_right(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) {
    const STEP: f64 = 1e-5;
    let weights = noise(f(x).unwrap().dims(), 0.3);
    let sum = |x: &Tensor| (f(x).unwrap() * &weights).unwrap().sum_all().unwrap();
    let var = Var::from_tensor(x).unwrap();
    let gradients = sum(var.as_tensor()).backward().unwrap();
    let found = values(gradients.get(&var).expect("a gradient"));
    let at = values(x);
    for (index, found) in found.iter().enumerate() {
        let moved = |step: f64| {
            let mut at = at.clone();
            at[index] += step;
            let x = Tensor::from_vec(at, x.shape(), &Device::Cpu).unwrap();
            sum(&x).to_scalar::<f64>().unwrap()
        };
        let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        assert!(
            (found - expected).abs() <= 1e-6 * (1.0 + expected.abs()),
            "{found} for {expected}"
        );
    }
}

/// Value and gradient of an operation, fused and composed, of an input as it is and strided.
fn agrees_with_composed(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) {
    let composed = everywhere(|| f(x)).unwrap();
    close(&f(x).unwrap(), &composed, 1e-12);
    let last = x.rank() - 1;
    let strided = x.transpose(0, last).unwrap().contiguous().unwrap().transpose(0, last).unwrap();
    close(&f(&strided).unwrap(), &composed, 1e-12);
    gradient_is_right(x, &f);
    everywhere(|| gradient_is_right(x, &f));
}

/// A pull-back, fused and composed, against central differences of Σ w ⊙ f(x), for a noisy w. Of f, which
/// holds what a rule takes for a constant, they are exact.
fn pulls_back(
    x: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor>,
    pull_back: impl Fn(&Tensor) -> Result<Tensor>,
) {
    let gradient = noise(f(x).unwrap().dims(), 0.3);
    let found = pull_back(&gradient).unwrap();
    close(&everywhere(|| pull_back(&gradient)).unwrap(), &found, 1e-12);
    let at = values(x);
    let sum = |at: Vec<f64>| {
        let x = Tensor::from_vec(at, x.shape(), &Device::Cpu).unwrap();
        (f(&x).unwrap() * &gradient).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
    };
    for (index, found) in values(&found).into_iter().enumerate() {
        let moved = |by: f64| {
            let mut at = at.clone();
            at[index] += by;
            sum(at)
        };
        let expected = moved(0.5) - moved(-0.5);
        assert!(
            (found - expected).abs() <= 1e-9 * (1.0 + expected.abs()),
            "{found} for {expected}"
        );
    }
}

fn rules() -> impl Strategy<Value = Rules> {
    any::<[bool; 3]>().prop_map(|[norm_scales, activation_factors, attention]| Rules {
        norm_scales,
        activation_factors,
        attention,
    })
}

const ALL_RULES: Rules = Rules { norm_scales: true, activation_factors: true, attention: true };

fn param(tensor: Tensor) -> Param {
    Param { id: ParamId(0), tensor }
}

fn norm(d: usize, centred: bool, offset: f64) -> Norm {
    let weight = param(noise(&[1, d], 0.7));
    let bias = centred.then(|| param(noise(&[1, d], 0.9)));
    Norm { weight, bias, epsilon: 1e-5, offset }
}

fn differentiable_norm(norm: &Norm, x: &Tensor) -> Result<Tensor> {
    let (input, norm) = (x.detach(), norm.clone());
    let output = norm.forward(&input)?;
    differentiable(x, output, move |gradient| norm.pull_back(&input, gradient, Rules::default()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..Default::default() })]

    #[test]
    fn norms(
        rows in 1..4usize, d in 2..37usize, centred in any::<bool>(), offset in 0..2u8, seed in 0f64..9.0,
    ) {
        let (norm, x) = (norm(d, centred, f64::from(offset)), noise(&[rows, d], seed));
        agrees_with_composed(&x, |x| differentiable_norm(&norm, x));
        // The parameters' gradients, by candle's own backward pass through the composed form.
        let (weight, bias) = (Var::from_tensor(&norm.weight.tensor).unwrap(), Var::from_tensor(&noise(&[1, d], 0.9)).unwrap());
        let with_vars = Norm {
            weight: param(weight.as_tensor().clone()),
            bias: centred.then(|| param(bias.as_tensor().clone())),
            ..norm.clone()
        };
        let g = noise(&[rows, d], 0.1);
        let bias_var = with_vars.bias.as_ref().map(|bias| &bias.tensor);
        let gain = with_vars.gain().unwrap();
        let normed = super::norm::composed(&x, &gain, bias_var, norm.epsilon, Rules::default());
        let sum = (normed.unwrap() * &g).unwrap().sum_all().unwrap();
        let expected = sum.backward().unwrap();
        let (d_weight, d_bias) = norm.parameter_gradients(&x, &g).unwrap();
        close(&d_weight, expected.get(&weight).unwrap(), 1e-10);
        if centred {
            close(&d_bias, expected.get(&bias).unwrap(), 1e-10);
        } else {
            let scales = || norm.scales(&x).unwrap();
            close(&scales(), &everywhere(scales), 1e-12);
            let gain = norm.gain().unwrap();
            let scaled = x.broadcast_mul(&scales()).unwrap().broadcast_mul(&gain).unwrap();
            close(&norm.forward(&x).unwrap(), &scaled, 1e-12);
        }
    }

    /// Block by block through a projection and a norm, fused, against the same in steps.
    #[test]
    fn projected_norms(
        rows in 1..40usize, d in 2..37usize, blocks in 1..4usize, width in prop_oneof![1..6usize, 255..258usize],
        centred in any::<bool>(), rules in rules(), seed in 0f64..9.0,
    ) {
        let (norm, x) = (norm(d, centred, 1.0), noise(&[rows, d], seed));
        let (g, weight) = (noise(&[rows, blocks * width], 0.1), noise(&[blocks * width, d], 0.5));
        let pulled = || {
            let place = noise(&[blocks, rows, d], 0.7);
            norm.pull_back_blocks_into(&x, &g, &weight, &place, rules).unwrap();
            place
        };
        let found = pulled();
        for block in 0..blocks {
            let of = |tensor: &Tensor, dim| tensor.narrow(dim, block * width, width).unwrap();
            let expected = norm.pull_back(&x, &of(&g, 1).matmul(&of(&weight, 0)).unwrap(), rules).unwrap();
            close(&found.get(block).unwrap(), &expected, 1e-10);
        }
        close(&everywhere(pulled), &found, 1e-10);
    }

    #[test]
    fn norms_of_constant_scale(rows in 1..4usize, d in 2..37usize, centred in any::<bool>(), seed in 0f64..9.0) {
        let (norm, x) = (norm(d, centred, 1.0), noise(&[rows, d], seed));
        let centre = |x: &Tensor| match centred {
            true => x.broadcast_sub(&x.mean_keepdim(1)?),
            false => Ok(x.clone()),
        };
        let scale = (centre(&x).unwrap().sqr().unwrap().mean_keepdim(1).unwrap() + 1e-5).unwrap().sqrt().unwrap();
        let held = |x: &Tensor| centre(x)?.broadcast_div(&scale)?.broadcast_mul(&norm.gain()?);
        pulls_back(&x, held, |gradient| norm.pull_back(&x, gradient, ALL_RULES));
    }

    /// Also at 0, where f(x)/x is ½.
    #[test]
    fn activations_of_constant_factors(rows in 1..4usize, width in 1..19usize, seed in 0f64..9.0) {
        let zeros = Tensor::zeros((rows, 2), DType::F64, &Device::Cpu).unwrap();
        let x = Tensor::cat(&[&noise(&[rows, 2 * width], seed), &zeros], 1).unwrap();
        let inner = ((&x + (x.powf(3.0).unwrap() * 0.044715).unwrap()).unwrap() * (2.0 / std::f64::consts::PI).sqrt()).unwrap();
        let factor = ((inner.tanh().unwrap() + 1.0).unwrap() * 0.5).unwrap();
        let pull_back = |activation: Activation, gradient: &Tensor| activation.pull_back(&x, gradient, ALL_RULES);
        pulls_back(&x, |x| x * &factor, |gradient| pull_back(Activation::GeluTanh, gradient));
        let half = |x: &Tensor, start| x.narrow(1, start, width + 1).unwrap();
        let gate = half(&factor, 0);
        let held = |x: &Tensor| ((half(x, 0) * &gate)? * half(x, width + 1))? * 0.5;
        pulls_back(&x, held, |gradient| pull_back(Activation::GegluTanh, gradient));
        let normal = (((&x / 2f64.sqrt()).unwrap().erf().unwrap() + 1.0).unwrap() * 0.5).unwrap();
        pulls_back(&x, |x| x * &normal, |gradient| pull_back(Activation::Gelu, gradient));
        let factor = (half(&x, 0).neg().unwrap().exp().unwrap() + 1.0).unwrap().recip().unwrap();
        let held = |x: &Tensor| ((half(x, 0) * &factor)? * half(x, width + 1))? * 0.5;
        pulls_back(&x, held, |gradient| pull_back(Activation::Swiglu, gradient));
    }

    #[test]
    fn activations(rows in 1..4usize, width in 1..19usize, seed in 0f64..9.0) {
        let x = noise(&[rows, 2 * width], seed);
        let gate = |u: Tensor| ((u.tanh()? + 1.0)? * 0.5)?.mul(&x);
        let inner = ((&x + (x.powf(3.0).unwrap() * 0.044715).unwrap()).unwrap() * (2.0 / std::f64::consts::PI).sqrt()).unwrap();
        close(&Activation::GeluTanh.apply(&x).unwrap(), &gate(inner).unwrap(), 1e-12);
        agrees_with_composed(&x, |x| Activation::GeluTanh.apply(x));
        let (a, b) = (x.narrow(1, 0, width).unwrap(), x.narrow(1, width, width).unwrap());
        close(&Activation::Swiglu.apply(&x).unwrap(), &(a.silu().unwrap() * b).unwrap(), 1e-12);
        agrees_with_composed(&x, |x| Activation::Swiglu.apply(x));
        close(&Activation::Gelu.apply(&x).unwrap(), &x.gelu_erf().unwrap(), 1e-12);
        agrees_with_composed(&x, |x| Activation::Gelu.apply(x));
        let gated = (a.gelu().unwrap() * x.narrow(1, width, width).unwrap()).unwrap();
        close(&Activation::GegluTanh.apply(&x).unwrap(), &gated, 1e-12);
        agrees_with_composed(&x, |x| Activation::GegluTanh.apply(x));
    }

    #[test]
    fn soft_caps(rows in 1..4usize, width in 1..19usize, cap in 0.5f64..4.0, seed in 0f64..9.0) {
        let x = noise(&[rows, width], seed);
        let expected = ((&x / cap).unwrap().tanh().unwrap() * cap).unwrap();
        close(&cap::soft_cap(&x, cap).unwrap(), &expected, 1e-12);
        agrees_with_composed(&x, |x| {
            let capped = cap::soft_cap(&x.detach(), cap)?;
            let at = capped.copy()?;
            differentiable(x, capped, move |gradient| cap::pull_back(&at, gradient, cap))
        });
    }

    /// Many rows and few, against candle's log-softmax.
    #[test]
    fn cross_entropies(
        rows in prop::sample::select(vec![1usize, 7, 128, 131]), d in 1..5usize, vocabulary in 2..40usize,
        cap in prop::option::of(0.5f64..4.0),
    ) {
        let (hidden, weight) = (noise(&[rows, d], 0.2), noise(&[vocabulary, d], 0.6));
        let targets: Vec<Target> = (0..rows)
            .map(|row| Target { token: (row * 7 % vocabulary) as u32, weight: 0.5 + row as f64 })
            .collect();
        let (h, w) = (Var::from_tensor(&hidden).unwrap(), Var::from_tensor(&weight).unwrap());
        let logits = h.matmul(&w.t().unwrap()).unwrap();
        let logits = match cap {
            Some(cap) => ((logits / cap).unwrap().tanh().unwrap() * cap).unwrap(),
            None => logits,
        };
        let normaliser = logits.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
        let index: Vec<u32> = targets.iter().map(|target| target.token).collect();
        let index = Tensor::from_vec(index, (rows, 1), &Device::Cpu).unwrap();
        let factors: Vec<f64> = targets.iter().map(|target| -target.weight).collect();
        let factors = Tensor::from_vec(factors, (rows, 1), &Device::Cpu).unwrap();
        let log_p = (logits.gather(&index, 1).unwrap() - normaliser).unwrap();
        let loss = (log_p * factors).unwrap().sum_all().unwrap();
        let expected = loss.backward().unwrap();
        let found = cross_entropy::weighted(&hidden, &weight, cap, &targets, true).unwrap();
        let loss = loss.to_scalar::<f64>().unwrap();
        prop_assert!((found.loss - loss).abs() < 1e-9 * loss.abs().max(1.0));
        close(&found.gradient.unwrap(), expected.get(&h).unwrap(), 1e-9);
        let composed = everywhere(|| cross_entropy::weighted(&hidden, &weight, cap, &targets, true)).unwrap();
        prop_assert!((composed.loss - loss).abs() < 1e-9 * loss.abs().max(1.0));
        close(&composed.gradient.unwrap(), expected.get(&h).unwrap(), 1e-9);
        let d_weight = cross_entropy::unembedding_gradient(&hidden, &weight, cap, &targets).unwrap();
        close(&d_weight, expected.get(&w).unwrap(), 1e-9);
    }
}

/// Products with subnormal numbers take a hundred times longer.
#[test]
fn vanishing_probabilities_are_zero() {
    let hidden = Tensor::new(&[[1f32], [-1.0]], &Device::Cpu).unwrap();
    let logits: Vec<f32> = (0..200).map(|i| i as f32).collect();
    let unembedding = Tensor::from_vec(logits, (200, 1), &Device::Cpu).unwrap();
    let targets = [Target { token: 3, weight: 1e-3 }, Target { token: 90, weight: 1e-3 }];
    let of_unembedding = cross_entropy::unembedding_gradient(&hidden, &unembedding, None, &targets);
    let gradient: Vec<f32> = of_unembedding.unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert!(gradient.iter().all(|value| !value.is_subnormal()));
    assert!(gradient.iter().filter(|value| **value != 0.0).count() > 100);
}

proptest! {
    /// Of sizes that are formed whole and in halves, and of inputs that are a part of wider ones.
    #[test]
    fn products_with_weights(
        n in 62..67usize, width in prop_oneof![1..3usize, 63..67usize, 1023..1026usize], k in 1..9usize,
        gap in 0..3usize, seed in 0f64..9.0,
    ) {
        let x = noise(&[n, k + gap], seed).narrow(1, gap, k).unwrap();
        let weight = noise(&[k, width], 0.4);
        let product = x.contiguous().unwrap().matmul(&weight).unwrap();
        close(&weight::times(&x, &weight).unwrap(), &product, 1e-12);
        let transposed = weight.t().unwrap().contiguous().unwrap();
        close(&weight::times_transposed(&x, &transposed).unwrap(), &product, 1e-12);
    }
}

/// A weight of more rows than are widened at once.
#[test]
fn products_with_bfloat16_weights() {
    let (rows, width) = (10_000, 3);
    let narrow = noise(&[rows, width], 0.1).to_dtype(DType::BF16).unwrap();
    let wide = narrow.to_dtype(DType::F32).unwrap();
    let of = |shape: &[usize]| noise(shape, 0.4).to_dtype(DType::F32).unwrap();
    let agree = |found: Tensor, expected: Tensor| {
        let in_float64 = |tensor: Tensor| tensor.to_dtype(DType::F64).unwrap();
        close(&in_float64(found), &in_float64(expected), 1e-4);
    };
    let (x, z) = (of(&[4, width]), of(&[4, rows]));
    agree(weight::times_transposed(&x, &narrow).unwrap(), x.matmul(&wide.t().unwrap()).unwrap());
    agree(weight::times(&z, &narrow).unwrap(), z.matmul(&wide).unwrap());
    let index = Tensor::new(&[9999u32, 0], &Device::Cpu).unwrap();
    agree(weight::rows_of(&narrow, &index).unwrap(), wide.index_select(&index, 0).unwrap());
}
