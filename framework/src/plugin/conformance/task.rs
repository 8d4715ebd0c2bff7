//! What a task must keep to.

use crate::evaluation::metric::PatchingMetric;
use crate::evaluation::task::{Setting, Split, Task};
use crate::plugin::registry;
use crate::{Error, Result, refuse};

/// Checks that a task's examples of both splits are in range of a model with this vocabulary, that
/// their key tokens are among those predicted and have a wrong answer other than the right one, that
/// its default metric can be computed on them, and that it gives the same examples again.
///
/// # Errors
/// Saying which example breaks what.
pub fn task(task: &dyn Task, setting: &Setting, vocabulary: usize) -> Result<()> {
    let default = registry::find::<dyn PatchingMetric>(task.default_metric())?;
    let metric = default.build(&toml::Table::new())?;
    for split in [Split::Train, Split::Test] {
        let dataset = task.load(split, setting)?;
        let examples = dataset.examples();
        if examples.is_empty() {
            refuse!("{split:?}: there are no examples");
        }
        for example in examples {
            let origin = &example.origin;
            if origin.is_empty() {
                refuse!("{split:?}: an example has no origin; messages name examples by it");
            }
            example.check(vocabulary, setting.context)?;
            let predicted = &example.predicted;
            if let Some(key) = example.keys.iter().find(|key| !predicted.contains(&key.position)) {
                refuse!(
                    "{origin}: key position {} is not among the predicted {predicted:?}",
                    key.position
                );
            }
            metric.check(example).map_err(|error| {
                Error::input(format!(
                    "{origin}: the default metric `{}` can't be computed: {error}",
                    task.default_metric()
                ))
            })?;
        }
        if task.load(split, setting)?.examples() != examples {
            refuse!("{split:?}: loading again with the same seed gives other examples");
        }
    }
    Ok(())
}
