//! The curve of faithfulness over circuits of growing size, and what it amounts to: CPR and CMD (MIB,
//! arXiv 2504.13151), the smallest circuit that is faithful enough.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::evaluation::faithfulness::{CircuitEvaluation, Scale};
use crate::evaluation::plot::Line;
use crate::graph::edge_set::EdgeSet;
use crate::graph::{Reader, Writer};

/// How many sizes are tried for the smallest circuit.
pub const SIZES: usize = 40;

/// How many of them are run together, with one batch's ablated values for all.
const SIZES_AT_ONCE: usize = 4;

/// A circuit of the curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The share of the graph's edges that was asked for.
    pub fraction: f64,
    /// How many edges that is.
    pub n: usize,
    /// How many of them were kept when dead ends were dropped.
    pub kept: usize,
    pub metric: f64,
    pub faithfulness: f64,
}

/// Faithfulness over the fractions, of one ranking.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    pub points: Vec<Point>,
    /// The area under f, from the first fraction to 1.
    pub cpr: f64,
    /// The area under |1 − f|.
    pub cmd: f64,
}

impl Curve {
    /// The curve as a plot's line.
    pub fn line(&self, label: &str) -> Line {
        let points = self.points.iter().map(|point| (point.fraction, point.faithfulness)).collect();
        Line { label: label.to_owned(), points }
    }
}

/// The smallest circuit from which a faithfulness stays reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Smallest {
    /// The faithfulness that was to be reached.
    pub reach: f64,
    pub n: usize,
    /// Its share of the graph's edges.
    pub fraction: f64,
    pub faithfulness: f64,
}

impl CircuitEvaluation<'_> {
    /// The curves of several orders of edges at these fractions, from 0 to 1.
    ///
    /// # Errors
    /// As [`CircuitEvaluation::measure`]'s.
    pub fn curves(
        &self,
        orders: &[Vec<(Writer, Reader)>],
        fractions: &[f64],
    ) -> Result<(Scale, Vec<Curve>)> {
        let edges = self.all.len();
        // The area goes up to the whole graph, asked for or not.
        let with_end: Vec<f64> = fractions.iter().copied().chain([1.0]).collect();
        let sizes: Vec<usize> =
            with_end.iter().map(|fraction| (fraction * edges as f64) as usize).collect();
        let circuits: Vec<EdgeSet> =
            (orders.iter()).flat_map(|order| sizes.iter().map(|&n| self.first(order, n))).collect();
        let measured = self.measure(&circuits)?;
        let results = measured.kept.iter().zip(&measured.metrics);
        let points: Vec<Point> = (results.zip(with_end.iter().zip(&sizes).cycle()))
            .map(|((&kept, &metric), (&fraction, &n))| {
                let faithfulness = measured.scale.faithfulness(metric);
                Point { fraction, n, kept, metric, faithfulness }
            })
            .collect();
        let curves = points.chunks(with_end.len()).map(|points| Curve {
            cpr: area(points, |f| f),
            cmd: area(points, |f| (1.0 - f).abs()),
            points: points[..fractions.len()].to_vec(),
        });
        Ok((measured.scale, curves.collect()))
    }

    /// The curve of one order of edges.
    ///
    /// # Errors
    /// As [`CircuitEvaluation::measure`]'s.
    pub fn curve(&self, order: Vec<(Writer, Reader)>, fractions: &[f64]) -> Result<(Scale, Curve)> {
        let (scale, mut curves) = self.curves(&[order], fractions)?;
        Ok((scale, curves.remove(0)))
    }

    /// The smallest of [`SIZES`] circuits of each order, their sizes spaced evenly in their logarithm from
    /// one edge to all, from which on faithfulness `reach` stays reached; none if it isn't even by the
    /// largest.
    ///
    /// # Errors
    /// As [`CircuitEvaluation::measure`]'s.
    pub fn smallest(
        &self,
        orders: &[Vec<(Writer, Reader)>],
        reach: f64,
    ) -> Result<Vec<Option<Smallest>>> {
        let mut known = BTreeMap::new();
        orders.iter().map(|order| self.smallest_of(order, reach, &mut known)).collect()
    }

    fn smallest_of(
        &self,
        order: &[(Writer, Reader)],
        reach: f64,
        known: &mut BTreeMap<EdgeSet, f64>,
    ) -> Result<Option<Smallest>> {
        let edges = self.all.len();
        let size = |index: usize| {
            let share = index as f64 / (SIZES - 1) as f64;
            (edges as f64).powf(share).round() as usize
        };
        let sizes: Vec<usize> = (0..SIZES).map(size).collect();
        let mut smallest = None;
        // From the largest down: those below the first that fails need not be run.
        for sizes in sizes.rchunks(SIZES_AT_ONCE) {
            let circuits: Vec<EdgeSet> = sizes.iter().map(|&n| self.first(order, n)).collect();
            let measured = self.measure_beside(&circuits, known)?;
            for (&n, &metric) in sizes.iter().zip(&measured.metrics).rev() {
                let faithfulness = measured.scale.faithfulness(metric);
                if faithfulness.is_nan() || faithfulness < reach {
                    return Ok(smallest);
                }
                let fraction = n as f64 / edges as f64;
                smallest = Some(Smallest { reach, n, fraction, faithfulness });
            }
        }
        Ok(smallest)
    }

    /// The first `n` edges of an order.
    fn first(&self, order: &[(Writer, Reader)], n: usize) -> EdgeSet {
        EdgeSet::of(self.model.graph(), order.iter().take(n).copied())
    }
}

/// The area under a function of f over the fractions, by trapezoids.
fn area(points: &[Point], of: impl Fn(f64) -> f64) -> f64 {
    let mut heights: Vec<(f64, f64)> =
        points.iter().map(|point| (point.fraction, of(point.faithfulness))).collect();
    heights.sort_by(|a, b| a.0.total_cmp(&b.0));
    heights.windows(2).map(|pair| (pair[1].0 - pair[0].0) * (pair[0].1 + pair[1].1) / 2.0).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: a perfect circuit, and one that is a fifth faithful until it is whole.
    #[test]
    fn areas_are_sums_of_trapezoids() {
        let points = |of: &dyn Fn(f64) -> f64| -> Vec<Point> {
            let point = |&fraction: &f64| Point {
                fraction,
                n: 0,
                kept: 0,
                metric: 0.0,
                faithfulness: of(fraction),
            };
            [1.0, 0.001, 0.5].iter().map(point).collect()
        };
        let perfect = points(&|_| 1.0);
        assert!((area(&perfect, |f| f) - 0.999).abs() < 1e-12);
        let poor = points(&|fraction| if fraction == 1.0 { 1.0 } else { 0.2 });
        assert!((area(&poor, |f| f) - (0.499 * 0.2 + 0.5 * 0.6)).abs() < 1e-12);
        assert!((area(&poor, |f| (1.0 - f).abs()) - (0.499 * 0.8 + 0.5 * 0.4)).abs() < 1e-12);
    }
}
