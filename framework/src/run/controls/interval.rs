//! Means over seeds and their 95 % intervals, by Student's t.

use crate::evaluation::task::Figures;

/// How often the interval is to cover the mean of all seeds there could be.
const CONFIDENCE: f64 = 0.95;

/// The mean of each figure that all of them have.
pub(super) fn means(repeats: &[&Figures]) -> Figures {
    common(repeats, |values| values.iter().sum::<f64>() / values.len() as f64)
}

/// Half the width of each mean's 95 % interval, t·s/√n with n − 1 degrees of freedom; of a single
/// repeat none.
pub(super) fn margins(repeats: &[&Figures]) -> Figures {
    match repeats.len() {
        0 | 1 => Figures::new(),
        count => {
            let t = student_t(count as u32 - 1);
            common(repeats, |values| t * standard_error(values))
        }
    }
}

/// What one set of figures has more of than another, of those that both have.
pub(super) fn difference(of: &Figures, from: &Figures) -> Figures {
    let less = |(name, value): (&String, &f64)| Some((name.clone(), value - from.get(name)?));
    of.iter().filter_map(less).collect()
}

/// A number for each figure that all of them have, from its values.
fn common(repeats: &[&Figures], number: impl Fn(&[f64]) -> f64) -> Figures {
    let names = repeats.first().into_iter().flat_map(|figures| figures.keys());
    let of = |name: &String| {
        let values: Option<Vec<f64>> =
            repeats.iter().map(|figures| figures.get(name).copied()).collect();
        Some((name.clone(), number(&values?)))
    };
    names.filter_map(of).collect()
}

/// s/√n, with s² = Σ(x − mean)²/(n − 1).
fn standard_error(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (count - 1.0) / count).sqrt()
}

/// The t that a variable of Student's distribution is within, −t to t, with probability [`CONFIDENCE`];
/// found by bisection over θ = atan(t/√degrees).
fn student_t(degrees: u32) -> f64 {
    let (mut low, mut high) = (0.0, std::f64::consts::FRAC_PI_2);
    for _ in 0..64 {
        let middle = (low + high) / 2.0;
        match within(degrees, middle) < CONFIDENCE {
            true => low = middle,
            false => high = middle,
        }
    }
    f64::from(degrees).sqrt() * f64::tan((low + high) / 2.0)
}

/// The probability that |t| is at most √degrees · tan θ: Abramowitz and Stegun, 26.7.3 and 26.7.4.
fn within(degrees: u32, theta: f64) -> f64 {
    let (sin, cos) = theta.sin_cos();
    let is_odd = degrees % 2 == 1;
    // 1 + (1/2)cos²θ + (1·3/2·4)cos⁴θ + …, or cosθ + (2/3)cos³θ + (2·4/3·5)cos⁵θ + ….
    let (mut term, mut sum) = if is_odd { (cos, 0.0) } else { (1.0, 0.0) };
    let mut divisor = if is_odd { 3.0 } else { 2.0 };
    for _ in 0..degrees / 2 {
        sum += term;
        term *= cos * cos * (divisor - 1.0) / divisor;
        divisor += 2.0;
    }
    match is_odd {
        true => (theta + sin * sum) * std::f64::consts::FRAC_2_PI,
        false => sin * sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of every textbook.
    #[test]
    fn quantiles_are_those_of_the_table() {
        for (degrees, t) in [
            (1, 12.706),
            (2, 4.303),
            (3, 3.182),
            (4, 2.776),
            (5, 2.571),
            (9, 2.262),
            (10, 2.228),
            (30, 2.042),
            (120, 1.980),
        ] {
            assert!((student_t(degrees) - t).abs() < 6e-4, "{degrees}: {}", student_t(degrees));
        }
    }

    #[test]
    fn mean_and_interval_are_those_computed_by_hand() {
        let figures = [1.0, 2.0, 6.0].map(|value| Figures::from([("x".to_owned(), value)]));
        let repeats: Vec<&Figures> = figures.iter().collect();
        assert_eq!(means(&repeats)["x"], 3.0);
        // s² = (4 + 1 + 9)/2 = 7, so s/√3 = 1.52753, times 4.30265.
        assert!((margins(&repeats)["x"] - 6.57241).abs() < 1e-4, "{:?}", margins(&repeats));
        assert!(margins(&repeats[..1]).is_empty());
        assert_eq!(difference(&figures[2], &figures[0])["x"], 5.0);
    }

    #[test]
    fn a_figure_that_a_repeat_lacks_has_no_mean() {
        let with = Figures::from([("x".to_owned(), 1.0), ("y".to_owned(), f64::INFINITY)]);
        let without = Figures::from([("y".to_owned(), f64::INFINITY)]);
        let all = means(&[&with, &without]);
        assert_eq!(all.keys().collect::<Vec<_>>(), ["y"]);
        assert_eq!(all["y"], f64::INFINITY);
    }
}
