//! Work that several processes share: threads stand for the processes, each with a model of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use circuit_framework::evaluation::ablation::Ablation;
use circuit_framework::evaluation::{CircuitEvaluation, CircuitInForce};
use circuit_framework::graph::Kind;
use circuit_framework::graph::edge_set::EdgeSet;
use circuit_framework::peers::{Alone, Peers};
use circuit_framework::{
    Error, Evaluation, Example, Generation, PatchingMetric, Result, Setting, progress,
};
use proptest::prelude::*;

use crate::support::{Geometry, examples, few, geometries, plugin};

/// One of several threads that exchange through memory.
struct Thread {
    rank: usize,
    size: usize,
    given: Arc<Mutex<BTreeMap<usize, Vec<f64>>>>,
    barrier: Arc<Barrier>,
}

impl Peers for Thread {
    fn does(&self, batch: usize) -> bool {
        batch % self.size == self.rank
    }

    fn exchange(&self, batches: usize, own: Vec<Vec<f64>>) -> Result<Vec<Vec<f64>>> {
        let numbers = (0..batches).filter(|&batch| self.does(batch));
        assert_eq!(numbers.clone().count(), own.len(), "a process gave what isn't its to give");
        self.given.lock().unwrap().extend(numbers.zip(own));
        self.barrier.wait();
        let all: Vec<Vec<f64>> = self.given.lock().unwrap().values().cloned().collect();
        assert_eq!(all.len(), batches);
        if self.barrier.wait().is_leader() {
            self.given.lock().unwrap().clear();
        }
        self.barrier.wait();
        Ok(all)
    }
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

proptest! {
    #![proptest_config(few(16))]

    #[test]
    fn the_number_of_processes_changes_no_bit(
        geometry in geometries(), seed in 0..100u64, examples in examples(1..8), size in 1..5usize,
    ) {
        let expected = figures(&geometry, seed, &examples, &Alone);
        let (given, barrier) = (Arc::default(), Arc::new(Barrier::new(size)));
        let of_process = |rank| {
            let peers = Thread { rank, size, given: Arc::clone(&given), barrier: barrier.clone() };
            let (geometry, examples) = (&geometry, &examples);
            move || figures(geometry, seed, examples, &peers)
        };
        let found: Vec<Vec<u64>> = thread::scope(|scope| {
            let processes: Vec<_> = (0..size).map(|rank| scope.spawn(of_process(rank))).collect();
            processes.into_iter().map(|process| process.join().unwrap()).collect()
        });
        for found in found {
            prop_assert_eq!(&found, &expected);
        }
    }
}
