//! Addition and subtraction (MIB, arXiv 2504.13151): "31+57=" is followed by "88". The metric is
//! logit(result) − logit(the counterfactual's result); the counterfactual has other operands.
//!
//! Problems are made of all pairs of operands, or read from MIB's JSON Lines. Every number is one token,
//! so that what differs stands in one place: what isn't is refused. Deviations: problems that are made
//! have no words and no spaces, so that tokenizers which take a space for a token of its own read them
//! too; results of several tokens are never asked, and of a subtraction none below zero. Behind a word a
//! file's result has a space before it, where MIB's code has none.

use std::path::{Path, PathBuf};

use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::{Dataset, Result, Setting, Split, Task, refuse, register};
use rand::seq::{IndexedRandom, SliceRandom};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::generated;
use crate::prompt::{Prompt, Prompts, Question};
use crate::rows::{self, BadRows, Sieve};

#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
enum Operation {
    #[default]
    Addition,
    Subtraction,
}

impl Operation {
    fn sign(self) -> char {
        match self {
            Operation::Addition => '+',
            Operation::Subtraction => '-',
        }
    }

    /// None below zero.
    fn result(self, a: u32, b: u32) -> Option<u32> {
        match self {
            Operation::Addition => a.checked_add(b),
            Operation::Subtraction => a.checked_sub(b),
        }
    }
}

/// Where the problems come from.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Arithmetic {
    /// MIB's JSON Lines to discover and tune on; without it, problems are generated.
    data: Option<PathBuf>,
    /// The same to evaluate on; without it, `data`, or generated problems never trained on.
    test_data: Option<PathBuf>,
    /// `addition` or `subtraction`; of a file the problems of the other are passed over.
    operation: Operation,
    /// The largest operand of generated problems; all up to it must be one token.
    largest: u32,
    /// At most so many problems to discover and tune on; of generated ones, 2000 without it.
    train_examples: Option<usize>,
    /// At most so many problems to evaluate on; of generated ones, 500 without it.
    test_examples: Option<usize>,
    /// Rows that can't be used: `stop` or `skip`.
    bad_rows: BadRows,
}

impl Default for Arithmetic {
    fn default() -> Self {
        Self {
            data: None,
            test_data: None,
            operation: Operation::default(),
            largest: 99,
            train_examples: None,
            test_examples: None,
            bad_rows: BadRows::default(),
        }
    }
}

/// Operands beyond these would make more problems than a run can use.
const LARGEST: u32 = 999;

/// A problem that is made.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Problem {
    a: u32,
    b: u32,
    result: u32,
}

impl Problem {
    fn prompt(self, operation: Operation) -> Prompt {
        let Self { a, b, result } = self;
        Prompt::new(&format!("{a}{}{b}=", operation.sign()), &result.to_string())
    }
}

fn is_one_token(number: &str, tokenizer: &Tokenizer) -> Result<bool> {
    Ok(tokenizer.encode(number)?.len() == 1)
}

impl Arithmetic {
    /// All problems of a split, in random order.
    fn problems(&self, split: Split, setting: &Setting) -> Result<Vec<Problem>> {
        let (tokenizer, largest) = (setting.tokenizer()?, self.largest);
        if !(1..=LARGEST).contains(&largest) {
            refuse!("task.largest is {largest}; it must be from 1 to {LARGEST}");
        }
        for operand in 0..=largest {
            if !is_one_token(&operand.to_string(), tokenizer)? {
                refuse!(
                    "the operand {operand} isn't one token in this tokenizer; set task.largest = {} or less",
                    operand.saturating_sub(1)
                );
            }
        }
        let fits: Vec<bool> = (0..=2 * largest)
            .map(|result| is_one_token(&result.to_string(), tokenizer))
            .collect::<Result<_>>()?;
        let pairs = (0..=largest).flat_map(|a| (0..=largest).map(move |b| (a, b)));
        let problem = |(a, b)| {
            let result = self.operation.result(a, b).filter(|&result| fits[result as usize])?;
            Some(Problem { a, b, result })
        };
        let of_split =
            |problem: &Problem| generated::is_of(split, problem.prompt(self.operation).text());
        let mut problems: Vec<Problem> = pairs.filter_map(problem).filter(of_split).collect();
        problems.shuffle(&mut generated::random(split, setting.seed));
        Ok(problems)
    }

