//! Multiple-choice questions from JSON Lines: what tuning costs elsewhere. A line is `{"question": …,
//! "choices": […], "answer": …}`, the answer being an index from 0, or one of the choices. A choice is
//! scored by its log-likelihood after the question and a space, as it is (`acc`) and divided by its length in
//! characters (`acc_norm`), as lm-evaluation-harness does; docs/evaluation.md holds the two against each other.
//!
//! A circuit is found on the right choices. A key is the token at which wrong choices part from the
//! right one, and is held against theirs; a question may have several.

use std::collections::BTreeMap;
use std::path::PathBuf;

use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::ops::cross_entropy::Target;
use circuit_framework::{
    Dataset, Evaluation, Example, Figures, Key, Result, Setting, Split, Task, pass, refuse,
    register,
};
use serde::{Deserialize, Serialize};

use crate::instruction::share;
use crate::rows::{self, BadRows, Sieve};

/// Where the questions are.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct MultipleChoice {
    /// JSON Lines with `question`, `choices` and `answer`.
    data: Option<PathBuf>,
    /// At most so many questions.
    examples: Option<usize>,
    /// Rows that can't be used: `stop` or `skip`.
    bad_rows: BadRows,
}

/// A line of the file.
#[derive(Deserialize)]
struct Line {
    question: String,
    choices: Vec<String>,
    answer: Answer,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Index(usize),
    Text(String),
}

/// How a question was answered, as it is written beside the figures.
#[derive(Serialize)]
struct Verdict<'a> {
    origin: &'a str,
    answer: usize,
    log_likelihoods: &'a [f64],
    acc: bool,
    acc_norm: bool,
}

/// The questions, and of each the right choice's example.
struct Questions {
    questions: Vec<Question>,
    right: Vec<Example>,
}

/// A question: one example a choice.
struct Question {
    choices: Vec<Example>,
    /// The choices' lengths in characters.
    lengths: Vec<usize>,
    answer: usize,
}

impl Line {
    fn question(&self, tokenizer: &Tokenizer, origin: &str) -> Result<Question> {
        let answer = match &self.answer {
            Answer::Index(index) => Some(*index).filter(|&index| index < self.choices.len()),
            Answer::Text(text) => self.choices.iter().position(|choice| choice == text),
        };
        let Some(answer) = answer else {
            refuse!(
                "the answer is none of the {} choices; give its index from 0, or its text",
                self.choices.len()
            );
        };
        let choices = self.choices.iter().map(|choice| self.example(choice, tokenizer, origin));
        let mut choices = choices.collect::<Result<Vec<_>>>()?;
        choices[answer].keys = keys(&choices, answer);
        if choices[answer].keys.is_empty() {
            refuse!(
                "the right choice `{}` parts from none of the others at any token; give a wrong choice \
                 that it can be held against",
                self.choices[answer]
            );
        }
        let lengths = self.choices.iter().map(|choice| choice.chars().count()).collect();
        Ok(Question { choices, lengths, answer })
    }

    /// The question with a choice behind it, which alone is predicted; without keys. Space that the question ends
    /// with stays, as a part of what is predicted: a word's token begins with the space before it.
    fn example(&self, choice: &str, tokenizer: &Tokenizer, origin: &str) -> Result<Example> {
        let mut tokens: Vec<u32> = tokenizer.prefix().into_iter().collect();
        let start = tokens.len() + tokenizer.encode(self.question.trim_end())?.len();
        tokens.extend(tokenizer.encode(&format!("{} {choice}", self.question))?);
        if start == 0 || start >= tokens.len() || choice.trim().is_empty() {
            refuse!("the question or a choice is empty");
        }
        Ok(Example {
            predicted: start..tokens.len(),
            keys: Vec::new(),
            tokens,
            origin: origin.to_owned(),
            ..Example::default()
        })
    }
}

impl Question {
    /// How it is answered, by the choices' log-likelihoods.
    fn verdict<'a>(&'a self, log_likelihoods: &'a [f64]) -> Verdict<'a> {
        let pairs = log_likelihoods.iter().zip(&self.lengths);
        let normed: Vec<f64> = pairs.map(|(score, length)| score / *length as f64).collect();
        Verdict {
            origin: &self.choices[self.answer].origin,
            answer: self.answer,
            log_likelihoods,
            acc: best(log_likelihoods) == self.answer,
            acc_norm: best(&normed) == self.answer,
        }
    }
}

