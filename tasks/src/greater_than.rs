//! Greater-than (Hanna et al., 2023, arXiv 2305.00586): "The war lasted from the year 1741 to the year 17"
//! is followed by two digits above 41. The metric is `prob_diff`: Σp of the years above less Σp of those
//! up to and including it. The counterfactual's first year ends in 01.
//!
//! Sentences come from a template, or from published files with `clean` and `corrupted`: EAP-IG's CSV
//! (arXiv 2403.17806) or MIB's JSON Lines (arXiv 2504.13151). Deviations: the nouns are fewer and our
//! own. Where the tokenizer has no two-digit tokens, the tens digit is asked: right are the digits above
//! the year's, wrong those below, and the year's own is neither, since which way it counts lies with the
//! digit after it. MIB asks for that digit too and weighs it with the tens digit's probability.
//!
//! Marked as `year` are the first year's last two digits, whose number is the value of that name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use circuit_framework::data::example::{Counterfactual, Value};
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::{
    Dataset, Error, Example, Key, Result, Setting, Split, Task, refuse, register,
};
use rand::Rng;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};

use crate::generated;
use crate::prompt::Prompts;
use crate::rows::{self, BadRows, Sieve};

/// Where the sentences come from.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct GreaterThan {
    /// EAP-IG's CSV or MIB's JSON Lines to discover and tune on; without it, sentences are generated.
    data: Option<PathBuf>,
    /// The same to evaluate on; without it, `data`, or generated sentences never trained on.
    test_data: Option<PathBuf>,
    /// At most so many sentences to discover and tune on; of generated ones, 2000 without it.
    train_examples: Option<usize>,
    /// At most so many sentences to evaluate on; of generated ones, 500 without it.
    test_examples: Option<usize>,
    /// Rows that can't be used: `stop` or `skip`.
    bad_rows: BadRows,
}

/// What can last for years.
const NOUNS: [&str; 40] = [
    "war",
    "reign",
    "siege",
    "conflict",
    "famine",
    "plague",
    "drought",
    "treaty",
    "alliance",
    "campaign",
    "expedition",
    "voyage",
    "journey",
    "trial",
    "dispute",
    "rebellion",
    "revolt",
    "occupation",
    "crisis",
    "negotiation",
    "project",
    "construction",
    "investigation",
    "debate",
    "marriage",
    "friendship",
    "partnership",
    "exile",
    "persecution",
    "struggle",
    "tour",
    "pilgrimage",
    "truce",
    "epidemic",
    "migration",
    "regime",
    "study",
    "experiment",
    "contract",
    "feud",
];

/// A sentence's two years are of one century.
#[derive(Clone, Debug, Deserialize)]
struct Sentence {
    clean: String,
    corrupted: String,
}

impl Sentence {
    fn new(noun: &str, century: u32, year: u32) -> Self {
        let text = |year: u32| {
            format!("The {noun} lasted from the year {century}{year:02} to the year {century}")
        };
        Self { clean: text(year), corrupted: text(1) }
    }
}

/// The first year of a sentence: where its last two digits begin, and what they are.
fn year(text: &str) -> Result<(usize, usize)> {
    let is_digit = |c: char| c.is_ascii_digit();
    let start = text.find(is_digit).unwrap_or(text.len());
    let end = text[start..].find(|c| !is_digit(c)).map_or(text.len(), |length| start + length);
    let century = text[start..end].get(..2);
    if end - start != 4 || century.is_none_or(|century| !text.ends_with(century)) {
        refuse!("{text:?} must have a year of four digits, and end in its first two");
    }
    let year = text[end - 2..end].parse().map_err(|_| Error::input("the year is no number"))?;
    Ok((end - 2, year))
}

/// What is asked for, as tokens by the number they stand for.
#[derive(Debug)]
enum Answers {
    /// 00 to 99.
    Years(Vec<u32>),
    /// 0 to 9.
    Tens(Vec<u32>),
}

/// What a tokenizer makes of sentences.
struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    answers: Answers,
}

impl<'a> Reader<'a> {
    fn new(tokenizer: &'a Tokenizer) -> Result<Self> {
        let one = |text: String| -> Result<Option<u32>> {
            let tokens = tokenizer.encode(&text)?;
            Ok(tokens.first().copied().filter(|_| tokens.len() == 1))
        };
        let years: Option<Vec<u32>> =
            (0..100).map(|year| one(format!("{year:02}"))).collect::<Result<_>>()?;
        let tens: Option<Vec<u32>> =
            (0..10).map(|digit| one(digit.to_string())).collect::<Result<_>>()?;
        // A tokenizer of words has one token for all numbers that it doesn't know.
        let differ = |tokens: &Vec<u32>| BTreeSet::from_iter(tokens).len() == tokens.len();
        let answers = match (years.filter(differ), tens.filter(differ)) {
            (Some(years), _) => Answers::Years(years),
            (_, Some(tens)) => Answers::Tens(tens),
            _ => refuse!("neither two digits nor one are a token of their own in this tokenizer"),
        };
        Ok(Self { tokenizer, answers })
    }

