//! The number of edges over time: from a start value to the pruning's.

use serde::{Deserialize, Serialize};

use crate::graph::Graph;
use crate::{Result, refuse};

/// How it moves.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    #[default]
    Linear,
    Cosine,
}

/// From `start` edges to the pruning's top-n over `steps` steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TopNSchedule {
    /// The number of edges at the first step.
    pub start: usize,
    /// After how many steps the last number is reached.
    pub steps: usize,
    /// How the number moves.
    #[serde(default)]
    pub shape: Shape,
}

impl TopNSchedule {
    /// Refuses a start that this graph has no edges for.
    ///
    /// # Errors
    /// Naming the setting and what would be right.
    pub fn check(&self, graph: &Graph) -> Result<()> {
        if self.start == 0 || self.start > graph.edge_count() {
            refuse!(
                "top_n_schedule.start is {}; it must be from 1 to the graph's {} edges",
                self.start,
                graph.edge_count()
            );
        }
        Ok(())
    }

    /// The number of edges at a step, on the way to `last`.
    pub fn at(&self, step: usize, last: usize) -> usize {
        if step >= self.steps {
            return last;
        }
        let time = step as f64 / self.steps as f64;
        let done = match self.shape {
            Shape::Linear => time,
            Shape::Cosine => (1.0 - (std::f64::consts::PI * time).cos()) / 2.0,
        };
        (self.start as f64 + (last as f64 - self.start as f64) * done).round() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_from_start_to_last() {
        let at = |shape, step| TopNSchedule { start: 100, steps: 4, shape }.at(step, 20);
        assert_eq!([0, 1, 2, 4, 9].map(|step| at(Shape::Linear, step)), [100, 80, 60, 20, 20]);
        // (1 − cos(π/4)) / 2 = 0.1464…
        assert_eq!([0, 1, 2, 4].map(|step| at(Shape::Cosine, step)), [100, 88, 60, 20]);
    }
}
