//! What controls came to: the part `controls` of `summary.json`.

use serde::{Deserialize, Serialize};

use super::interval::{difference, margins, means};
use crate::evaluation::figures;
use crate::evaluation::task::Figures;

/// Every seed's circuit and controls, and their means over seeds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ControlsSummary {
    /// Those of all lists of repeats here, the experiment's own first.
    pub seeds: Vec<u64>,
    /// The figures before tuning.
    pub before: Estimate,
    pub circuit: RepeatsSummary,
    /// In the order of `controls.kinds`.
    pub kinds: Vec<ControlSummary>,
}

/// A circuit or a control, tuned with one seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::run) struct Repeat {
    /// After tuning.
    #[serde(with = "figures")]
    pub(in crate::run) figures: Figures,
    pub(in crate::run) tuned_parameters: usize,
    /// Discovery and tuning together.
    pub(in crate::run) seconds: f64,
}

/// Figures with each seed, their mean, and how sure that is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Estimate {
    /// A table of figures a seed.
    pub repeats: Vec<Found>,
    #[serde(with = "figures")]
    pub mean: Figures,
    /// Half the width of the mean's 95 % interval, by Student's t; empty with a single seed.
    #[serde(with = "figures")]
    pub margin: Figures,
}

/// Figures; those that aren't finite are text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Found(#[serde(with = "figures")] pub Figures);

/// A circuit or a control, tuned with every seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RepeatsSummary {
    /// The figures after tuning.
    pub after: Estimate,
    /// Parameters that any step tuned, a number a seed.
    pub tuned_parameters: Vec<usize>,
    /// Their mean, as a share of all parameters.
    pub tuned_parameter_ratio: f64,
    /// Discovery and tuning of all seeds together.
    pub seconds: f64,
}

/// A control, tuned with every seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ControlSummary {
    /// Its selector; a second one of the same name is NAME-2.
    pub kind: String,
    #[serde(flatten)]
    pub tuned: RepeatsSummary,
    /// What its figures after tuning have more than the circuit's with the same seed.
    pub difference: Estimate,
}

impl Estimate {
    /// The estimate from a table of figures a seed.
    pub fn of(repeats: Vec<Figures>) -> Self {
        let all: Vec<&Figures> = repeats.iter().collect();
        let (mean, margin) = (means(&all), margins(&all));
        Self { repeats: repeats.into_iter().map(Found).collect(), mean, margin }
    }
}

impl RepeatsSummary {
    fn of(repeats: &[&Repeat], parameters: usize) -> Self {
        let tuned: Vec<usize> = repeats.iter().map(|repeat| repeat.tuned_parameters).collect();
        let all = tuned.iter().sum::<usize>() as f64;
        Self {
            after: Estimate::of(repeats.iter().map(|repeat| repeat.figures.clone()).collect()),
            tuned_parameter_ratio: all / tuned.len() as f64 / parameters as f64,
            tuned_parameters: tuned,
            seconds: repeats.iter().map(|repeat| repeat.seconds).sum(),
        }
    }
}

/// What one seed led to.
pub(super) struct OfSeed {
    pub(super) before: Figures,
    pub(super) circuit: Repeat,
    /// In the order of the controls.
    pub(super) controls: Vec<Repeat>,
}

impl ControlsSummary {
    /// The summary of controls by their names, with every seed, on a model of so many parameters.
    pub(super) fn of(kinds: &[&str], seeds: Vec<u64>, found: &[OfSeed], parameters: usize) -> Self {
        let circuits: Vec<&Repeat> = found.iter().map(|of_seed| &of_seed.circuit).collect();
        let control = |(index, kind): (usize, &&str)| {
            let repeats: Vec<&Repeat> =
                found.iter().map(|of_seed| &of_seed.controls[index]).collect();
            let pairs = repeats.iter().zip(&circuits);
            let differences =
                pairs.map(|(control, circuit)| difference(&control.figures, &circuit.figures));
            ControlSummary {
                kind: (*kind).to_owned(),
                difference: Estimate::of(differences.collect()),
                tuned: RepeatsSummary::of(&repeats, parameters),
            }
        };
        Self {
            seeds,
            before: Estimate::of(found.iter().map(|of_seed| of_seed.before.clone()).collect()),
            circuit: RepeatsSummary::of(&circuits, parameters),
            kinds: kinds.iter().enumerate().map(control).collect(),
        }
    }
}