    fn read(&self, path: &Path, most: Option<usize>, setting: &Setting) -> Result<Prompts> {
        let tokenizer = setting.tokenizer()?;
        let sign = self.operation.sign().to_string();
        let mut rows = rows::jsonl::<Mib>(path)?;
        rows.retain(|row| {
            row.value
                .as_ref()
                .map_or(true, |row| row.operator.as_ref().is_none_or(|own| *own == sign))
        });
        let mut sieve = Sieve::new(path, self.bad_rows, None, setting);
        let examples = sieve
            .keep_all(rows, |row, origin| row.question(tokenizer)?.example(tokenizer, origin))?;
        sieve.prompts(examples, most)
    }
}

/// A line of MIB's files; other fields are passed over.
#[derive(Deserialize)]
struct Mib {
    prompt: String,
    /// A number, or a string with one.
    label: Value,
    operator: Option<String>,
    random_counterfactual: Option<Other>,
}

#[derive(Deserialize)]
struct Other {
    prompt: String,
    label: Value,
}

impl Mib {
    fn question(self, tokenizer: &Tokenizer) -> Result<Question> {
        let Some(other) = self.random_counterfactual else {
            refuse!("the row has no random_counterfactual");
        };
        let (own, wrong) = (number(&self.label)?, number(&other.label)?);
        if own == wrong {
            refuse!("the counterfactual's result is {own} too");
        }
        let operands = |text: &str| -> Vec<String> {
            let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
            numbers.map(str::to_owned).collect()
        };
        let numbers = [operands(&self.prompt), operands(&other.prompt)].concat();
        for number in numbers.iter().chain([&own, &wrong]) {
            if !is_one_token(number, tokenizer)? {
                refuse!("{number} isn't one token in this tokenizer");
            }
        }
        let wrong = Prompt::new(&other.prompt, &behind(&other.prompt, &wrong));
        Ok(Question {
            prompt: Prompt::new(&self.prompt, &behind(&self.prompt, &own)),
            wrong: wrong.answer().to_owned(),
            counterfactual: wrong,
            marks: Vec::new(),
        })
    }
}

/// The result as it stands behind a prompt: after a word with a space.
fn behind(prompt: &str, result: &str) -> String {
    match prompt.ends_with(|c: char| c == '=' || c.is_whitespace()) {
        true => result.to_owned(),
        false => format!(" {result}"),
    }
}

fn number(label: &Value) -> Result<String> {
    match label {
        Value::Number(number) => Ok(number.to_string()),
        Value::String(text) => Ok(text.trim().to_owned()),
        other => refuse!("the label is {other}; it must be a number"),
    }
}

impl Task for Arithmetic {
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
        let problems = self.problems(split, setting)?;
        let mut random = generated::random(split, setting.seed);
        let made = problems.iter().map(|&problem| {
            let prompt = problem.prompt(self.operation);
            let origin = format!("generated problem {}", prompt.text());
            let others: Vec<Problem> =
                problems.iter().filter(|other| other.result != problem.result).copied().collect();
            let Some(other) = others.choose(&mut random) else {
                refuse!("no other problem has another result than {}", problem.result);
            };
            let question = Question {
                prompt,
                wrong: other.result.to_string(),
                counterfactual: other.prompt(self.operation),
                marks: Vec::new(),
            };
            question.example(setting.tokenizer()?, &origin)
        });
        Ok(Box::new(Prompts(generated::take(split, limit, made)?)))
    }
}

