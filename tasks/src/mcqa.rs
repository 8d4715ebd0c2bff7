//! Multiple choice answered by its symbol, as a circuit is found on it (MIB, arXiv 2504.13151: copied
//! colours, Wiegreffe et al., 2024, arXiv 2407.15018, and ARC, arXiv 1803.05457). The metric is logit(the
//! right symbol) − logit(the counterfactual's right symbol); in the counterfactual other symbols stand
//! before the same choices.
//!
//! Questions about colours are made, or questions of any kind read from MIB's JSON Lines. Deviations: in
//! those that are made the counterfactual permutes the question's own symbols, where MIB draws new
//! ones; the symbol is taken with the space before it, as it stands behind "Answer:", where MIB's code
//! takes it without. How likely whole choices are is what task `multiple_choice` judges by.

use std::path::{Path, PathBuf};

use circuit_framework::{Dataset, Result, Setting, Split, Task, refuse, register};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::generated;
use crate::prompt::{Prompt, Prompts, Question};
use crate::rows::{self, BadRows, Sieve};

/// Where the questions come from.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Mcqa {
    /// MIB's JSON Lines, MCQA or ARC, to discover and tune on; without it, questions are generated.
    data: Option<PathBuf>,
    /// The same to evaluate on; without it, `data`, or generated questions never trained on.
    test_data: Option<PathBuf>,
    /// The number of choices of a generated question, 2 to 10.
    choices: usize,
    /// At most so many questions to discover and tune on; of generated ones, 2000 without it.
    train_examples: Option<usize>,
    /// At most so many questions to evaluate on; of generated ones, 500 without it.
    test_examples: Option<usize>,
    /// Rows that can't be used: `stop` or `skip`.
    bad_rows: BadRows,
}

impl Default for Mcqa {
    fn default() -> Self {
        Self {
            data: None,
            test_data: None,
            choices: 4,
            train_examples: None,
            test_examples: None,
            bad_rows: BadRows::default(),
        }
    }
}

const COLOURS: [&str; 12] = [
    "red", "blue", "green", "black", "white", "brown", "pink", "orange", "purple", "yellow",
    "gray", "gold",
];
const OBJECTS: [&str; 20] = [
    "box", "cup", "ball", "car", "hat", "door", "bag", "shirt", "chair", "table", "lamp", "book",
    "pen", "house", "cat", "bird", "boat", "key", "flower", "coat",
];
const SYMBOLS: [&str; 10] = ["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"];

impl Mcqa {
    /// A random question.
    fn draw(&self, random: &mut ChaCha8Rng) -> Question {
        let n = self.choices;
        let object = OBJECTS.choose(random).copied().unwrap_or_default();
        let colours: Vec<&str> = COLOURS.choose_multiple(random, n).copied().collect();
        let right = random.random_range(0..n);
        // Turned round by less than a whole turn, no symbol keeps its place.
        let turn = random.random_range(1..n);
        let prompt = |turn: usize| {
            let symbol = |index: usize| SYMBOLS[(index + turn) % n];
            let lines: Vec<String> = (colours.iter().enumerate())
                .map(|(index, colour)| format!("{}. {colour}", symbol(index)))
                .collect();
            let text = format!(
                "The {object} is {}. What color is the {object}?\n{}\nAnswer:",
                colours[right],
                lines.join("\n")
            );
            Prompt::new(&text, &format!(" {}", symbol(right)))
        };
        let counterfactual = prompt(turn);
        Question {
            prompt: prompt(0),
            wrong: counterfactual.answer().to_owned(),
            counterfactual,
            marks: Vec::new(),
        }
    }

    fn read(&self, path: &Path, most: Option<usize>, setting: &Setting) -> Result<Prompts> {
        let tokenizer = setting.tokenizer()?;
        let mut sieve = Sieve::new(path, self.bad_rows, None, setting);
        let examples = sieve.keep_all(rows::jsonl::<Mib>(path)?, |row, origin| {
            row.question()?.example(tokenizer, origin)
        })?;
        sieve.prompts(examples, most)
    }
}

/// A line of MIB's files; other fields are passed over.
#[derive(Deserialize)]
struct Mib {
    #[serde(flatten)]
    own: Choices,
    symbol_counterfactual: Option<Choices>,
}

#[derive(Deserialize)]
struct Choices {
    prompt: String,
    choices: Labels,
    /// The index of the right choice.
    #[serde(rename = "answerKey")]
    answer: usize,
}

#[derive(Deserialize)]
struct Labels {
    /// Letters, or numbers.
    label: Vec<Value>,
}

impl Choices {
    fn prompt(self) -> Result<Prompt> {
        let label = match self.choices.label.get(self.answer) {
            Some(Value::String(label)) => label.clone(),
            Some(Value::Number(label)) => label.to_string(),
            _ => refuse!(
                "answerKey is {}, but there are {} labels; give the index of one, from 0",
                self.answer,
                self.choices.label.len()
            ),
        };
        Ok(Prompt::new(&self.prompt, &format!(" {}", label.trim())))
    }
}

impl Mib {
    fn question(self) -> Result<Question> {
        let Some(other) = self.symbol_counterfactual else {
            refuse!("the row has no symbol_counterfactual");
        };
        let counterfactual = other.prompt()?;
        Ok(Question {
            prompt: self.own.prompt()?,
            wrong: counterfactual.answer().to_owned(),
            counterfactual,
            marks: Vec::new(),
        })
    }
}

