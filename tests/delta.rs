//! Deltas: what a run changed, kept, put into the model and taken out again to the bit, restricted to a circuit,
//! summed, negated and merged.

use std::collections::BTreeSet;
use std::path::Path;

use circuit_framework::{Delta, Model, Owner, Parameters, Tensor};
use proptest::prelude::*;

use crate::command_line::{json, refuses, succeeds, words};
use crate::support::{at, few, geometries, load};

/// The bits of all values, as float64 has them.
fn bits(parameters: &Parameters) -> Vec<Vec<u64>> {
    let values = |tensor: &Tensor| -> Vec<f64> {
        let wide = tensor.to_dtype(candle_core::DType::F64).unwrap();
        wide.flatten_all().unwrap().to_vec1().unwrap()
    };
    let of = |tensor: &Tensor| values(tensor).into_iter().map(f64::to_bits).collect();
    parameters.iter().map(|(_, parameter)| of(&parameter.tensor)).collect()
}

/// Changes rows as tuning would: every `every`-th of each parameter, from a row of its own.
fn tune(model: &dyn Model, every: usize, by: f64) {
    for (id, parameter) in model.parameters().iter() {
        for row in (id.0 % every..parameter.rows()).step_by(every) {
            let values = parameter.tensor.narrow(0, row, 1).unwrap();
            let moved = values.affine(1.0 + by, by / (row + 1) as f64).unwrap();
            parameter.tensor.slice_set(&moved, 0, row).unwrap();
        }
    }
}

/// What a value is after `delta`'s opposite: the change the other way, rounded once.
fn mirrored(base: &[Vec<u64>], tuned: &[Vec<u64>], is_wide: bool) -> Vec<Vec<u64>> {
    let mirror = |(&base, &tuned): (&u64, &u64)| match base == tuned {
        true => base,
        false => {
            let value = 2.0 * f64::from_bits(base) - f64::from_bits(tuned);
            if is_wide { value.to_bits() } else { f64::from(value as f32).to_bits() }
        }
    };
    base.iter().zip(tuned).map(|(b, t)| b.iter().zip(t).map(mirror).collect()).collect()
}

