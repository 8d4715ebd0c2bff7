//! Reading comprehension: SQuAD 2.0 (Rajpurkar et al., 2018, arXiv 1806.03822), from the official nested
//! JSON or from flat JSON Lines. A question is answered with words of the context, or with
//! `[No Answer]`; answers are judged as the official script judges them ([`score`]).

mod score;

use std::path::{Path, PathBuf};

use circuit_framework::{
    Dataset, Error, Evaluation, Example, Figures, Generation, Result, Setting, Split, Task, files,
    refuse, register,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::instruction::{self, Item, Loaded};
use crate::rows::{self, BadRows, Row, Sieve};

const NO_ANSWER: &str = "[No Answer]";

/// Where the questions are.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Reading {
    /// SQuAD 2.0's JSON, or JSON Lines with `context`, `question` and `answers`, to discover and tune
    /// on.
    data: Option<PathBuf>,
    /// The same to evaluate on; without it, `data`.
    test_data: Option<PathBuf>,
    /// At most so many questions to discover and tune on.
    train_examples: Option<usize>,
    /// At most so many questions to evaluate on.
    test_examples: Option<usize>,
    /// Leave out examples of more tokens; the context is always a limit.
    max_tokens: Option<usize>,
    /// Questions that can't be used: `stop` or `skip`.
    bad_rows: BadRows,
    /// How answers are generated.
    generation: Generation,
}

/// A question with its right answers: none where the context has none.
#[derive(Debug)]
struct Question {
    item: Item,
    answers: Vec<String>,
}

/// The official file.
#[derive(Deserialize)]
struct File {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<Value>,
}

#[derive(Deserialize)]
struct Answered {
    question: String,
    answers: Vec<Answer>,
    #[serde(default)]
    is_impossible: bool,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
}

/// A line of the flat form. `answers` is a list of texts, or Hugging Face's `{"text": […]}`.
#[derive(Deserialize)]
struct Line {
    context: String,
    question: String,
    answers: Flat,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Flat {
    Texts(Vec<String>),
    Columns { text: Vec<String> },
}

/// The file's questions, each with where it stands.
fn read(path: &Path) -> Result<Vec<Row<Question>>> {
    if path.extension().is_some_and(|extension| extension == "jsonl") {
        return Ok((rows::jsonl::<Line>(path)?.into_iter())
            .map(|Row { origin, value }| {
                let value = value.and_then(|line| {
                    let (Flat::Texts(answers) | Flat::Columns { text: answers }) = line.answers;
                    Question::new(&line.context, &line.question, answers, None, &origin)
                });
                Row { origin, value }
            })
            .collect());
    }
    let mut rows = Vec::new();
    for (article, content) in files::read_json::<File>(path)?.data.into_iter().enumerate() {
        for (paragraph, content) in content.paragraphs.into_iter().enumerate() {
            for (question, value) in content.qas.into_iter().enumerate() {
                let origin = format!(
                    "{}: article {}, paragraph {}, question {}",
                    path.display(),
                    article + 1,
                    paragraph + 1,
                    question + 1
                );
                let value = serde_json::from_value::<Answered>(value)
                    .map_err(|error| Error::input(error.to_string()))
                    .and_then(|asked| {
                        let answers = asked.answers.into_iter().map(|answer| answer.text).collect();
                        let impossible = Some(asked.is_impossible);
                        Question::new(
                            &content.context,
                            &asked.question,
                            answers,
                            impossible,
                            &origin,
                        )
                    });
                rows.push(Row { origin, value });
            }
        }
    }
    Ok(rows)
}

impl Question {
    fn new(
        context: &str,
        question: &str,
        answers: Vec<String>,
        impossible: Option<bool>,
        origin: &str,
    ) -> Result<Self> {
        if impossible.is_some_and(|impossible| impossible != answers.is_empty()) {
            refuse!(
                "is_impossible contradicts {} answers; a question has answers or is impossible",
                answers.len()
            );
        }
        let answer = answers.first().map_or(NO_ANSWER, String::as_str).trim().to_owned();
        if answer.is_empty() {
            refuse!("the first answer is empty; leave all answers out where there is none");
        }
        Ok(Self {
            item: Item {
                origin: origin.to_owned(),
                question: format!(
                    "Read the context and answer the question with words of the context alone, or \
                     with {NO_ANSWER} if they do not tell.\n\nContext: {}\n\nQuestion: {}",
                    context.trim(),
                    question.trim()
                ),
                key: 0..answer.len(),
                answer,
                wrong: None,
            },
            answers,
        })
    }
}

/// A line of generations.jsonl.
#[derive(Serialize)]
struct Generated<'a> {
    origin: &'a str,
    question: &'a str,
    gold: &'a [String],
    generated: &'a str,
    exact: f64,
    f1: f64,
}

