//! What a run's tasks have loaded: each split when it is first asked for, and once, however often the
//! model is evaluated on it.

use std::cell::OnceCell;

use crate::Result;
use crate::data::example::Example;
use crate::evaluation::ablation::Ablation;
use crate::evaluation::task::{Dataset, Setting, Split};
use crate::run::experiment::Plugins;

/// The data of a run's task, and of the other tasks its model is evaluated on.
#[derive(Default)]
pub struct Data {
    train: OnceCell<Box<dyn Dataset>>,
    test: OnceCell<Box<dyn Dataset>>,
    others: OnceCell<Vec<Box<dyn Dataset>>>,
    /// The test examples that the run's ablation fits, where it fits some and not all.
    fitting: OnceCell<Vec<Example>>,
}

impl Data {
    /// A split of the task's data.
    ///
    /// # Errors
    /// As the task's loading.
    pub fn split(
        &self,
        split: Split,
        plugins: &Plugins,
        setting: &Setting,
    ) -> Result<&dyn Dataset> {
        let cell = match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        };
        Ok(&**once(cell, || {
            let data = plugins.task.load(split, setting)?;
            note_unknown_words(data.examples(), split, setting);
            Ok(data)
        })?)
    }

    /// The test splits of the other tasks, in the order of `plugins.evaluate`.
    ///
    /// # Errors
    /// As the tasks' loading.
    pub fn others(&self, plugins: &Plugins, setting: &Setting) -> Result<&[Box<dyn Dataset>]> {
        let load =
            || plugins.evaluate.iter().map(|(_, task)| task.load(Split::Test, setting)).collect();
        Ok(once(&self.others, load)?)
    }

    /// Those of the test examples that the run's ablation fits: analyses and circuits' evaluations are of them. All
    /// where it fits none: whoever needs it says why.
    pub fn fitting<'a>(&'a self, test: &'a [Example], ablation: Ablation) -> &'a [Example] {
        let fits = |example: &&Example| ablation.check(example, None).is_ok();
        let count = test.iter().filter(fits).count();
        if count == 0 || count == test.len() {
            return test;
        }
        self.fitting.get_or_init(|| {
            let (all, name) = (test.len(), ablation.name());
            log::warn!("{count} of {all} test examples have what ablation `{name}` needs; only those are patched");
            test.iter().filter(fits).cloned().collect()
        })
    }
}

/// Says how many words of the examples aren't in the model's vocabulary.
fn note_unknown_words(examples: &[Example], split: Split, setting: &Setting) {
    let Some((tokenizer, unknown)) = setting.tokenizer.and_then(|t| Some((t, t.unknown()?))) else {
        return;
    };
    // What a text begins and ends with may be the same token.
    let inner = |tokens: &'_ Vec<u32>| {
        let start = usize::from(tokens.first().copied() == tokenizer.prefix());
        let end = usize::from(tokens.len() > start && tokens.last().copied() == tokenizer.end);
        start..tokens.len() - end
    };
    let tokens = || examples.iter().flat_map(|example| &example.tokens[inner(&example.tokens)]);
    let count = tokens().filter(|token| **token == unknown).count();
    if count > 0 {
        let which = match split {
            Split::Train => "training",
            Split::Test => "test",
        };
        log::warn!(
            "{count} of {} tokens of the {which} examples are words unknown to the model, read as {}",
            tokens().count(),
            tokenizer.inner.id_to_token(unknown).unwrap_or_default()
        );
    }
}

/// What the cell holds, loaded first where it is empty.
fn once<T>(cell: &OnceCell<T>, load: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(loaded) = cell.get() {
        return Ok(loaded);
    }
    let loaded = load()?;
    Ok(cell.get_or_init(|| loaded))
}