proptest! {
    #![proptest_config(few(24))]

    #[test]
    fn what_is_applied_is_reverted_to_the_bit(
        geometry in geometries(), seed in any::<u64>(), is_wide in any::<bool>(),
        every in 1..5usize, by in prop_oneof![-0.9..-0.01, 0.01..0.9f64],
    ) {
        let model = || if is_wide { geometry.model_in_float64(seed) } else { geometry.model(seed) };
        let (base, tuned) = (model(), model());
        tune(&*tuned, every, by);
        let delta = Delta::between(base.parameters(), tuned.parameters(), "base").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("d.safetensors");
        delta.save(&file).unwrap();
        let delta = Delta::load(&file).unwrap();
        let (before, after) = (bits(base.parameters()), bits(tuned.parameters()));
        let is_wide = base.parameters().iter().any(|(_, p)| p.tensor.dtype() == candle_core::DType::F64);

        // In turn: what is applied to the base, and the bits that this gives.
        let opposite = delta.scale(-1.0).unwrap();
        let cases = [
            (delta.clone(), after.clone()),
            (delta.scale(1.0).unwrap(), after.clone()),
            (delta.scale(0.0).unwrap(), before.clone()),
            (opposite.clone(), mirrored(&before, &after, is_wide)),
            (Delta::add(&[&delta]).unwrap(), after.clone()),
            (Delta::merge(&[&delta, &delta]).unwrap(), after.clone()),
        ];
        for (delta, expected) in cases {
            delta.apply(base.parameters()).unwrap();
            prop_assert!(bits(base.parameters()) == expected);
            delta.revert(base.parameters()).unwrap();
            prop_assert!(bits(base.parameters()) == before);
        }

        // The part of some nodes and the part of all others are the whole.
        let owners: BTreeSet<Owner> = (base.parameters().iter())
            .flat_map(|(_, parameter)| parameter.blocks.iter().map(|block| block.owner))
            .collect();
        let (some, others): (BTreeSet<Owner>, BTreeSet<Owner>) =
            owners.iter().partition(|owner| matches!(owner, Owner::Reader(_)));
        let part = delta.restrict(base.parameters(), &some).unwrap();
        let rest = delta.restrict(base.parameters(), &others).unwrap();
        prop_assert_eq!(part.extent().rows + rest.extent().rows, delta.extent().rows);
        for whole in [Delta::merge(&[&rest, &part]), Delta::add(&[&part, &rest])] {
            let whole = whole.unwrap();
            whole.apply(base.parameters()).unwrap();
            prop_assert!(bits(base.parameters()) == after);
            whole.revert(base.parameters()).unwrap();
        }
        part.apply(base.parameters()).unwrap();
        for (id, parameter) in base.parameters().iter() {
            for block in &parameter.blocks {
                let values = |bits: &[Vec<u64>]| {
                    let (start, end) = (block.rows.start, block.rows.end);
                    bits[id.0][start * parameter.width()..end * parameter.width()].to_vec()
                };
                let expected = if some.contains(&block.owner) { &after } else { &before };
                prop_assert!(values(&bits(base.parameters())) == values(expected));
            }
        }
        part.revert(base.parameters()).unwrap();

        // Another model, by one bit of one weight, is left as it is.
        let (_, last) = base.parameters().iter().last().unwrap();
        let corner = last.tensor.narrow(0, 0, 1).unwrap().narrow(1, 0, 1).unwrap();
        let other = corner.affine(1.5, 0.25).unwrap();
        let row = Tensor::cat(&[&other, &last.tensor.narrow(0, 0, 1).unwrap().narrow(1, 1, last.width() - 1).unwrap()], 1);
        last.tensor.slice_set(&row.unwrap(), 0, 0).unwrap();
        let others = bits(base.parameters());
        for refused in [delta.apply(base.parameters()), delta.restrict(base.parameters(), &some).map(drop)] {
            let error = refused.unwrap_err().to_string();
            prop_assert!(error.contains("another model") && error.contains("d.safetensors"), "{error}");
        }
        let error = delta.revert(base.parameters()).unwrap_err().to_string();
        prop_assert!(error.contains("has not been applied"), "{error}");
        prop_assert!(bits(base.parameters()) == others);
        // The rows hold what the delta made of them, but another row is another model's.
        if every > 1 || by != 0.0 {
            tune(&*tuned, 1, 0.125);
            let wrong = bits(tuned.parameters());
            prop_assert!(delta.revert(tuned.parameters()).is_err());
            prop_assert!(bits(tuned.parameters()) == wrong);
        }
    }
}

/// A row of a delta's that is what it should be in a model whose other rows aren't.
#[test]
fn a_model_with_the_rows_of_a_delta_and_others_of_its_own_is_not_reverted() {
    let model = || load(at(Path::new("embedded"))).model;
    let (base, tuned) = (model(), model());
    let (_, first) = tuned.parameters().iter().next().unwrap();
    let row = |index: usize| first.tensor.narrow(0, index, 1).unwrap().affine(2.0, 0.0).unwrap();
    first.tensor.slice_set(&row(0), 0, 0).unwrap();
    let delta = Delta::between(base.parameters(), tuned.parameters(), "embedded").unwrap();
    first.tensor.slice_set(&row(2), 0, 2).unwrap();
    let before = bits(tuned.parameters());
    let error = delta.revert(tuned.parameters()).unwrap_err().to_string();
    assert!(error.contains("another model"), "{error}");
    assert!(bits(tuned.parameters()) == before);
    let error = Delta::between(base.parameters(), base.parameters(), "embedded").unwrap_err();
    assert!(error.to_string().contains("the same to the bit"), "{error}");
}

