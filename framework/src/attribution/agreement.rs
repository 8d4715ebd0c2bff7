//! How far one method's scores agree with another's, on the edges that it finds the strongest.

use serde::Serialize;

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
        Self { pearson: pearson(&own, &others), spearman: pearson(&ranks(&own), &ranks(&others)) }
    }
}

/// The correlation coefficient of two variables.
fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut covariance, mut variance_a, mut variance_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        covariance += (a - mean_a) * (b - mean_b);
        variance_a += (a - mean_a).powi(2);
        variance_b += (b - mean_b).powi(2);
    }
    let scale = (variance_a * variance_b).sqrt();
    (scale > 0.0).then(|| covariance / scale)
}

/// The rank of each value from 0; ties share their mean.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let mean = first as f64 + (tied.len() - 1) as f64 / 2.0;
        tied.iter().for_each(|&index| ranks[index] = mean);
        first += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By hand: deviations (−1, 0, 1) and (−2, 1, 1); covariance 3, variances 2 and 6.
    #[test]
    fn correlations_by_hand() {
        let (a, b) = ([1.0, 2.0, 3.0], [0.0, 3.0, 3.0]);
        assert!((pearson(&a, &b).unwrap() - 3.0 / 12f64.sqrt()).abs() < 1e-15);
        assert_eq!(ranks(&b), [0.0, 1.5, 1.5]);
        assert_eq!(ranks(&[5.0, -1.0, 5.0, 5.0, 7.0]), [2.0, 0.0, 2.0, 2.0, 4.0]);
        assert_eq!(pearson(&a, &[1.0; 3]), None);
        assert_eq!(pearson(&[1.0], &[2.0]), None);
        assert_eq!(pearson(&[], &[]), None);
    }

    proptest! {
        /// Neither changes with scale and offset; ranks don't with anything that rises.
        #[test]
        fn what_correlations_do_not_see(values in prop::collection::vec((-9f64..9.0, -9f64..9.0), 2..30)) {
            let (a, b): (Vec<f64>, Vec<f64>) = values.into_iter().unzip();
            let scaled: Vec<f64> = a.iter().map(|a| 3.0 * a - 5.0).collect();
            let risen: Vec<f64> = a.iter().map(|a| a.exp()).collect();
            if let (Some(before), Some(after)) = (pearson(&a, &b), pearson(&scaled, &b)) {
                prop_assert!((before - after).abs() < 1e-9 && before.abs() <= 1.0 + 1e-12);
            }
            prop_assert_eq!(ranks(&a), ranks(&risen));
            prop_assert!((ranks(&a).iter().sum::<f64>() - (a.len() * (a.len() - 1) / 2) as f64).abs() < 1e-9);
        }
    }
}
