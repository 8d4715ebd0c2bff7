//! Propositional reasoning in everyday words: Contexthub (Hua et al., 2024, arXiv 2406.02787), deductive
//! and abductive, at four levels. A problem's reasoning is its `gold_cot` where that is published;
//! otherwise it is made from the level's abstract template ([`template`]). Problems are split into
//! training and test by the seed.

mod problems;
mod template;
mod verdicts;

use std::path::PathBuf;

use circuit_framework::{
    Dataset, Evaluation, Example, Figures, Generation, Result, Setting, Split, Task, refuse,
    register,
};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::instruction::{self, Loaded};
use crate::rows::{BadRows, Sieve};
use problems::{Kind, Label, Problem};
use verdicts::Verdict;

/// Where the problems are, and which of them.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Logic {
    /// Contexthub's folder, with data_level1 and so on inside.
    data: Option<PathBuf>,
    /// The levels, from 1 to 4; none named means all whose problems are in the folder.
    levels: Vec<usize>,
    /// `deductive` and `abductive`, or one of them.
    kinds: Vec<Kind>,
    /// One category, as `culture and arts` or `abstract`; all without it.
    category: Option<String>,
    /// The share of the problems that is kept for evaluation.
    test_share: f64,
    /// At most so many problems to discover and tune on.
    train_examples: Option<usize>,
    /// At most so many problems to evaluate on.
    test_examples: Option<usize>,
    /// Leave out examples of more tokens; the context is always a limit.
    max_tokens: Option<usize>,
    /// Problems that can't be used: `stop` or `skip`.
    bad_rows: BadRows,
    /// How answers are generated.
    generation: Generation,
}

impl Default for Logic {
    fn default() -> Self {
        Self {
            data: None,
            levels: Vec::new(),
            kinds: vec![Kind::Deductive, Kind::Abductive],
            category: None,
            test_share: 0.2,
            train_examples: None,
            test_examples: None,
            max_tokens: None,
            bad_rows: BadRows::default(),
            generation: Generation::default(),
        }
    }
}

impl Logic {
    fn loaded(&self, split: Split, setting: &Setting) -> Result<Loaded<Problem>> {
        let Some(folder) = &self.data else {
            refuse!("task `logic` needs data: Contexthub's folder, with data_level1 inside");
        };
        if !(0.0..=1.0).contains(&self.test_share) {
            refuse!("task.test_share is {}; it must be from 0 to 1", self.test_share);
        }
        let mut sieve = Sieve::new(folder, self.bad_rows, self.max_tokens, setting);
        let mut problems = self.problems(folder, &mut sieve)?;
        problems.shuffle(&mut ChaCha8Rng::seed_from_u64(setting.seed));
        let test = (self.test_share * problems.len() as f64).round() as usize;
        let train = problems.split_off(test);
        let (problems, most) = match split {
            Split::Train => (train, self.train_examples),
            Split::Test => (problems, self.test_examples),
        };
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

/// A line of generations.jsonl.
#[derive(Serialize)]
struct Generated<'a> {
    origin: &'a str,
    question: &'a str,
    gold: Label,
    generated: &'a str,
    extracted: Option<Label>,
    correct: bool,
}

impl Task for Logic {
    fn default_metric(&self) -> &str {
        "logit_diff"
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
        let verdicts: Vec<Verdict> = (self.items.iter().zip(&answers))
            .map(|(problem, answer)| Verdict { problem, predicted: verdicts::extract(answer) })
            .collect();
        let lines: Vec<Generated> = (verdicts.iter().zip(&answers))
            .map(|(verdict, generated)| Generated {
                origin: &verdict.problem.item.origin,
                question: &verdict.problem.item.question,
                gold: verdict.problem.answer,
                generated,
                extracted: verdict.predicted,
                correct: verdict.is_right(),
            })
            .collect();
        evaluation.write_jsonl("generations.jsonl", &lines)?;
        figures.extend(verdicts::figures(&verdicts));
        Ok(figures)
    }
}

register!(
    dyn Task,
    Logic,
    "logic",
    "deductive and abductive reasoning: Contexthub, judged on generated answers"
);

#[cfg(test)]
mod tests {
    use circuit_framework::files;

