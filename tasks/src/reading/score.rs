//! Exact match and F1 as SQuAD 2.0's official evaluation script computes them, in percent and under its
//! names.

use std::collections::BTreeMap;

use circuit_framework::Figures;

/// One answer's scores, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scored {
    pub(super) exact: f64,
    pub(super) f1: f64,
    /// Whether the question has an answer.
    answerable: bool,
}

/// Lower case, without punctuation, articles and superfluous spaces.
fn normalise(text: &str) -> String {
    let lower = text.to_lowercase();
    let plain: String = lower.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    without_articles(&plain).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The text with "a", "an" and "the" blanked where they are whole words.
fn without_articles(text: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word);
        kept.push_str(if ["a", "an", "the"].contains(&word) { " " } else { word });
        let gap = after.find(is_word).unwrap_or(after.len());
        kept.push_str(&after[..gap]);
        rest = &after[gap..];
    }
    kept
}

fn f1(gold: &str, answer: &str) -> f64 {
    let (gold, answer) = (normalise(gold), normalise(answer));
    let gold: Vec<&str> = gold.split_whitespace().collect();
    let answer: Vec<&str> = answer.split_whitespace().collect();
    if gold.is_empty() || answer.is_empty() {
        return f64::from(gold == answer);
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    gold.iter().for_each(|word| *counts.entry(word).or_default() += 1);
    let mut common = 0.0;
    for word in &answer {
        if let Some(left @ 1..) = counts.get_mut(word) {
            *left -= 1;
            common += 1.0;
        }
    }
    if common == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (common / answer.len() as f64, common / gold.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

/// An answer's scores: the best over the right answers. The question has none where `gold` is empty;
/// an empty answer is then right.
pub(super) fn score(answer: &str, gold: &[String]) -> Scored {
    let mut right: Vec<&str> =
        gold.iter().map(String::as_str).filter(|gold| !normalise(gold).is_empty()).collect();
    if right.is_empty() {
        right.push("");
    }
    let best = |of: &dyn Fn(&str) -> f64| right.iter().map(|gold| of(gold)).fold(0.0, f64::max);
    Scored {
        exact: best(&|gold| f64::from(normalise(gold) == normalise(answer))),
        f1: best(&|gold| f1(gold, answer)),
        answerable: !gold.is_empty(),
    }
}

/// The script's figures, in percent: over all questions, those with and those without an answer.
pub(super) fn figures(scored: &[Scored]) -> Figures {
    let mut figures = Figures::new();
    let groups: [(&str, Option<bool>); 3] =
        [("", None), ("HasAns_", Some(true)), ("NoAns_", Some(false))];
    for (prefix, answerable) in groups {
        let group: Vec<&Scored> = (scored.iter())
            .filter(|scored| answerable.is_none_or(|wanted| scored.answerable == wanted))
            .collect();
        if group.is_empty() {
            continue;
        }
        let percent = |of: fn(&Scored) -> f64| {
            100.0 * group.iter().map(|scored| of(scored)).sum::<f64>() / group.len() as f64
        };
        figures.insert(format!("{prefix}exact"), percent(|scored| scored.exact));
        figures.insert(format!("{prefix}f1"), percent(|scored| scored.f1));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores worked out by hand from the official script's rules.
    #[test]
    fn answers_score_as_the_official_script_says() {
        for (answer, gold, exact, f1) in [
            ("the golden statue", &["a golden statue"][..], 1.0, 1.0),
            ("Golden, statue!", &["golden statue"], 1.0, 1.0),
            ("statue", &["golden statue"], 0.0, 2.0 / 3.0),
            ("a statue of the Virgin Mary", &["statue", "Virgin Mary"], 0.0, 2.0 / 3.0),
            ("in in in", &["in"], 0.0, 0.5),
            ("theatre", &["atre"], 0.0, 0.0),
            ("", &[], 1.0, 1.0),
            ("the", &[], 1.0, 1.0),
            ("Mary", &[], 0.0, 0.0),
            ("", &["Mary"], 0.0, 0.0),
            ("U.S.", &["US"], 1.0, 1.0),
            ("co-operate", &["cooperate"], 1.0, 1.0),
        ] {
            let gold: Vec<String> = gold.iter().map(|&text| text.to_owned()).collect();
            let scored = score(answer, &gold);
            assert_eq!(scored.exact, exact, "{answer}");
            assert!((scored.f1 - f1).abs() < 1e-12, "{answer}: {}", scored.f1);
        }
    }

    #[test]
    fn figures_are_split_by_answerable() {
        let gold = ["red door".to_owned()];
        let scored = [score("red", &gold), score("a red door", &gold), score("red", &[])];
        let figures = figures(&scored);
        let near = |name: &str, value: f64| (figures[name] - value).abs() < 1e-9;
        assert!(near("exact", 100.0 / 3.0) && near("f1", (200.0 / 3.0 + 100.0) / 3.0));
        assert!(near("HasAns_exact", 50.0) && near("HasAns_f1", (200.0 / 3.0 + 100.0) / 2.0));
        assert!(near("NoAns_exact", 0.0) && near("NoAns_f1", 0.0));
    }
}