impl Task for Mcqa {
    fn default_metric(&self) -> &str {
        "logit_diff"
    }

    fn load(&self, split: Split, setting: &Setting) -> Result<Box<dyn Dataset>> {
        let (test, limit) = match split {
            Split::Train => (None, self.train_examples),
            Split::Test => (self.test_data.as_ref(), self.test_examples),
        };
        if let Some(path) = test.or(self.data.as_ref()) {
            return Ok(Box::new(self.read(path, limit, setting)?));
        }
        if !(2..=SYMBOLS.len()).contains(&self.choices) {
            refuse!("task.choices is {}; it must be from 2 to {}", self.choices, SYMBOLS.len());
        }
        let tokenizer = setting.tokenizer()?;
        let mut random = generated::random(split, setting.seed);
        let questions = std::iter::repeat_with(|| self.draw(&mut random))
            .filter(|question| generated::is_of(split, question.prompt.text()))
            .enumerate();
        let made = questions.map(|(index, question)| {
            question.example(tokenizer, &format!("generated question {}", index + 1))
        });
        Ok(Box::new(Prompts(generated::take(split, limit, made)?)))
    }
}

register!(
    dyn Task,
    Mcqa,
    "mcqa",
    "multiple choice answered by a symbol: generated, or MIB's MCQA and ARC"
);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use circuit_framework::Example;
    use circuit_framework::data::tokenizer::Tokenizer;
    use proptest::prelude::*;

    use super::*;
    use crate::tests::{check_counterfactuals, setting, tokenizer, tokenizers};

    fn load(task: &Mcqa, split: Split, tokenizer: &Tokenizer, seed: u64) -> Result<Vec<Example>> {
        let setting = Setting { tokenizer: Some(tokenizer), seed, ..setting(1024) };
        Ok(task.load(split, &setting)?.examples().to_vec())
    }

    /// The colour asked for, that of the symbol answered, and the symbol.
    fn read(text: &str) -> [String; 3] {
        let (question, rest) = text.split_once(". What").unwrap();
        let (_, symbol) = rest.split_once("\nAnswer: ").unwrap();
        let asked = question.rsplit(' ').next().unwrap();
        let line = rest.lines().find_map(|line| line.strip_prefix(&format!("{symbol}. ")));
        [asked, line.unwrap(), symbol].map(str::to_owned)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..Default::default() })]

        #[test]
        fn the_symbol_is_the_right_choice_s_in_both(seed in any::<u64>(), choices in 2..11usize) {
            let task = Mcqa { choices, train_examples: Some(50), ..Mcqa::default() };
            for tokenizer in tokenizers() {
                let examples = load(&task, Split::Train, tokenizer, seed).unwrap();
                prop_assert_eq!(examples.len(), 50);
                check_counterfactuals(&examples);
                for example in examples {
                    let [asked, answered, symbol] = read(&tokenizer.decode(&example.tokens).unwrap());
                    prop_assert_eq!(&asked, &answered);
                    let other = tokenizer.decode(&example.counterfactual.unwrap().tokens).unwrap();
                    let [asked, answered, differs] = read(&other);
                    prop_assert_eq!(asked, answered);
                    prop_assert_ne!(symbol, differs);
                }
            }
        }
    }

    #[test]
    fn the_splits_do_not_overlap_whatever_the_seeds() {
        let task = Mcqa::default();
        let test = load(&task, Split::Test, tokenizer(), 1).unwrap();
        let test: BTreeSet<&[u32]> = test.iter().map(|example| &example.tokens[..]).collect();
        let train = load(&task, Split::Train, tokenizer(), 2).unwrap();
        assert!(train.iter().all(|example| !test.contains(&example.tokens[..])));
        let task = Mcqa { choices: 11, ..Mcqa::default() };
        let error = load(&task, Split::Train, tokenizer(), 1).unwrap_err().to_string();
        assert!(error.contains("task.choices is 11; it must be from 2 to 10"), "{error}");
    }

    #[test]
    fn mibs_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("arc.jsonl");
        let row = |answer: usize| {
            format!(
                "{{\"prompt\": \"Ice is\\nA. hot\\nB. cold\\nAnswer:\", \"answerKey\": {answer}, \
                 \"choices\": {{\"label\": [\"A\", \"B\"], \"text\": [\"hot\", \"cold\"]}}, \
                 \"symbol_counterfactual\": {{\"prompt\": \"Ice is\\nX. hot\\nQ. cold\\nAnswer:\", \
                 \"choices\": {{\"label\": [\"X\", \"Q\"]}}, \"answerKey\": 1}}}}\n"
            )
        };
        std::fs::write(&path, row(1)).unwrap();
        let task = Mcqa { data: Some(path.clone()), ..Mcqa::default() };
        for tokenizer in tokenizers() {
            let examples = load(&task, Split::Train, tokenizer, 0).unwrap();
            check_counterfactuals(&examples);
            let text = |tokens: &[u32]| tokenizer.decode(tokens).unwrap();
            let key = &examples[0].keys[0];
            assert_eq!(
                [text(&key.correct), text(&key.wrong)].map(|s| s.trim().to_owned()),
                ["B", "Q"]
            );
        }
        std::fs::write(&path, row(2)).unwrap();
        let error = load(&task, Split::Train, tokenizer(), 0).unwrap_err().to_string();
        assert!(error.contains("arc.jsonl:1: answerKey is 2, but there are 2 labels"), "{error}");
    }
}