    /// Tokens of a sentence whose year parts as the answers do.
    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let (at, year) = year(text)?;
        let digits = match &self.answers {
            Answers::Years(years) => vec![years[year]],
            Answers::Tens(digits) => vec![digits[year / 10], digits[year % 10]],
        };
        let century = self.tokenizer.encode(&text[..at])?;
        if self.tokenizer.encode(&text[..at + 2])? != [century, digits].concat() {
            refuse!(
                "in this tokenizer the year {} isn't its century and {year:02}",
                &text[at - 2..at + 2]
            );
        }
        let prefix: Vec<u32> = self.tokenizer.prefix().into_iter().collect();
        Ok([prefix, self.tokenizer.encode(text)?].concat())
    }

    /// The example; of the right answers a random one stands in it.
    fn example(&self, sentence: &Sentence, random: &mut impl Rng, origin: &str) -> Result<Example> {
        let (mut tokens, mut other) =
            (self.tokens(&sentence.clean)?, self.tokens(&sentence.corrupted)?);
        if tokens.len() != other.len() {
            refuse!(
                "in this tokenizer the counterfactual has {} tokens, the sentence {}; they must be as long",
                other.len(),
                tokens.len()
            );
        }
        let (at, year) = year(&sentence.clean)?;
        let (correct, wrong) = match &self.answers {
            Answers::Years(years) => (&years[year + 1..], &years[..=year]),
            Answers::Tens(tens) => (&tens[year / 10 + 1..], &tens[..year / 10]),
        };
        let Some(&answer) = correct.choose(random).filter(|_| !wrong.is_empty()) else {
            refuse!("of what is asked nothing is above {year:02}, or nothing below");
        };
        let position = tokens.len();
        tokens.push(answer);
        other.push(answer);
        Ok(Example {
            tokens,
            predicted: position..position + 1,
            keys: vec![Key { position, correct: correct.to_vec(), wrong: wrong.to_vec() }],
            counterfactual: Some(Counterfactual { tokens: other, key_positions: vec![position] }),
            spans: self.tokenizer.spans(&sentence.clean, [("year", at..at + 2)])?,
            values: BTreeMap::from([("year".to_owned(), Value::Number(year as f64))]),
            origin: origin.to_owned(),
            ..Example::default()
        })
    }
}

impl GreaterThan {
    fn read(
        &self,
        path: &Path,
        most: Option<usize>,
        reader: &Reader,
        setting: &Setting,
    ) -> Result<Prompts> {
        let rows = match rows::is_csv(path) {
            true => rows::csv::<Sentence>(path)?,
            false => rows::jsonl::<Sentence>(path)?,
        };
        let mut sieve = Sieve::new(path, self.bad_rows, None, setting);
        let mut random = generated::random(Split::Train, setting.seed);
        let mut examples = Vec::with_capacity(rows.len());
        for row in rows {
            let example =
                row.value.and_then(|value| reader.example(&value, &mut random, &row.origin));
            examples.extend(sieve.keep(&row.origin, example)?);
        }
        sieve.prompts(examples, most)
    }
}

impl Task for GreaterThan {
    fn default_metric(&self) -> &str {
        "prob_diff"
    }

    fn load(&self, split: Split, setting: &Setting) -> Result<Box<dyn Dataset>> {
        let (test, limit) = match split {
            Split::Train => (None, self.train_examples),
            Split::Test => (self.test_data.as_ref(), self.test_examples),
        };
        let reader = Reader::new(setting.tokenizer()?)?;
        if let Some(path) = test.or(self.data.as_ref()) {
            return Ok(Box::new(self.read(path, limit, &reader, setting)?));
        }
        let mut random = generated::random(split, setting.seed);
        // Of a tens digit there must be one above and one below.
        let years = match reader.answers {
            Answers::Years(_) => 2..99,
            Answers::Tens(_) => 10..90,
        };
        let made = std::iter::from_fn(|| {
            loop {
                let noun = NOUNS.choose(&mut random).copied().unwrap_or_default();
                let century = random.random_range(11..18);
                let sentence = Sentence::new(noun, century, random.random_range(years.clone()));
                if generated::is_of(split, &sentence.clean) {
                    let origin = format!("generated: {}", sentence.clean);
                    return Some(reader.example(&sentence, &mut random, &origin));
                }
            }
        });
        Ok(Box::new(Prompts(generated::take(split, limit, made)?)))
    }
}