impl Reading {
    fn loaded(&self, split: Split, setting: &Setting) -> Result<Loaded<Question>> {
        let (test, most) = match split {
            Split::Train => (None, self.train_examples),
            Split::Test => (self.test_data.as_ref(), self.test_examples),
        };
        let Some(path) = test.or(self.data.as_ref()) else {
            refuse!("task `reading` needs data: SQuAD 2.0's JSON, or JSON Lines");
        };
        let mut sieve = Sieve::new(path, self.bad_rows, self.max_tokens, setting);
        let questions = sieve.keep_all(read(path)?, |question, _| Ok(question))?;
        instruction::load(
            questions,
            |question| &question.item,
            most,
            &self.generation,
            setting,
            &mut sieve,
        )
    }
}

impl Task for Reading {
    fn default_metric(&self) -> &str {
        "answer_log_prob"
    }

    fn load(&self, split: Split, setting: &Setting) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(self.loaded(split, setting)?))
    }
}

impl Dataset for Loaded<Question> {
    fn examples(&self) -> &[Example] {
        &self.examples
    }

    fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures> {
        let mut figures = evaluation.language_modelling(&self.examples)?;
        let answers = self.generate(evaluation)?;
        let scored: Vec<score::Scored> = (self.items.iter().zip(&answers))
            .map(|(question, answer)| {
                // The script wants an empty text where the model finds no answer.
                let answer = answer.trim();
                score::score(if answer == NO_ANSWER { "" } else { answer }, &question.answers)
            })
            .collect();
        let lines: Vec<Generated> = (self.items.iter().zip(&answers).zip(&scored))
            .map(|((question, generated), scored)| Generated {
                origin: &question.item.origin,
                question: &question.item.question,
                gold: &question.answers,
                generated,
                exact: scored.exact,
                f1: scored.f1,
            })
            .collect();
        evaluation.write_jsonl("generations.jsonl", &lines)?;
        figures.extend(score::figures(&scored));
        Ok(figures)
    }
}

register!(
    dyn Task,
    Reading,
    "reading",
    "reading comprehension: SQuAD 2.0, judged as its official script does"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{fixture, setting, shared};

    fn load(path: PathBuf, bad_rows: BadRows) -> Result<Loaded<Question>> {
        Reading { data: Some(path), bad_rows, ..Reading::default() }
            .loaded(Split::Train, &setting(100_000))
    }

    #[test]
    fn both_forms_of_the_fixture_give_the_same_questions() {
        let nested = load(fixture("squad.json"), BadRows::Skip).unwrap();
        let flat = load(fixture("squad.jsonl"), BadRows::Skip).unwrap();
        let shown = |loaded: &Loaded<Question>| -> Vec<(String, Vec<String>)> {
            let questions = loaded.items.iter();
            questions.map(|q| (q.item.question.clone(), q.answers.clone())).collect()
        };
        assert_eq!(shown(&nested), shown(&flat));
        assert_eq!(nested.items.len(), 2);
        let tokenizer = crate::tests::tokenizer();
        let answers = nested.examples.iter().map(|example| {
            let keys: Vec<u32> = example.keys.iter().map(|key| key.correct[0]).collect();
            tokenizer.decode(&keys).unwrap()
        });
        assert_eq!(answers.collect::<Vec<_>>(), ["a red door", "[No Answer]"]);
        for (file, place) in
            [("squad.json", "article 1, paragraph 1, question 3"), ("squad.jsonl", "squad.jsonl:3")]
        {
            let error = load(fixture(file), BadRows::Stop).unwrap_err().to_string();
            assert!(error.contains(place), "{error}");
        }
    }

    #[test]
    fn the_sample_of_squad_is_read() {
        let Some(path) = shared("reading/squad_v2_sample.json") else { return };
        let loaded = load(path, BadRows::Stop).unwrap();
        let unanswerable = loaded.items.iter().filter(|q| q.answers.is_empty()).count();
        assert_eq!((loaded.examples.len(), unanswerable), (6, 1));
        assert!(loaded.items.iter().any(|question| question.answers.len() > 1));
    }
}
