//! How far one method's scores agree with another's, on the edges that it finds the strongest.

use serde::Serialize;

use crate::correlation::{pearson, spearman};
use crate::graph::scores::Scores;

/// Correlations of scores with a reference's. None where the scores don't vary, or there are fewer than
/// two.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Of the scores.
    pub pearson: Option<f64>,
    /// Of their ranks; scores that tie share the mean of their ranks.
    pub spearman: Option<f64>,
}

impl Agreement {
    /// Of the `top` edges with the largest |score|. Both are of the same graph.
    pub fn of(scores: &Scores, reference: &Scores, top: usize) -> Self {
        let edges = scores.strongest(top);
        let values = |of: &Scores| -> Vec<f64> {
            edges.iter().map(|&(writer, reader)| f64::from(of.of(writer, reader))).collect()
        };
        let (own, others) = (values(scores), values(reference));
        Self { pearson: pearson(&own, &others), spearman: spearman(&own, &others) }
    }
}
