//! Grade-school mathematics: GSM8K (Cobbe et al., 2021, arXiv 2110.14168). The model is asked to
//! reason and to put the final answer after `#### `; it is tuned on the published solutions and judged
//! on the numbers of the answers it generates.
//!
//! Discovery is guided by the whole solution (`process`: the metric is the loss) or by the final
//! answer (`outcome`: the log-probability of the tokens after `#### `), arXiv 2502.06106, section 4.2.

use std::path::PathBuf;

use circuit_framework::{
    Dataset, Evaluation, Example, Figures, Generation, Result, Setting, Split, Task, refuse,
    register,
};
use serde::{Deserialize, Serialize};

use crate::instruction::{self, Item, Loaded, share};
use crate::rows::{self, BadRows, Sieve};

/// What a circuit is discovered by.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
enum Guidance {
    #[default]
    Process,
    Outcome,
}

/// Where the problems are, and how they are put.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Math {
    /// GSM8K's JSON Lines to discover and tune on.
    data: Option<PathBuf>,
    /// GSM8K's JSON Lines to evaluate on; without it, `data`.
    test_data: Option<PathBuf>,
    /// The default metric: the loss (`process`), or the final answer's log-probability (`outcome`).
    guidance: Guidance,
    /// Keep the solutions' `<<…>>` annotations.
    annotations: bool,
    /// At most so many problems to discover and tune on.
    train_examples: Option<usize>,
    /// At most so many problems to evaluate on.
    test_examples: Option<usize>,
    /// Leave out examples of more tokens; the context is always a limit.
    max_tokens: Option<usize>,
    /// Rows that can't be used: `stop` or `skip`.
    bad_rows: BadRows,
    /// How answers are generated.
    generation: Generation,
}

/// A line of the files.
#[derive(Deserialize)]
struct Line {
    question: String,
    answer: String,
}

/// A problem, and its final answer.
#[derive(Debug)]
struct Problem {
    item: Item,
    gold: f64,
}

const MARK: &str = "####";

impl Line {
    fn problem(&self, origin: &str, annotations: bool) -> Result<Problem> {
        let solution = match annotations {
            true => self.answer.clone(),
            false => without_annotations(&self.answer),
        };
        let Some((_, last)) = solution.rsplit_once(MARK) else {
            refuse!("the answer has no `{MARK}`, behind which its number stands");
        };
        let Some(gold) = number(last) else {
            refuse!("there is no number behind `{MARK}` but {last:?}");
        };
        let end = solution.trim_end().len();
        let start = solution.len() - last.trim_start().len();
        Ok(Problem {
            item: Item {
                origin: origin.to_owned(),
                question: format!(
                    "{} Please answer step by step and give the final answer after '#### '.",
                    self.question.trim()
                ),
                key: start..end,
                answer: solution,
                wrong: None,
            },
            gold,
        })
    }
}

/// The solution without `<<…>>`.
fn without_annotations(solution: &str) -> String {
    let mut pieces = solution.split("<<");
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        match piece.split_once(">>") {
            Some((_, rest)) => text.push_str(rest),
            None => text.extend(["<<", piece]),
        }
    }
    text
}

/// The number a text begins with; commas and dollar signs don't count.
fn number(text: &str) -> Option<f64> {
    let mut digits = String::new();
    for character in text.trim_start().chars() {
        match character {
            '$' | ',' | '\\' => {}
            '-' if digits.is_empty() => digits.push('-'),
            '.' if !digits.contains('.') => digits.push('.'),
            '0'..='9' => digits.push(character),
            _ => break,
        }
    }
    digits.trim_end_matches('.').parse().ok()
}

/// The final answer of a generated solution: the first number that one of the marks announces, the
/// marks tried in turn.
fn extract(answer: &str) -> Option<f64> {
    [MARK, "boxed{", "The final answer is:"].into_iter().find_map(|mark| {
        answer.match_indices(mark).find_map(|(at, mark)| number(&answer[at + mark.len()..]))
    })
}

fn is_right(answer: Option<f64>, gold: f64) -> bool {
    answer.is_some_and(|answer| (answer - gold).abs() < 1e-9 * gold.abs().max(1.0))
}

/// A line of generations.jsonl.
#[derive(Serialize)]
struct Generated<'a> {
    origin: &'a str,
    question: &'a str,
    gold: f64,
    generated: &'a str,
    extracted: Option<f64>,
    correct: bool,
}

impl Math {
    fn loaded(&self, split: Split, setting: &Setting) -> Result<Loaded<Problem>> {
        let (test, most) = match split {
            Split::Train => (None, self.train_examples),
            Split::Test => (self.test_data.as_ref(), self.test_examples),
        };
        let Some(path) = test.or(self.data.as_ref()) else {
            refuse!("task `math` needs data: GSM8K's JSON Lines with `question` and `answer`");
        };
        let mut sieve = Sieve::new(path, self.bad_rows, self.max_tokens, setting);
        let rows = rows::jsonl::<Line>(path)?;
        let problems =
            sieve.keep_all(rows, |line, origin| line.problem(origin, self.annotations))?;
        instruction::load(
            problems,
            |problem| &problem.item,
            most,
            &self.generation,
            setting,
            &mut sieve,
        )
    }
}