register!(
    dyn Task,
    GreaterThan,
    "greater_than",
    "a later year of the same century: from a template, or EAP-IG's or MIB's files"
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::{check_counterfactuals, gpt2, setting, tokenizer, tokenizers};

    fn load(
        task: &GreaterThan,
        split: Split,
        tokenizer: &Tokenizer,
        seed: u64,
    ) -> Result<Vec<Example>> {
        let setting = Setting { tokenizer: Some(tokenizer), seed, ..setting(1024) };
        Ok(task.load(split, &setting)?.examples().to_vec())
    }

    fn numbers(tokens: &[u32], tokenizer: &Tokenizer) -> Vec<usize> {
        tokens.iter().map(|&id| tokenizer.decode(&[id]).unwrap().parse().unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..Default::default() })]

        #[test]
        fn right_answers_are_above_and_wrong_ones_are_not(seed in any::<u64>()) {
            let task = GreaterThan { train_examples: Some(50), ..GreaterThan::default() };
            for tokenizer in tokenizers() {
                let examples = load(&task, Split::Train, tokenizer, seed).unwrap();
                prop_assert_eq!(examples.len(), 50);
                check_counterfactuals(&examples);
                for example in &examples {
                    let asked = &example.tokens[..example.keys[0].position];
                    let (_, year) = year(&tokenizer.decode(asked).unwrap()).unwrap();
                    let marked: Vec<u32> =
                        example.spans["year"].iter().map(|&at| example.tokens[at]).collect();
                    let marked = tokenizer.decode(&marked).unwrap();
                    prop_assert_eq!(marked, format!("{:02}", example.number("year").unwrap()));
                    prop_assert_eq!(example.number("year").unwrap(), year as f64);
                    let Key { correct, wrong, .. } = &example.keys[0];
                    let (right, wrong) = (numbers(correct, tokenizer), numbers(wrong, tokenizer));
                    match right.len() + wrong.len() {
                        100 => {
                            prop_assert!(right.iter().all(|&n| n > year));
                            prop_assert!(wrong.iter().all(|&n| n <= year));
                        }
                        9 => {
                            prop_assert!(right.iter().all(|&n| n > year / 10));
                            prop_assert!(wrong.iter().all(|&n| n < year / 10));
                        }
                        other => prop_assert!(false, "{} answers", other),
                    }
                    let other = &example.counterfactual.as_ref().unwrap().tokens;
                    let other = tokenizer.decode(&other[..asked.len()]).unwrap();
                    prop_assert_eq!(super::year(&other).unwrap().1, 1);
                }
            }
        }
    }

    #[test]
    fn two_digits_are_asked_of_gpt2_and_one_of_bytes() {
        assert!(matches!(Reader::new(tokenizer()).unwrap().answers, Answers::Tens(_)));
        let Some(gpt2) = gpt2() else { return };
        assert!(matches!(Reader::new(gpt2).unwrap().answers, Answers::Years(_)));
    }

    #[test]
    fn the_splits_do_not_overlap_whatever_the_seeds() {
        let asked = |example: &Example| example.tokens[..example.keys[0].position].to_vec();
        let task = GreaterThan::default();
        let test = load(&task, Split::Test, tokenizer(), 1).unwrap();
        let test: BTreeSet<Vec<u32>> = test.iter().map(asked).collect();
        let train = load(&task, Split::Train, tokenizer(), 2).unwrap();
        assert!(train.iter().all(|example| !test.contains(&asked(example))));
    }

    #[test]
    fn published_files_are_read_and_misfits_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("years.csv");
        let rows = "clean,corrupted,correct_idx\n\
            The war lasted from the year 1741 to the year 17,The war lasted from the year 1701 to the year 17,41\n\
            The war lasted from the year 1741 to the year 18,The war lasted from the year 1701 to the year 17,41\n";
        std::fs::write(&path, rows).unwrap();
        let task = GreaterThan { data: Some(path), ..GreaterThan::default() };
        for tokenizer in tokenizers() {
            let error = load(&task, Split::Train, tokenizer, 0).unwrap_err().to_string();
            assert!(
                error.contains("years.csv:3: ") && error.contains("end in its first two"),
                "{error}"
            );
            let task = GreaterThan { bad_rows: BadRows::Skip, ..task.clone() };
            let examples = load(&task, Split::Train, tokenizer, 0).unwrap();
            assert_eq!(examples.len(), 1);
            check_counterfactuals(&examples);
        }
        let Some(gpt2) = gpt2() else { return };
        let sentence = Sentence::new("war", 12, 80);
        let mut random = generated::random(Split::Train, 0);
        let error = Reader::new(gpt2).unwrap().example(&sentence, &mut random, "here");
        // GPT-2 has 1280 in one token.
        assert!(error.unwrap_err().to_string().contains("the year 1280 isn't its century and 80"));
    }
}
