//! Attention: fused against composed, finite differences, and what it sees.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use proptest::prelude::*;

use super::{ALL_RULES, agrees_with_composed, close, noise, norm, pulls_back, rules, values};
use crate::ops::attention::{Attention, HeadNorms};
use crate::ops::backward::Backward;
use crate::ops::composed::everywhere;
use crate::ops::rotary::Rotary;

/// What an attention may have beside its heads.
#[derive(Clone, Copy, Debug)]
struct Settings {
    scale: f64,
    cap: Option<f64>,
    window: Option<usize>,
}

impl Settings {
    fn of(self, attention: Attention) -> Attention {
        let Self { scale, cap, window } = self;
        Attention { scale, cap, window, ..attention }
    }
}

fn settings() -> impl Strategy<Value = Settings> {
    let (cap, window) = (prop::option::of(0.5f64..4.0), prop::option::of(1..5usize));
    (0.2f64..1.0, cap, window).prop_map(|(scale, cap, window)| Settings { scale, cap, window })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..Default::default() })]

    #[test]
    fn attentions(
        batch in 1..3usize, seq in 1..6usize, kv_heads in 1..3usize, group in 1..3usize, half in 1..3usize,
        rotates in 0..3usize, settings in settings(), per_head in prop::option::of(any::<bool>()), seed in 0f64..9.0,
    ) {
        // A part of a head may be rotated.
        let pairs = rotates.min(half);
        let rotary = (pairs > 0).then(|| Arc::new(Rotary::new(&[1.0, 0.3][..pairs], seq)));
        let heads = group * kv_heads;
        let plain = Attention { rotary, ..Attention::new(heads, kv_heads, 2 * half) };
        let norms = per_head.map(|is_per_head| {
            let width = |heads| if is_per_head { 2 * half } else { 2 * half * heads };
            let (query, key) = (norm(width(heads), false, 0.0), norm(width(kv_heads), false, 1.0));
            Arc::new(HeadNorms { query, key, is_per_head })
        });
        let attention = Attention { norms, ..settings.of(plain) };
        let x = noise(&[batch, seq, attention.width()], seed);
        agrees_with_composed(&x, |x| attention.forward(x));
        // What is seen is the last few tokens.
        let seen = attention.probabilities(&x).unwrap().reshape(((), seq, seq)).unwrap().to_vec3::<f64>().unwrap();
        for (query, key) in (0..seq).flat_map(|query| (0..seq).map(move |key| (query, key))) {
            let sees = key <= query && settings.window.is_none_or(|window| query < key + window);
            prop_assert!(seen.iter().all(|seen| (seen[query][key] > 0.0) == sees));
        }
        // The gradients of the norms' weights.
        let gradient = noise(&[batch, seq, heads * 2 * half], 0.4);
        let (_, of_norms) = attention.pull_back(&x, &gradient, &Backward::default()).unwrap();
        let (_, composed) = everywhere(|| attention.pull_back(&x, &gradient, &Backward::default())).unwrap();
        for (found, composed) in of_norms.iter().zip(&composed) {
            close(&found.gradient, &composed.gradient, 1e-10);
        }
        for found in of_norms {
            let weight = Var::from_tensor(&found.weight.tensor).unwrap();
            let z = |weight: &Tensor| -> Result<Tensor> {
                let Some(norms) = &attention.norms else { unreachable!() };
                let mut norms = (**norms).clone();
                let of = match found.weight.tensor.id() == norms.query.weight.tensor.id() {
                    true => &mut norms.query,
                    false => &mut norms.key,
                };
                of.weight.tensor = weight.clone();
                let attention = Attention { norms: Some(Arc::new(norms)), ..attention.clone() };
                (attention.forward(&x)? * &gradient)?.sum_all()
            };
            let at = values(weight.as_tensor());
            for (index, found) in values(&found.gradient).into_iter().enumerate() {
                let moved = |step: f64| {
                    let mut at = at.clone();
                    at[index] += step;
                    let weight = Tensor::from_vec(at, weight.shape(), &Device::Cpu).unwrap();
                    z(&weight).unwrap().to_scalar::<f64>().unwrap()
                };
                let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                prop_assert!((found - expected).abs() <= 1e-6 * (1.0 + expected.abs()), "{} for {}", found, expected);
            }
        }
    }

    /// Longer than the positions whose gradients are formed together; from a position on; padded.
    #[test]
    fn long_attentions(
        seq in 60..140usize, kv_heads in 1..3usize, group in 1..3usize, from in 0..140usize, zeros in 0..20usize,
        settings in settings(), rules in rules(), seed in 0f64..9.0,
    ) {
        let rotary = Some(Arc::new(Rotary::new(&[1.0], seq)));
        let plain = Attention { rotary, ..Attention::new(group * kv_heads, kv_heads, 2) };
        // Windows shorter than a tile, and longer.
        let window = settings.window.map(|window| window * 17);
        let attention = Attention { window, ..settings.of(plain) };
        let x = noise(&[1, seq, attention.width()], seed);
        let z_width = attention.heads * 2;
        let gradient = noise(&[1, seq - zeros, z_width], 0.4).pad_with_zeros(1, 0, zeros).unwrap();
        let from = from % seq;
        let how = |from| Backward { from, rules };
        let behind = |tensor: Tensor| tensor.narrow(1, from, seq - from).unwrap();
        let fused = attention.pull_back(&x, &gradient, &how(vec![from])).unwrap().0;
        let expected = everywhere(|| attention.pull_back(&x, &gradient, &how(vec![]))).unwrap().0;
        close(&attention.forward(&x).unwrap(), &everywhere(|| attention.forward(&x)).unwrap(), 1e-12);
        close(&behind(fused), &behind(expected), 1e-11);
    }

    /// Rotated scores depend on the distance alone.
    #[test]
    fn rotation_is_relative(a in 0..5usize, b in 0..5usize, by in 0..5usize) {
        let rotary = Rotary::new(&[1.0, 0.1], 10);
        let score = |a, b| {
            let (mut q, mut k) = ([0.3f64, -1.0, 0.5, 2.0], [1.0f64, 0.2, -0.7, 0.4]);
            rotary.rotate(&mut q, a);
            rotary.rotate(&mut k, b);
            q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>()
        };
        prop_assert!((score(a, b) - score(a + by, b + by)).abs() < 1e-12);
    }

    #[test]
    fn attentions_of_constant_probabilities(
        batch in 1..3usize, seq in 1..6usize, kv_heads in 1..3usize, group in 1..3usize, seed in 0f64..9.0,
    ) {
        let (heads, d_head) = (group * kv_heads, 2);
        let attention = Attention::new(heads, kv_heads, d_head);
        let x = noise(&[batch, seq, attention.width()], seed);
        let p = attention.probabilities(&x).unwrap();
        let held = |x: &Tensor| {
            let width = kv_heads * d_head;
            let v = x.narrow(2, attention.width() - width, width)?.reshape((batch, seq, kv_heads, 1, d_head))?;
            let v = v.broadcast_as((batch, seq, kv_heads, group, d_head))?.reshape((batch, seq, heads, d_head))?;
            let z = p.matmul(&v.transpose(1, 2)?.contiguous()?)?;
            z.transpose(1, 2)?.reshape((batch, seq, heads * d_head))
        };
        let how = Backward { from: Vec::new(), rules: ALL_RULES };
        pulls_back(&x, held, |gradient| Ok(attention.pull_back(&x, gradient, &how)?.0));
    }
}