impl Task for Math {
    fn default_metric(&self) -> &str {
        match self.guidance {
            Guidance::Process => "loss",
            Guidance::Outcome => "answer_log_prob",
        }
    }

    fn load(&self, split: Split, setting: &Setting) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(self.loaded(split, setting)?))
    }
}

impl Dataset for Loaded<Problem> {
    fn examples(&self) -> &[Example] {
        &self.examples
    }

    fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures> {
        let mut figures = evaluation.language_modelling(&self.examples)?;
        let answers = self.generate(evaluation)?;
        let verdicts: Vec<Generated> = (self.items.iter().zip(&answers))
            .map(|(problem, generated)| {
                let extracted = extract(generated);
                Generated {
                    origin: &problem.item.origin,
                    question: &problem.item.question,
                    gold: problem.gold,
                    generated,
                    extracted,
                    correct: is_right(extracted, problem.gold),
                }
            })
            .collect();
        evaluation.write_jsonl("generations.jsonl", &verdicts)?;
        let count = |f: fn(&Generated) -> bool| verdicts.iter().filter(|v| f(v)).count();
        figures.insert("accuracy".into(), share(count(|v| v.correct), verdicts.len()));
        let answered = count(|v| v.extracted.is_some());
        figures.insert("answered".into(), share(answered, verdicts.len()));
        Ok(figures)
    }
}

register!(dyn Task, Math, "math", "grade-school mathematics: GSM8K, judged on generated answers");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{fixture, setting, shared};

    #[test]
    fn answers_are_extracted_and_compared_as_numbers() {
        for (answer, gold, right) in [
            ("so 3 + 4 = 7\n#### 7", 7.0, true),
            ("#### 1,000", 1000.0, true),
            ("#### $5.00", 5.0, true),
            ("#### -12", -12.0, true),
            ("#### $-12.50 dollars", -12.5, true),
            ("it is \\boxed{42}.", 42.0, true),
            ("\\boxed{\\$1,250}", 1250.0, true),
            ("The final answer is: 18.", 18.0, true),
            ("#### 18. That is all", 18.0, true),
            ("#### 0.5", 0.5, true),
            ("#### 7\nQuestion: another\n#### 9", 7.0, true),
            ("#### eight, that is #### 8", 8.0, true),
            ("The final answer is: 3 #### 4", 4.0, true),
            ("the answer is 7", 7.0, false),
            ("#### 70", 7.0, false),
            ("####", 7.0, false),
            ("", 0.0, false),
        ] {
            assert_eq!(is_right(extract(answer), gold), right, "{answer:?}");
        }
    }

    #[test]
    fn annotations_go_and_the_rest_stays() {
        assert_eq!(without_annotations("16 - 3 = $<<16-3=13>>13 a day<<"), "16 - 3 = $13 a day<<");
    }

    #[test]
    fn the_fixture_is_read_and_its_bad_rows_are_named_or_counted() {
        let task = Math { data: Some(fixture("math.jsonl")), ..Math::default() };
        let error = task.loaded(Split::Train, &setting(4096)).unwrap_err().to_string();
        assert!(error.contains("math.jsonl:3: the answer has no `####`"), "{error}");
        let task = Math { bad_rows: BadRows::Skip, ..task };
        let loaded = task.loaded(Split::Train, &setting(4096)).unwrap();
        assert_eq!(loaded.items.iter().map(|p| p.gold).collect::<Vec<_>>(), [7.0, 1200.0]);
        let tokenizer = crate::tests::tokenizer();
        for (problem, example) in loaded.items.iter().zip(&loaded.examples) {
            let text = |tokens: &[u32]| tokenizer.decode(tokens).unwrap();
            let answer = text(&example.tokens[example.predicted.clone()]);
            assert_eq!(answer, problem.item.answer);
            assert!(!answer.contains("<<"));
            let keys: Vec<u32> = example.keys.iter().map(|key| key.correct[0]).collect();
            assert_eq!(number(&text(&keys)), Some(problem.gold));
        }
        assert!(
            Math { annotations: true, ..task }.loaded(Split::Train, &setting(4096)).unwrap().items
                [0]
            .item
            .answer
            .contains("<<3+4=7>>")
        );
    }

    #[test]
    fn all_of_gsm8k_is_read() {
        let Some(data) = shared("math/gsm8k_test.jsonl") else { return };
        let task = Math { data: Some(data), ..Math::default() };
        assert_eq!(task.loaded(Split::Train, &setting(100_000)).unwrap().examples.len(), 1319);
        let limited = Math { max_tokens: Some(500), ..task };
        let loaded = limited.loaded(Split::Train, &setting(100_000)).unwrap();
        assert!(loaded.examples.iter().all(|example| example.tokens.len() <= 500));
        assert!(!loaded.examples.is_empty() && loaded.examples.len() < 1319);
    }
}