    use super::problems::{Entry, read_templates};
    use super::*;
    use crate::tests::{fixture, setting, shared};

    fn all(task: &Logic) -> (Vec<Problem>, Sieve) {
        let folder = task.data.as_ref().unwrap();
        let mut sieve = Sieve::new(folder, task.bad_rows, None, &setting(usize::MAX));
        (task.problems(folder, &mut sieve).unwrap(), sieve)
    }

    #[test]
    fn the_fixture_is_read_and_what_cannot_be_used_is_counted() {
        let task = Logic { data: Some(fixture("logic")), ..Logic::default() };
        let error = task.loaded(Split::Train, &setting(4096)).unwrap_err().to_string();
        assert!(error.contains("deductive_logic.json: problem 2") && error.contains("\"perhaps\""));
        let task = Logic { bad_rows: BadRows::Skip, test_share: 0.25, ..task };
        let (problems, sieve) = all(&task);
        assert_eq!((problems.len(), sieve.bad.len()), (4, 2));
        let train = task.loaded(Split::Train, &setting(4096)).unwrap();
        let test = task.loaded(Split::Test, &setting(4096)).unwrap();
        assert_eq!((train.items.len(), test.items.len()), (3, 1));
        assert!(train.items.iter().all(|p| p.item.origin != test.items[0].item.origin));
        let tokenizer = crate::tests::tokenizer();
        for (problem, example) in train.items.iter().zip(&train.examples) {
            // Of the answer's tokens the first is read that differs from the wrong answer's.
            let [key] = &example.keys[..] else { panic!("one key") };
            assert_eq!(key.correct, [example.tokens[key.position]]);
            let first = tokenizer.decode(&[key.correct[0], key.wrong[0]]).unwrap();
            let (right, wrong) = (problem.answer.text(), problem.answer.wrong().text());
            assert_eq!(first, [&right[..1], &wrong[..1]].concat());
        }
    }

    /// The template, filled in, is the published reasoning to the letter wherever that is published.
    #[test]
    fn templates_make_the_published_reasoning() {
        let Some(folder) = shared("logic") else { return };
        let mut compared = 0;
        for kind in ["deductive", "abductive"] {
            let file = |suffix: &str| folder.join(format!("data_level1/{kind}_logic{suffix}.json"));
            let templates = read_templates(&file("_cot")).unwrap();
            for entry in files::read_json::<Vec<Entry>>(&file("_traincot")).unwrap() {
                let template = &templates[entry.question[0]["<nl>"].as_str().unwrap()];
                for (category, subcategories) in &entry.categories {
                    for words in subcategories.as_object().unwrap().values() {
                        let words = words.as_object().unwrap();
                        let made = template::fill(template, words, category == "abstract");
                        assert_eq!(made.unwrap(), words["gold_cot"].as_str().unwrap());
                        compared += 1;
                    }
                }
            }
        }
        assert_eq!(compared, 960);
    }

    #[test]
    fn all_of_contexthub_is_read() {
        let Some(folder) = shared("logic") else { return };
        let task = Logic { data: Some(folder), bad_rows: BadRows::Skip, ..Logic::default() };
        let (problems, sieve) = all(&task);
        let count = |level: usize, kind: Kind| {
            problems.iter().filter(|p| p.level == level && p.kind == kind).count()
        };
        // Levels 3 and 4 have no problems here, only templates. One published template of level 2
        // concludes False where the answer is N/A: its 60 problems are counted as bad.
        assert_eq!(sieve.bad.len(), 60);
        assert!(
            sieve.bad.iter().all(|bad| bad.contains("level2/deductive_logic.json: problem 20"))
        );
        let counts =
            [1, 2, 3, 4].map(|level| [Kind::Deductive, Kind::Abductive].map(|k| count(level, k)));
        assert_eq!(counts, [[600, 360], [2340, 2400], [0, 0], [0, 0]]);
        let task = Logic { category: Some("abstract".to_owned()), levels: vec![1], ..task };
        assert_eq!(all(&task).0.len(), 80);
        let loaded = |split| task.loaded(split, &setting(100_000)).unwrap().examples.len();
        assert_eq!((loaded(Split::Train), loaded(Split::Test)), (64, 16));
    }
}
