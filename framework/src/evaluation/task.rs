//! The second extension point: what a circuit is searched for and tuned on.

use std::collections::BTreeMap;

use crate::data::example::Example;
use crate::data::tokenizer::Tokenizer;
use crate::evaluation::Evaluation;
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
    /// Whether the run's ablation or method needs a counterfactual of every training example. A task
    /// whose data has some leaves out the examples without one, and says how many.
    pub counterfactuals: bool,
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

/// A task: where its data is, and the metric it is discovered with.
///
/// ```
/// use circuit_framework::{Dataset, Example, Key, Result, Setting, Split, Task};
/// use circuit_framework::register;
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
///     fn load(&self, _split: Split, _setting: &Setting) -> Result<Box<dyn Dataset>> {
///         let example = |token: u32| Example {
///             tokens: vec![token, 9, token],
///             predicted: 1..3,
///             keys: vec![Key { position: 2, correct: vec![token], wrong: vec![9] }],
///             origin: format!("repeat {token}"),
///             ..Example::default()
///         };
///         let examples: Vec<Example> = (0..8).map(example).collect();
///         Ok(Box::new(examples))
///     }
/// }
///
/// register!(dyn Task, Repeat, "repeat", "copy a token");
///
/// let plugin = circuit_framework::plugin::registry::find::<dyn Task>("repeat")?;
/// assert_eq!(plugin.build(&Default::default())?.default_metric(), "logit_diff");
/// # Ok::<(), circuit_framework::Error>(())
/// ```
pub trait Task: Send + Sync {
    /// The name of the metric it is discovered with where none is given.
    fn default_metric(&self) -> &str;

    /// A split's data, the same for the same arguments. A run loads each split once.
    ///
    /// # Errors
    /// If a file is missing or a line in it can't be used, naming both.
    fn load(&self, split: Split, setting: &Setting) -> Result<Box<dyn Dataset>>;

    /// Why ablation `corrupt` and EAP-IG make no sense on this task's examples, if they don't. An
    /// example without a counterfactual is refused anyway; this says the reason.
    fn why_no_counterfactual(&self) -> Option<&str> {
        None
    }
}

/// A split of a task's data: examples with key positions and answers, and an evaluation on them as the
/// task's literature does it. Examples alone, a `Vec<Example>`, are evaluated as language modelling.
pub trait Dataset: Send + Sync {
    /// The examples, in a fixed order.
    fn examples(&self) -> &[Example];

    /// The task's own figures of a model on this data.
    ///
    /// # Errors
    /// If an example doesn't fit the model, a tensor operation fails or a file can't be written.
    fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures>;
}

impl Dataset for Vec<Example> {
    fn examples(&self) -> &[Example] {
        self
    }

    fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures> {
        evaluation.language_modelling(self)
    }
}
