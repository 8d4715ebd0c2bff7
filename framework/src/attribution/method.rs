//! The fifth extension point: how edges are scored.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Scoring;
use crate::data::example::{Batch, Example};
use crate::graph::scores::Scores;
use crate::pass::{Captured, Pass, Readout, Rules};
use crate::plugin::registry;
use crate::{Error, Result};

/// What a method needs of the data, beside what ablation and positions need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// A counterfactual of every example, of its own length.
    pub counterfactual: bool,
    /// Scores at all positions: it knows no others.
    pub all_positions: bool,
}

/// A method that scores edges from passes with hooks, batch by batch. What it is given, [`Scoring`], has the
/// pieces: observed writes, differences, gradients, sums.
///
/// ```
/// use circuit_framework::attribution::{AttributionMethod, Run, Scoring};
/// use circuit_framework::{Batch, Result, register};
///
/// /// Edge attribution patching: one clean pass, and back from the metric.
/// #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
/// #[serde(default, deny_unknown_fields)]
/// struct Plain {}
///
/// impl AttributionMethod for Plain {
///     fn add(&self, scoring: &mut Scoring, batch: &Batch) -> Result<Option<Run>> {
///         let observation = scoring.observe(batch, false)?;
///         let pass = scoring.watching(&observation, scoring.pass_with_gradients()?);
///         let readout = scoring.model.forward(&pass, &batch.tokens)?;
///         let difference = scoring.difference(observation)?;
///         let share = scoring.share_of_mean(&readout, batch)?;
///         scoring.count(&share)?;
///         scoring.add_gradients(&pass, &share, batch, &difference, 1.0)?;
///         Ok(None)
///     }
/// }
///
/// register!(dyn AttributionMethod, Plain, "plain", "EAP, plainly");
///
/// let plugin = circuit_framework::plugin::registry::find::<dyn AttributionMethod>("plain")?;
/// assert!(plugin.build(&Default::default()).is_ok());
/// # Ok::<(), circuit_framework::Error>(())
/// ```
pub trait AttributionMethod: Send + Sync {
    /// What it needs of the data.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// How its backward passes go: as the gradient's, unless it says otherwise.
    fn rules(&self) -> Rules {
        Rules::default()
    }

    /// Adds a batch to the scores. A clean pass with its gradients is handed on, for tuning to go on with.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn add(&self, scoring: &mut Scoring, batch: &Batch) -> Result<Option<Run>>;

    /// The scores of all that was added: `batches`, in this order.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn finish(&self, scoring: Scoring, batches: &[Vec<&Example>]) -> Result<Discovered> {
        let _ = batches;
        scoring.finish()
    }
}

/// A clean forward pass with the backward pass of the metric behind it.
pub struct Run {
    pub pass: Pass,
    pub readout: Readout,
    /// The batch's share of the metric, a differentiable scalar.
    pub share: Tensor,
    /// What the metric's backward pass left, where the metric is the loss and nothing forbids to keep it.
    pub captured: Option<Vec<Captured>>,
}

/// What discovery found.
#[derive(Clone, Debug)]
pub struct Discovered {
    pub scores: Scores,
    /// The metric over all examples.
    pub metric: f64,
}

impl Discovered {
    /// Refuses a metric or a score that isn't a finite number.
    ///
    /// # Errors
    /// Saying which.
    pub fn check(&self) -> Result<()> {
        if !self.metric.is_finite() {
            return Err(Error::NotFinite(format!("the metric is {}", self.metric)));
        }
        let Scores { graph, values } = &self.scores;
        if let Some(index) = values.iter().position(|score| !score.is_finite()) {
            let readers = graph.readers().len();
            let (writer, reader) =
                (graph.writers()[index / readers], graph.readers()[index % readers]);
            let what = format!("the score of {writer} → {reader} is {}", values[index]);
            return Err(Error::NotFinite(what));
        }
        Ok(())
    }
}

/// A method by its registered name, with options beside the name where it has any.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "NameOrTable", into = "NameOrTable")]
pub struct MethodChoice {
    pub name: String,
    pub options: toml::Table,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "a method's name, or a table of its name and options")]
enum NameOrTable {
    Name(String),
    Table {
        name: String,
        #[serde(flatten)]
        options: toml::Table,
    },
}

impl From<NameOrTable> for MethodChoice {
    fn from(choice: NameOrTable) -> Self {
        match choice {
            NameOrTable::Name(name) => Self { name, options: toml::Table::new() },
            NameOrTable::Table { name, options } => Self { name, options },
        }
    }
}

impl From<MethodChoice> for NameOrTable {
    fn from(MethodChoice { name, options }: MethodChoice) -> Self {
        match options.is_empty() {
            true => Self::Name(name),
            false => Self::Table { name, options },
        }
    }
}

impl MethodChoice {
    /// The method of this name, its options left at their defaults.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), options: toml::Table::new() }
    }

    /// The method itself.
    ///
    /// # Errors
    /// If there is none of this name, or an option doesn't fit.
    pub fn build(&self) -> Result<Box<dyn AttributionMethod>> {
        registry::find::<dyn AttributionMethod>(&self.name)?.build(&self.options)
    }
}