register!(
    dyn Task,
    Arithmetic,
    "arithmetic",
    "addition or subtraction, a token a number: generated, or MIB's files"
);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use circuit_framework::Example;
    use proptest::prelude::*;

    use super::*;
    use crate::tests::{check_counterfactuals, setting, tokenizer, tokenizers};

    fn load(
        task: &Arithmetic,
        split: Split,
        tokenizer: &Tokenizer,
        seed: u64,
    ) -> Result<Vec<Example>> {
        let setting = Setting { tokenizer: Some(tokenizer), seed, ..setting(1024) };
        Ok(task.load(split, &setting)?.examples().to_vec())
    }

    /// The operands and the result that a text says.
    fn read(text: &str, operation: Operation) -> [u32; 3] {
        let (problem, result) = text.split_once('=').unwrap();
        let (a, b) = problem.split_once(operation.sign()).unwrap();
        [a, b, result].map(|number| number.parse().unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..Default::default() })]

        #[test]
        fn results_are_right_and_the_counterfactuals_differ(
            seed in any::<u64>(), largest in 5..10u32, subtraction in any::<bool>(),
        ) {
            let operation = if subtraction { Operation::Subtraction } else { Operation::Addition };
            let task = Arithmetic { operation, largest, ..Arithmetic::default() };
            for tokenizer in tokenizers() {
                let train = load(&task, Split::Train, tokenizer, seed).unwrap();
                check_counterfactuals(&train);
                for example in &train {
                    let [a, b, result] = read(&tokenizer.decode(&example.tokens).unwrap(), operation);
                    prop_assert!(a <= largest && b <= largest);
                    prop_assert_eq!(operation.result(a, b), Some(result));
                    let other = &example.counterfactual.as_ref().unwrap().tokens;
                    let [c, d, differs] = read(&tokenizer.decode(other).unwrap(), operation);
                    prop_assert_eq!(operation.result(c, d), Some(differs));
                    prop_assert_ne!(differs, result);
                }
                let all: BTreeSet<&[u32]> = train.iter().map(|example| &example.tokens[..]).collect();
                prop_assert_eq!(all.len(), train.len(), "no problem twice");
                let test = load(&task, Split::Test, tokenizer, seed.wrapping_add(1));
                for example in test.iter().flatten() {
                    prop_assert!(!all.contains(&example.tokens[..]));
                }
            }
        }
    }

    #[test]
    fn operands_of_several_tokens_are_refused() {
        let task = Arithmetic::default();
        let error = load(&task, Split::Train, tokenizer(), 0).unwrap_err().to_string();
        assert!(
            error.contains("10 isn't one token") && error.contains("task.largest = 9"),
            "{error}"
        );
        for largest in [0, 1000] {
            let task = Arithmetic { largest, ..Arithmetic::default() };
            let error = load(&task, Split::Train, tokenizer(), 0).unwrap_err().to_string();
            assert!(error.contains("must be from 1 to 999"), "{error}");
        }
    }

    #[test]
    fn mibs_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sums.jsonl");
        let row = |a: u32, b: u32, sign: char, result: u32| {
            format!(
                "{{\"prompt\": \"{a} {sign} {b} = \", \"label\": {result}, \"operator\": \"{sign}\", \
                 \"random_counterfactual\": {{\"prompt\": \"1 + 1 = \", \"label\": \"2\"}}}}\n"
            )
        };
        std::fs::write(&path, row(3, 4, '+', 7) + &row(4, 3, '-', 1)).unwrap();
        let task = Arithmetic { data: Some(path.clone()), ..Arithmetic::default() };
        for tokenizer in tokenizers() {
            let examples = load(&task, Split::Train, tokenizer, 0).unwrap();
            let texts: Vec<String> =
                examples.iter().map(|example| tokenizer.decode(&example.tokens).unwrap()).collect();
            assert_eq!(texts, ["3 + 4 = 7"]);
            check_counterfactuals(&examples);
        }
        let words = row(3, 4, '+', 7)
            .replace("3 + 4 = ", "3 and 4 make")
            .replace("1 + 1 = ", "1 and 1 make");
        std::fs::write(&path, words).unwrap();
        let examples = load(&task, Split::Train, tokenizer(), 0).unwrap();
        assert_eq!(tokenizer().decode(&examples[0].tokens).unwrap(), "3 and 4 make 7");
        for (rows, reason) in [
            (row(30, 4, '+', 34), "sums.jsonl:1: 30 isn't one token"),
            (row(2, 0, '+', 2), "sums.jsonl:1: the counterfactual's result is 2 too"),
        ] {
            std::fs::write(&path, rows).unwrap();
            let error = load(&task, Split::Train, tokenizer(), 0).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
