//! Generated answers judged: accuracy, and precision, recall and F1 of each class, as scikit-learn
//! defines them, where an answer without a label is none of the classes.

use std::collections::BTreeMap;

use circuit_framework::Figures;

use super::problems::{Label, Problem};
use crate::instruction::share;

/// A problem and what was answered.
pub(super) struct Verdict<'a> {
    pub(super) problem: &'a Problem,
    pub(super) predicted: Option<Label>,
}

impl Verdict<'_> {
    pub(super) fn is_right(&self) -> bool {
        self.predicted == Some(self.problem.answer)
    }
}

/// The label in the first `<answer>…</answer>` of an answer.
pub(super) fn extract(answer: &str) -> Option<Label> {
    let (_, rest) = answer.split_once("<answer>")?;
    let (label, _) = rest.split_once("</answer>")?;
    Label::parse(label)
}

/// Accuracy, over all and by level, kind and category; precision, recall and F1 of each class, and
/// weighted by how often each is right.
pub(super) fn figures(verdicts: &[Verdict]) -> Figures {
    let mut figures = Figures::new();
    let mut groups: BTreeMap<String, Vec<bool>> = BTreeMap::new();
    for verdict in verdicts {
        let Problem { level, kind, category, .. } = verdict.problem;
        let names = [
            "accuracy".to_owned(),
            format!("accuracy.level{level}"),
            format!("accuracy.{}", kind.name()),
            format!("accuracy.{category}"),
        ];
        for name in names {
            groups.entry(name).or_default().push(verdict.is_right());
        }
    }
    for (name, right) in groups {
        figures.insert(name, share(right.iter().filter(|&&right| right).count(), right.len()));
    }
    let answered = verdicts.iter().filter(|verdict| verdict.predicted.is_some()).count();
    figures.insert("answered".into(), share(answered, verdicts.len()));
    for label in Label::ALL {
        let count = |gold: bool, predicted: bool| {
            let matches = |verdict: &&Verdict| {
                (!gold || verdict.problem.answer == label)
                    && (!predicted || verdict.predicted == Some(label))
            };
            verdicts.iter().filter(matches).count() as f64
        };
        let (hits, gold, predicted) = (count(true, true), count(true, false), count(false, true));
        // scikit-learn's convention: 0 where a ratio is not defined.
        let ratio = |of: f64| if of == 0.0 { 0.0 } else { hits / of };
        let (precision, recall) = (ratio(predicted), ratio(gold));
        let f1 = if hits == 0.0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) };
        for (name, value) in [("precision", precision), ("recall", recall), ("f1", f1)] {
            figures.insert(format!("{name}.{}", label.text()), value);
            let weight = gold / verdicts.len() as f64;
            *figures.entry(format!("{name}.weighted")).or_default() += weight * value;
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::super::problems::Kind;
    use super::*;
    use crate::instruction::Item;

    #[test]
    fn the_first_whole_tag_counts() {
        for (answer, label) in [
            ("so <answer>True</answer>", Some(Label::True)),
            ("<answer> false </answer>", Some(Label::False)),
            ("<answer>N/A</answer> or <answer>True</answer>", Some(Label::Unknown)),
            ("True", None),
            ("<answer>True", None),
            ("<answer>maybe</answer>", None),
        ] {
            assert_eq!(extract(answer), label, "{answer}");
        }
    }

    fn problem(level: usize, answer: Label) -> Problem {
        let item = Item {
            origin: String::new(),
            question: String::new(),
            answer: String::new(),
            key: 0..0,
            wrong: None,
        };
        let category = if level == 1 { "arts" } else { "abstract" }.to_owned();
        Problem { item, level, kind: Kind::Deductive, category, answer }
    }

    /// Figures worked out by hand: True 2 of 3 found and 1 wrongly, False 1 of 1, N/A none of 1.
    #[test]
    fn figures_of_hand_made_answers() {
        use Label::{False, True, Unknown};
        let made = [
            (problem(1, True), Some(True)),
            (problem(1, True), Some(True)),
            (problem(2, True), None),
            (problem(2, False), Some(False)),
            (problem(2, Unknown), Some(True)),
        ];
        let verdicts: Vec<Verdict> = made
            .iter()
            .map(|(problem, predicted)| Verdict { problem, predicted: *predicted })
            .collect();
        let figures = figures(&verdicts);
        for (name, value) in [
            ("accuracy", 0.6),
            ("answered", 0.8),
            ("accuracy.level1", 1.0),
            ("accuracy.level2", 1.0 / 3.0),
            ("accuracy.deductive", 0.6),
            ("accuracy.arts", 1.0),
            ("precision.True", 2.0 / 3.0),
            ("recall.True", 2.0 / 3.0),
            ("f1.True", 2.0 / 3.0),
            ("precision.False", 1.0),
            ("recall.False", 1.0),
            ("f1.N/A", 0.0),
            ("precision.N/A", 0.0),
            ("f1.weighted", 0.6 * 2.0 / 3.0 + 0.2),
            ("recall.weighted", 0.6),
        ] {
            assert!((figures[name] - value).abs() < 1e-12, "{name}: {}", figures[name]);
        }
    }
}