#[test]
fn a_runs_delta_goes_through_all_commands() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let run = |line: &str| succeeds(here, &words(line));
    let tune = "tune --steps 2 --top-n 20 --set task.test_examples=16 --set discovery.bootstrap=0";
    run(&format!("{tune} --out run"));
    run("delta run --out d.safetensors --json made.json");
    let made = json(&here.join("made.json"));
    let sizes = &made["sizes"];
    assert!(made["parameters"].as_u64() < sizes["model_parameters"].as_u64());
    assert_eq!(sizes["bytes"].as_u64(), Some(here.join("d.safetensors").metadata().unwrap().len()));

    let weights = |model: &str| bits(load(at(&here.join(model))).model.parameters());
    let embedded = bits(load(at(Path::new("embedded"))).model.parameters());
    run("delta apply d.safetensors --out tuned");
    assert!(weights("tuned") == weights("run/model"));
    let bytes = |model: &str| std::fs::read(here.join(model).join("model.safetensors")).unwrap();
    assert!(bytes("tuned") == bytes("run/model"));
    run("delta revert d.safetensors --model tuned --out base");
    assert!(weights("base") == embedded);
    let logits = |model: &str| run(&format!("logits --tokens 1,5,7 --json {model}"));
    assert_eq!(logits("--set model.delta=d.safetensors"), logits("--model run/model"));

    run("delta negate d.safetensors --out n.safetensors");
    run("delta scale d.safetensors --by -1 --out m.safetensors");
    assert_eq!(
        std::fs::read(here.join("n.safetensors")).unwrap(),
        std::fs::read(here.join("m.safetensors")).unwrap()
    );
    run("delta add d.safetensors n.safetensors --out none.safetensors");
    run("delta restrict d.safetensors --circuit run/circuit-after.json --out part.safetensors");
    run("delta merge part.safetensors d.safetensors --out whole.safetensors");
    assert_eq!(logits("--set model.delta=whole.safetensors"), logits("--model run/model"));

    let other = "--set model.random_init=1";
    for line in [
        "apply d.safetensors --out x",
        "restrict d.safetensors --circuit run/circuit-after.json --out x",
    ] {
        refuses(
            here,
            &words(&format!("delta {line} {other}")),
            &["d.safetensors", "another model", "embedded"],
        );
    }
    refuses(
        here,
        &words(&format!("delta revert d.safetensors --out x {other}")),
        &["not been applied"],
    );
    refuses(
        here,
        &words(&format!("logits --tokens 1 --set model.delta=d.safetensors {other}")),
        &["another model"],
    );
    refuses(
        here,
        &words("delta merge d.safetensors n.safetensors --out x"),
        &["different values", "delta add"],
    );
    refuses(here, &words("delta apply run/model/model.safetensors --out x"), &["is no delta"]);
    refuses(here, &words("delta run --out d.safetensors"), &["exists already", "--force"]);
    refuses(here, &words("delta tuned --out x"), &["is no run folder"]);
}

/// Files that say something else than they hold.
#[test]
fn a_malformed_delta_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let model = || load(at(Path::new("embedded"))).model;
    let (base, tuned) = (model(), model());
    tune(&*tuned, 3, 0.5);
    let file = here.join("d.safetensors");
    Delta::between(base.parameters(), tuned.parameters(), "embedded").unwrap().save(&file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
    let swapped = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = text.find(from).unwrap_or_else(|| panic!("{from}")) + 8;
        let mut bytes = bytes.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let cut = bytes[..bytes.len() - 5].to_vec();
    for (bytes, what) in [
        (cut, "is no whole safetensors file"),
        (swapped("[0,1]", "[1,1]"), "not ascending"),
        (swapped("[0,1]", "[0,9]"), "rows of"),
        (swapped("\"base\":", "\"bass\":"), "is no delta"),
        (swapped("\"tuned/", "\"tunes/"), "no tensor"),
        (b"{}".to_vec(), "is no whole safetensors file"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let error = Delta::load(&file).unwrap_err().to_string();
        assert!(error.contains("d.safetensors") && error.contains(what), "{what}: {error}");
    }
}
