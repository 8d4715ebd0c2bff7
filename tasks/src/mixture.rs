//! A mixture of other tasks: their training examples in the proportion of their weights, and each evaluated
//! as it evaluates itself. What the tasks are is theirs to say; this only mixes, and says which of them are to be
//! forgotten and which only watched.

use circuit_framework::plugin::registry::{self, Options, Plugin};
use circuit_framework::{
    Dataset, Evaluation, Example, Figures, Result, Setting, Split, Task, inventory, origin, refuse,
};
use serde::{Deserialize, Serialize};
use toml::Table;

/// The options of a mixture.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Mixture {
    /// The tasks: each a `name`, a `weight` (1 where none is given), a `role` and the task's own options beside
    /// them. Training examples are mixed in the proportion of the weights, as many as there are until a
    /// task has no more. The role is `retain` where none is given: training lowers the loss on the task's
    /// examples. `forget`: training raises it. `control`: the task isn't trained on and has no weight, only
    /// its figures are taken.
    tasks: Vec<Ingredient>,
}

/// A task of a mixture.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
struct Ingredient {
    name: String,
    /// 1 where none is given.
    weight: Option<f64>,
    #[serde(default)]
    role: Role,
    #[serde(flatten)]
    #[schemars(skip)]
    options: Table,
}

/// What a mixture's training does with a task.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
enum Role {
    #[default]
    Retain,
    Forget,
    Control,
}

/// A task of a mixture, built.
struct Part {
    /// By which its figures are called: of two of one name the second is NAME-2.
    name: String,
    weight: f64,
    role: Role,
    task: Box<dyn Task>,
}

/// The tasks of a mixture, built.
struct Parts(Vec<Part>);

impl Options<dyn Task> for Mixture {
    fn build(self) -> Result<Box<dyn Task>> {
        if self.tasks.is_empty() {
            refuse!(
                "mixture: there are no tasks; write tasks = [{{ name = \"agreement\" }}, {{ name = \"ioi\" }}]"
            );
        }
        let names = registry::distinct(self.tasks.iter().map(|ingredient| &ingredient.name[..]));
        let part = |(Ingredient { name, weight, role, options }, own): (&Ingredient, String)| {
            if *role == Role::Control && weight.is_some() {
                refuse!(
                    "mixture: {name} is a control, which isn't trained on; leave its weight out"
                );
            }
            let weight = weight.unwrap_or(1.0);
            if !(weight.is_finite() && weight > 0.0) {
                refuse!("mixture: the weight of {name} is {weight}; it must be above 0");
            }
            let task = registry::find::<dyn Task>(name)?.build(options)?;
            Ok(Part { name: own, weight, role: *role, task })
        };
        let parts = Parts(self.tasks.iter().zip(names).map(part).collect::<Result<_>>()?);
        if parts.trained().next().is_none() {
            refuse!("mixture: all tasks are controls; give one to forget or to retain");
        }
        if parts.common_metric().is_none() {
            log::info!(
                "the tasks of the mixture have several metrics of their own; edges are scored by the \
                 loss unless a metric is given"
            );
        }
        Ok(Box::new(parts))
    }
}

impl Parts {
    /// Those whose examples are trained on.
    fn trained(&self) -> impl Iterator<Item = &Part> {
        self.0.iter().filter(|part| part.role != Role::Control)
    }

    /// The metric that all trained tasks are discovered with, if there is one.
    fn common_metric(&self) -> Option<&str> {
        let mut metrics = self.trained().map(|part| part.task.default_metric());
        let first = metrics.next()?;
        metrics.all(|metric| metric == first).then_some(first)
    }
}

inventory::submit! {
    Plugin::<dyn Task>::new::<Mixture>(
        "mixture",
        "other tasks, mixed by weight",
        origin!(),
    )
}

impl Task for Parts {
    /// The one of all trained tasks, or the loss where they differ.
    fn default_metric(&self) -> &str {
        self.common_metric().unwrap_or("loss")
    }

