//! The second extension point: what a circuit is searched for and tuned on.

use std::collections::BTreeMap;

use crate::evaluation::Evaluation;
use crate::example::Example;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Which of a task's examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For discovery and tuning.
    Train,
    /// For evaluation.
    Test,
}

/// Evaluation figures by name.
pub type Figures = BTreeMap<String, f64>;

/// What a task may know of the model it makes examples for.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// The model's tokenizer, where it came with one.
    pub tokenizer: Option<&'a Tokenizer>,
    /// The longest sequence it takes, in tokens.
    pub context: usize,
    /// The seed of everything random.
    pub seed: u64,
}

impl<'a> Setting<'a> {
    /// The tokenizer, or an error that says it is missing.
    ///
    /// # Errors
    /// If the model has none.
    pub fn tokenizer(&self) -> Result<&'a Tokenizer> {
        self.tokenizer.ok_or_else(|| {
            Error::input(
                "this task reads text, but the model has no tokenizer; put tokenizer.json, or \
                 vocab.json and merges.txt, beside its weights",
            )
        })
    }
}

/// A task: examples with key positions and answers, and an evaluation as its literature does it.
///
/// ```
/// use circuit_framework::{Evaluation, Example, Figures, Key, Options, Plugin, Result, Setting};
/// use circuit_framework::{Split, Task, inventory, origin};
///
/// /// Repeat the first token after the second.
/// #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
/// #[serde(default, deny_unknown_fields)]
/// struct Repeat {}
///
/// impl Task for Repeat {
///     fn default_metric(&self) -> &str {
///         "logit_diff"
///     }
///
///     fn examples(&self, _split: Split, _setting: &Setting) -> Result<Vec<Example>> {
///         let example = |token: u32| Example {
///             tokens: vec![token, 9, token],
///             predicted: 1..3,
///             keys: vec![Key { position: 2, correct: vec![token], wrong: vec![9] }],
///             counterfactual: None,
///             origin: format!("repeat {token}"),
///         };
///         Ok((0..8).map(example).collect())
///     }
///
///     fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures> {
///         let examples = self.examples(Split::Test, &evaluation.setting)?;
///         evaluation.language_modelling(&examples)
///     }
/// }
///
/// impl Options<dyn Task> for Repeat {
///     fn build(self) -> Result<Box<dyn Task>> {
///         Ok(Box::new(self))
///     }
/// }
///
/// inventory::submit! {
///     Plugin::<dyn Task>::new::<Repeat>("repeat", "copy a token", origin!())
/// }
///
/// let plugin = circuit_framework::registry::find::<dyn Task>("repeat")?;
/// assert_eq!(plugin.build(&Default::default())?.default_metric(), "logit_diff");
/// # Ok::<(), circuit_framework::Error>(())
/// ```
pub trait Task: Send + Sync {
    /// The name of the metric it is discovered with where none is given.
    fn default_metric(&self) -> &str;

    /// The examples of a split, in a fixed order.
    ///
    /// # Errors
    /// If a file is missing or a line in it can't be used, naming both.
    fn examples(&self, split: Split, setting: &Setting) -> Result<Vec<Example>>;

    /// Why ablation `corrupt` and EAP-IG make no sense on this task's examples, if they don't. An
    /// example without a counterfactual is refused anyway; this says the reason.
    fn why_no_counterfactual(&self) -> Option<&str> {
        None
    }

    /// The task's own figures of the model, on the test split.
    ///
    /// # Errors
    /// As for [`Task::examples`], and if a tensor operation fails.
    fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures>;
}
