//! Work that several processes share: threads stand for the processes, each with a model of its own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use circuit_framework::analysis::Analysis;
use circuit_framework::attribution::{
    Discovery, MethodChoice, Positions, discover, discover_by_example,
};
use circuit_framework::evaluation::ablation::Ablation;
use circuit_framework::evaluation::{CircuitEvaluation, CircuitInForce};
use circuit_framework::graph::edge_set::EdgeSet;
use circuit_framework::graph::pruning::Pruning;
use circuit_framework::graph::{Input, Kind};
use circuit_framework::peers::{Alone, Peers};
use circuit_framework::tuning::selector::ParamSelector;
use circuit_framework::tuning::{Event, Tuner, Tuning};
use circuit_framework::{
    Error, Evaluation, Example, Generation, Key, Model, PatchingMetric, Result, Setting, progress,
};
use proptest::prelude::*;

use crate::support::{Geometry, at, examples, few, geometries, load, plugin, weights};

/// What each thread gave each.
type Given = Arc<Mutex<BTreeMap<(usize, usize), Vec<u8>>>>;

/// One of several threads that exchange through memory.
struct Thread {
    rank: usize,
    size: usize,
    given: Given,
    barrier: Arc<Barrier>,
    sent: AtomicU64,
}

impl Peers for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn swap(&self, given: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        let own = given.iter().enumerate().map(|(to, bytes)| ((self.rank, to), bytes.to_vec()));
        self.given.lock().unwrap().extend(own);
        let sent: usize = given.iter().map(|bytes| bytes.len()).sum();
        self.sent.fetch_add((sent - given[self.rank].len()) as u64, Ordering::Relaxed);
        self.barrier.wait();
        let all = self.given.lock().unwrap();
        let received = (0..self.size).map(|from| all[&(from, self.rank)].clone()).collect();
        drop(all);
        self.barrier.wait();
        Ok(received)
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// What each of several threads makes of its peers.
fn by_threads<T: Send>(size: usize, work: impl Fn(&dyn Peers) -> T + Sync) -> Vec<T> {
    let (given, barrier) = (Given::default(), Arc::new(Barrier::new(size)));
    let thread = |rank| {
        let (given, barrier) = (given.clone(), barrier.clone());
        let peers = Thread { rank, size, given, barrier, sent: AtomicU64::new(0) };
        let work = &work;
        move || work(&peers)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..size).map(|rank| scope.spawn(thread(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The bits of every figure that is made of sums over batches.
fn figures(geometry: &Geometry, seed: u64, examples: &[Example], peers: &dyn Peers) -> Vec<u64> {
    let model = geometry.model(seed);
    let setting = Setting { tokenizer: None, context: 16, seed: 7, counterfactuals: false };
    let plain = Evaluation {
        model: &*model,
        setting,
        batch_size: 2,
        report: &progress::silent,
        peers,
        folder: None,
        untuned: None,
        circuit: None,
    };
    let mut numbers: Vec<f64> = plain.language_modelling(examples).unwrap().into_values().collect();
    let prompts: Vec<Vec<u32>> = examples.iter().map(|example| example.tokens.clone()).collect();
    let options = Generation { max_new_tokens: 3, ..Generation::default() };
    let written = plain.generate(&prompts, &options, &[1]).unwrap();
    numbers.extend(written.into_iter().flatten().map(f64::from));
    let metric = plugin::<dyn PatchingMetric>("logit_diff", "");
    let graph = model.graph();
    let all = EdgeSet::between(graph, &[Kind::Embed, Kind::Head, Kind::Mlp, Kind::Logits]);
    let kept = EdgeSet::of(graph, all.iter().step_by(2));
    for ablation in [Ablation::Mean, Ablation::MeanPositional, Ablation::Corrupt] {
        let circuits = CircuitEvaluation {
            model: &*model,
            metric: &*metric,
            examples,
            ablation,
            all: all.clone(),
            prune: false,
            batch_size: 2,
            report: &progress::silent,
            peers,
        };
        match circuits.measure(std::slice::from_ref(&kept)) {
            Ok(measured) => numbers.extend(measured.metrics),
            Err(Error::NoEffect { metric }) => numbers.push(metric),
            Err(error) => panic!("{error}"),
        }
        let circuit = CircuitInForce::new(&*model, (&all, &kept), ablation, examples, 2, peers);
        let alone = Evaluation { circuit: Some(&circuit.unwrap()), ..plain };
        numbers.extend(alone.language_modelling(examples).unwrap().into_values());
    }
    numbers.into_iter().map(f64::to_bits).collect()
}

/// The bits of scores, of each example's own, and of the metric.
fn scores(
    model: &dyn Model,
    examples: &[Example],
    options: &Discovery,
    peers: &dyn Peers,
) -> Vec<u64> {
    let metric = plugin::<dyn PatchingMetric>("logit_diff", "");
    let all: Vec<&Example> = examples.iter().collect();
    let found = discover(model, &all, &*metric, options, peers, &progress::silent).unwrap();
    let of_examples = RefCell::new(vec![Vec::new(); all.len()]);
    let take = |indices: &[usize], scores: &[f64]| {
        let edges = scores.len() / indices.len();
        for (&index, scores) in indices.iter().zip(scores.chunks(edges)) {
            of_examples.borrow_mut()[index] = scores.to_vec();
        }
        Ok(())
    };
    let with: (&dyn Peers, &progress::Report) = (peers, &progress::silent);
    let (by_example, _) = discover_by_example(model, &all, &*metric, options, with, &take).unwrap();
    assert_eq!(by_example.scores.values, found.scores.values);
    let scores = found.scores.values.iter().copied().map(f64::from).chain([found.metric]);
    scores.chain(of_examples.into_inner().concat()).map(f64::to_bits).collect()
}

/// The bits of what analyses find.
fn analyses(model: &dyn Model, examples: &[Example], peers: &dyn Peers) -> String {
    let metric = &*plugin::<dyn PatchingMetric>("logit_diff", "");
    let (ablation, report) = (Ablation::Mean, &progress::silent);
    let analysis = Analysis { model, metric, examples, ablation, batch_size: 2, report, peers };
    let to: Vec<Input> = model.graph().readers().to_vec();
    let logits = analysis.logits().unwrap();
    let attention = analysis.attention(&[], None, 2).unwrap();
    let paths = analysis.paths(&[], &to).unwrap();
    format!("{logits:?} {attention:?} {paths:?}")
}

/// The bits of the weights that a few steps leave, and each step's loss, metric and norm.
fn tuned(
    model: &dyn Model,
    examples: &[Example],
    tuning: &Tuning,
    metric: &str,
    peers: &dyn Peers,
) -> Vec<u64> {
    let tuner = Tuner {
        model,
        metric: &*plugin::<dyn PatchingMetric>(metric, ""),
        selector: &*plugin::<dyn ParamSelector>("nodes", ""),
        discovery: &Discovery { positions: Positions::All, ..Discovery::default() },
        pruning: &Pruning { top_n: Some(3.min(model.graph().edge_count())), ..Pruning::default() },
        tuning,
        matched: None,
        seed: 5,
        peers,
    };
    let mut numbers = Vec::new();
    tuner
        .run(examples, &mut |event| {
            if let Event::Step { step, .. } = event {
                numbers.extend([step.loss, step.metric, step.gradient_norm]);
            }
            Ok(())
        })
        .unwrap();
    numbers.extend(weights(model).into_values().flatten().map(f64::from));
    numbers.into_iter().map(f64::to_bits).collect()
}

proptest! {
    #![proptest_config(few(16))]

    #[test]
    fn the_number_of_processes_changes_no_bit(
        geometry in geometries(), seed in 0..100u64, examples in examples(1..8), size in 1..5usize,
    ) {
        let expected = figures(&geometry, seed, &examples, &Alone);
        for found in by_threads(size, |peers| figures(&geometry, seed, &examples, peers)) {
            prop_assert_eq!(&found, &expected);
        }
    }

    #[test]
    fn the_number_of_processes_changes_no_bit_of_scores(
        geometry in geometries(), seed in 0..100u64, examples in examples(1..8), size in 2..5usize,
        method in 0..5usize, ablation in 0..3usize, positions in 0..2usize, batch_size in 1..4usize,
    ) {
        let method = ["eap", "eap-ig", "clean-corrupted", "relp", "exact"][method];
        let options = Discovery {
            method: MethodChoice::named(method),
            ablation: [Ablation::Mean, Ablation::MeanPositional, Ablation::Zero][ablation],
            positions: match method {
                "eap" | "relp" => [Positions::Key, Positions::All][positions],
                _ => Positions::All,
            },
            ig_steps: 2,
            batch_size,
            ..Discovery::default()
        };
        let of = |peers: &dyn Peers| scores(&*geometry.model(seed), &examples, &options, peers);
        let expected = of(&Alone);
        for found in by_threads(size, of) {
            prop_assert_eq!(&found, &expected, "{}", method);
        }
    }

    #[test]
    fn the_number_of_processes_changes_no_bit_of_analyses(
        geometry in geometries(), seed in 0..100u64, examples in examples(1..8), size in 2..5usize,
    ) {
        let of = |peers: &dyn Peers| analyses(&*geometry.model(seed), &examples, peers);
        let expected = of(&Alone);
        for found in by_threads(size, of) {
            prop_assert_eq!(&found, &expected);
        }
    }

    /// Chunks are what is shared: more than there are processes, fewer, or more than a step has examples.
    #[test]
    fn the_number_of_processes_changes_no_bit_of_tuning_by_chunks(
        geometry in geometries(), seed in 0..100u64, examples in examples(4..9), size in 2..5usize,
        chunks in 2..8usize, micro in 0..3usize, metric in 0..2usize, penalty in 0..2usize,
    ) {
        let tuning = Tuning {
            steps: Some(3),
            batch_size: 7,
            chunks,
            micro_batch_size: (micro > 0).then_some(micro),
            metric_penalty: [0.0, 0.3][penalty],
            rediscover_every: 2,
            lr: 0.05,
            ..Tuning::default()
        };
        let metric = ["logit_diff", "loss"][metric];
        let of = |peers: &dyn Peers| {
            tuned(&*geometry.model(seed), &examples, &tuning, metric, peers)
        };
        let expected = of(&Alone);
        for found in by_threads(size, of) {
            prop_assert_eq!(&found, &expected);
        }
    }

    /// Without chunks each process has its part: the same but for rounding.
    #[test]
    fn processes_tune_alike_without_chunks(
        geometry in geometries(), seed in 0..100u64, examples in examples(4..9), size in 2..5usize,
    ) {
        let tuning = Tuning { steps: Some(2), batch_size: 4, lr: 0.01, ..Tuning::default() };
        let of = |peers: &dyn Peers| {
            // In float64, so that rounding changes no circuit.
            tuned(&*geometry.model_in_float64(seed), &examples, &tuning, "logit_diff", peers)
        };
        let expected = of(&Alone);
        for found in by_threads(size, of) {
            for (&found, &expected) in found.iter().zip(&expected) {
                let (found, expected) = (f64::from_bits(found), f64::from_bits(expected));
                prop_assert!((found - expected).abs() <= 1e-6 * (1.0 + expected.abs()));
            }
        }
    }
}

/// A part goes out once, slice by slice, and comes back once: what a process sends of a step grows with the rows
/// that are tuned, not with the number of processes.
#[test]
fn what_is_sent_grows_with_what_is_tuned() {
    let sent = |size: usize, edges: usize| -> u64 {
        let sent = by_threads(size, |peers| {
            let model = load(at(Path::new("embedded"))).model;
            let example = |index: u32| {
                let tokens: Vec<u32> = (0..8).map(|at| (index * 7 + at) % 50).collect();
                let key = Key { position: 7, correct: vec![1], wrong: vec![2] };
                Example { predicted: 1..8, keys: vec![key], tokens, ..Example::default() }
            };
            let examples: Vec<Example> = (0..8).map(example).collect();
            let tuner = Tuner {
                model: &*model,
                metric: &*plugin::<dyn PatchingMetric>("logit_diff", ""),
                selector: &*plugin::<dyn ParamSelector>("nodes", ""),
                discovery: &Discovery::default(),
                pruning: &Pruning { top_n: Some(edges), ..Pruning::default() },
                tuning: &Tuning { steps: Some(1), batch_size: 8, ..Tuning::default() },
                matched: None,
                seed: 5,
                peers,
            };
            let tuned = tuner.run(&examples, &mut |_| Ok(())).unwrap().tuned_parameters;
            (peers.sent(), tuned as u64)
        });
        let (most, tuned) = sent.into_iter().max().unwrap();
        // Scores, their sums and gradients: the rest of what a process sends.
        most - 2 * 4 * tuned * (size as u64 - 1) / size as u64
    };
    let few = [2, 4].map(|size| sent(size, 3));
    let many = [2, 4].map(|size| sent(size, 300));
    for (few, many) in few.into_iter().zip(many) {
        assert!(few.abs_diff(many) < few / 20, "{few} and {many} bytes beside the gradients");
    }
    assert!(few[1] < 2 * few[0], "{few:?} bytes from one of 2 and of 4 processes");
}