    fn load(&self, split: Split, setting: &Setting) -> Result<Box<dyn Dataset>> {
        let load = |part: &Part| Ok((part.name.clone(), part.task.load(split, setting)?));
        // Of a control there are no training examples.
        let loaded =
            self.0.iter().filter(|part| split == Split::Test || part.role != Role::Control);
        let parts: Vec<(String, Box<dyn Dataset>)> = loaded.map(load).collect::<Result<_>>()?;
        let examples = |part: &Part| {
            let data = parts.iter().find(|(name, _)| *name == part.name);
            data.map_or(&[][..], |(_, data)| data.examples())
        };
        let trained: Vec<&Part> = self.trained().collect();
        let counts: Vec<usize> = trained.iter().map(|part| examples(part).len()).collect();
        let weights: Vec<f64> = trained.iter().map(|part| part.weight).collect();
        let mut next = vec![0; trained.len()];
        let mixed = order(&weights, &counts).into_iter().map(|part| {
            next[part] += 1;
            let Part { role, .. } = trained[part];
            let example = examples(trained[part])[next[part] - 1].clone();
            Example { forget: *role == Role::Forget, ..example }
        });
        Ok(Box::new(Mixed { examples: mixed.collect(), parts }))
    }

    fn why_no_counterfactual(&self) -> Option<&str> {
        self.trained().find_map(|part| part.task.why_no_counterfactual())
    }
}

/// Which task each example of a mixture is taken from: at every place the one that is furthest behind its
/// share, until that one has no more.
fn order(weights: &[f64], counts: &[usize]) -> Vec<usize> {
    let total: f64 = weights.iter().sum();
    let mut taken = vec![0; weights.len()];
    let mut order = Vec::new();
    loop {
        let behind =
            |part: usize| weights[part] / total * (order.len() + 1) as f64 - f64::from(taken[part]);
        let next = (0..weights.len()).rev().max_by(|&a, &b| behind(a).total_cmp(&behind(b)));
        match next {
            Some(part) if (taken[part] as usize) < counts[part] => {
                taken[part] += 1;
                order.push(part);
            }
            _ => return order,
        }
    }
}

/// A split of a mixture's data.
struct Mixed {
    examples: Vec<Example>,
    /// Each task's own data, by name.
    parts: Vec<(String, Box<dyn Dataset>)>,
}

impl Dataset for Mixed {
    fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// Each task's own figures on all of its data, as `TASK.FIGURE`; its files are in a folder of its name.
    fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures> {
        let mut figures = Figures::new();
        for (name, data) in &self.parts {
            let folder = evaluation.folder.map(|folder| folder.join(name));
            let own = Evaluation { folder: folder.as_deref(), ..*evaluation };
            let of_task = data.evaluate(&own)?;
            figures
                .extend(of_task.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
        }
        Ok(figures)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::order;

    proptest! {
        /// However many examples are looked at, each task has about its share of them, and the order ends
        /// where a task has no more.
        #[test]
        fn tasks_have_their_shares(tasks in prop::collection::vec((1..9u32, 0..40usize), 1..5)) {
            let weights: Vec<f64> = tasks.iter().map(|&(weight, _)| f64::from(weight)).collect();
            let counts: Vec<usize> = tasks.iter().map(|&(_, count)| count).collect();
            let order = order(&weights, &counts);
            let total: f64 = weights.iter().sum();
            for end in 0..=order.len() {
                for (part, weight) in weights.iter().enumerate() {
                    let taken = order[..end].iter().filter(|&&other| other == part).count();
                    prop_assert!((taken as f64 - weight / total * end as f64).abs() < weights.len() as f64);
                }
            }
            let taken = |part| order.iter().filter(|&&other| other == part).count();
            prop_assert!((0..counts.len()).all(|part| taken(part) <= counts[part]));
            prop_assert!((0..counts.len()).any(|part| taken(part) == counts[part]));
        }
    }
}