/// The keys of the right choice: the positions at which a wrong one first differs from it, each with
/// the tokens of all that do. A wrong choice that goes on where the right one ends, or the other way
/// round, can't be compared, nor can one before which the question is tokenised otherwise.
fn keys(choices: &[Example], answer: usize) -> Vec<Key> {
    let right = &choices[answer];
    let mut wrong: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for choice in choices {
        let mut pairs = right.tokens.iter().zip(&choice.tokens);
        let parting = pairs.position(|(own, other)| own != other);
        if let Some(position) = parting.filter(|position| right.predicted.contains(position)) {
            let (tokens, token) = (wrong.entry(position).or_default(), choice.tokens[position]);
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
    }
    let key = |(position, wrong)| Key { position, correct: vec![right.tokens[position]], wrong };
    wrong.into_iter().map(key).collect()
}

impl MultipleChoice {
    fn questions(&self, setting: &Setting) -> Result<Vec<Question>> {
        let Some(path) = &self.data else {
            refuse!(
                "task `multiple_choice` needs data: JSON Lines with question, choices and answer"
            );
        };
        let tokenizer = setting.tokenizer()?;
        let mut sieve = Sieve::new(path, self.bad_rows, None, setting);
        let mut questions = Vec::new();
        let rows = rows::jsonl::<Line>(path)?;
        for question in sieve.keep_all(rows, |line, origin| line.question(tokenizer, origin))? {
            let longest = question.choices.iter().max_by_key(|choice| choice.tokens.len());
            if longest.is_some_and(|longest| sieve.fit(longest.clone()).is_some()) {
                questions.push(question);
            }
        }
        questions.truncate(self.examples.unwrap_or(usize::MAX));
        sieve.report(questions.len())?;
        Ok(questions)
    }
}

impl Task for MultipleChoice {
    fn default_metric(&self) -> &str {
        "answer_log_prob"
    }

    fn load(&self, _split: Split, setting: &Setting) -> Result<Box<dyn Dataset>> {
        let questions = self.questions(setting)?;
        let right = |question: &Question| question.choices[question.answer].clone();
        let right = questions.iter().map(right).collect();
        Ok(Box::new(Questions { questions, right }))
    }
}

impl Dataset for Questions {
    fn examples(&self) -> &[Example] {
        &self.right
    }

    fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures> {
        let choices = self.questions.iter().flat_map(|question| &question.choices);
        let examples: Vec<Example> = choices.cloned().collect();
        let scores = evaluation.by_example(&examples, |batch, readout| {
            let score = |(index, example): (usize, &&Example)| {
                let predicted = batch.predicted().filter(|&(of, ..)| of == index);
                let (rows, targets) = predicted
                    .map(|(_, position, row)| {
                        (row, Target { token: example.tokens[position], weight: 1.0 })
                    })
                    .unzip::<_, _, Vec<_>, Vec<_>>();
                Ok(-pass::scalar(&readout.cross_entropy(&rows, targets)?)?)
            };
            batch.examples.iter().enumerate().map(score).collect()
        })?;
        let mut scores = &scores[..];
        let mut verdicts = Vec::new();
        for question in &self.questions {
            let (own, rest) = scores.split_at(question.choices.len());
            scores = rest;
            verdicts.push(question.verdict(own));
        }
        evaluation.write_jsonl("choices.jsonl", &verdicts)?;
        let count =
            |is_right: fn(&Verdict) -> bool| verdicts.iter().filter(|v| is_right(v)).count();
        let figures = [("acc", count(|v| v.acc)), ("acc_norm", count(|v| v.acc_norm))];
        Ok(figures.map(|(name, hits)| (name.to_owned(), share(hits, verdicts.len()))).into())
    }
}

/// The index of the largest value, the first of equals.
fn best(values: &[f64]) -> usize {
    (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or(0)
}

register!(
    dyn Task,
    MultipleChoice,
    "multiple_choice",
    "choices scored by their length-normalised log-likelihood"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{fixture, setting};

    #[test]
    fn the_fixture_is_read_and_its_bad_rows_are_counted() {
        let path = fixture("multiple_choice.jsonl");
        let task = MultipleChoice { data: Some(path), ..MultipleChoice::default() };
        let error = task.questions(&setting(4096)).err().unwrap().to_string();
        assert!(error.contains("multiple_choice.jsonl:3: the answer is none of the 2"), "{error}");
        let task = MultipleChoice { bad_rows: BadRows::Skip, ..task };
        let answers: Vec<usize> =
            task.questions(&setting(4096)).unwrap().iter().map(|q| q.answer).collect();
        assert_eq!(answers, [1, 2]);
        let tokenizer = crate::tests::tokenizer();
        let dataset = task.load(Split::Train, &setting(4096)).unwrap();
        let examples = dataset.examples();
        let predicted = &examples[0].tokens[examples[0].predicted.clone()];
        assert_eq!(tokenizer.decode(predicted).unwrap(), " blue");
        // A limit of the context leaves a question out if its longest choice doesn't fit.
        assert_eq!(task.questions(&setting(40)).unwrap().len(), 1);
    }

    fn question(choices: &[&str]) -> Result<Question> {
        let choices = choices.iter().map(|&choice| choice.to_owned()).collect();
        let line = Line { question: "Q:".to_owned(), choices, answer: Answer::Index(0) };
        line.question(crate::tests::tokenizer(), "here")
    }

    /// Tokens are bytes here.
    #[test]
    fn a_key_is_where_wrong_choices_part_from_the_right_one() {
        let question = question(&["seven", "six", "sixty", "five", "severe", "eve", "seventy"]);
        let question = question.unwrap();
        let right = &question.choices[0];
        let tokenizer = crate::tests::tokenizer();
        let text = |tokens: &[u32]| tokenizer.decode(tokens).unwrap();
        let keys: Vec<(usize, String, String)> = (right.keys.iter())
            .map(|key| (key.position - 3, text(&key.correct), text(&key.wrong)))
            .collect();
        let key = |at: usize, right: &str, wrong: &str| (at, right.to_owned(), wrong.to_owned());
        // "seventy" goes on where "seven" ends: nothing is held against it.
        assert_eq!(keys, [key(0, "s", "fe"), key(1, "e", "i"), key(4, "n", "r")]);
        assert_eq!(text(&right.tokens[right.predicted.clone()]), " seven");
        assert!(question.choices[1..].iter().all(|choice| choice.keys.is_empty()));
    }

    /// lm-evaluation-harness does both: tests/tools/choices.py holds its verdicts against ours.
    #[test]
    fn lengths_are_characters_and_space_behind_a_question_is_predicted() {
        let mut choices = question(&["aé", "éee"]).unwrap();
        assert_eq!(choices.lengths, [2, 3]);
        // By characters -6.2 / 3 is the larger, by bytes, 3 and 4, -4.2 / 3.
        choices.answer = 1;
        let verdict = choices.verdict(&[-4.2, -6.2]);
        assert_eq!((verdict.acc, verdict.acc_norm), (false, true));
        let line = Line {
            question: "Q: \n".to_owned(),
            choices: vec!["six".to_owned(), "ten".to_owned()],
            answer: Answer::Index(0),
        };
        let tokenizer = crate::tests::tokenizer();
        let question = line.question(tokenizer, "here").unwrap();
        let six = &question.choices[0];
        assert_eq!(tokenizer.decode(&six.tokens[six.predicted.clone()]).unwrap(), " \n six");
    }

    #[test]
    fn a_question_without_a_wrong_choice_to_compare_is_a_bad_row() {
        for choices in [&["seven"][..], &["seven", "seventy"], &["seven", "seven"]] {
            let error = question(choices).err().unwrap().to_string();
            assert!(error.contains("`seven` parts from none"), "{error}");
        }
    }

    #[test]
    fn the_first_of_equals_is_best() {
        assert_eq!(best(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(best(&[-2.0]), 0);
    }
}
