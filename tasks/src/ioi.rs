//! Indirect objects (Wang et al., 2022, arXiv 2211.00593): "When Mary and John went to the store, John
//! gave a drink to" is followed by "Mary". The metric is logit(indirect object) − logit(subject).
//!
//! Sentences come from templates, the indirect object named first (ABBA) or second (BABA), or from
//! published files: MIB's JSON Lines (arXiv 2504.13151) or EAP-IG's CSV (arXiv 2403.17806). The
//! counterfactual has three other names, as the paper's, or by option the two changed over where the
//! subject is named again, as MIB's. Deviations: the templates and words are fewer and our own; names
//! are of as many tokens each, so that texts are as long; where a name is several tokens, what is
//! compared is the first one that differs.
//!
//! Marked are `indirect_object` and, where the subject is named first and again, `subject_first` and
//! `subject_second`.

mod published;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::{Dataset, Result, Setting, Split, Task, refuse, register};
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::generated;
use crate::prompt::{Prompt, Prompts, Question};
use crate::rows::{self, BadRows, Row, Sieve};
use published::{EapIg, Mib};

/// Which name comes first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
enum Order {
    #[default]
    Both,
    /// The indirect object's.
    Abba,
    /// The subject's.
    Baba,
}

/// What the counterfactual changes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
enum Change {
    /// All names, to three different ones.
    #[default]
    Names,
    /// The subject's second mention, to the indirect object.
    Flip,
}

/// Where the sentences come from.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Ioi {
    /// MIB's JSON Lines or EAP-IG's CSV to discover and tune on; without it, sentences are generated.
    data: Option<PathBuf>,
    /// The same to evaluate on; without it, `data`, or generated sentences never trained on.
    test_data: Option<PathBuf>,
    /// Of generated sentences: the indirect object named first (`abba`), second (`baba`), or `both`.
    order: Order,
    /// The counterfactual: three other names (`names`), or the subject's second mention exchanged for
    /// the indirect object (`flip`). Of MIB's files the column `abc_counterfactual` or
    /// `s2_io_flip_counterfactual`, of EAP-IG's `corrupted`, where the subject's second mention is a
    /// third name, or `corrupted_hard`.
    counterfactual: Change,
    /// At most so many sentences to discover and tune on; of generated ones, 2000 without it.
    train_examples: Option<usize>,
    /// At most so many sentences to evaluate on; of generated ones, 500 without it.
    test_examples: Option<usize>,
    /// Rows that can't be used: `stop` or `skip`.
    bad_rows: BadRows,
}

const NAMES: [&str; 48] = [
    "Mary", "John", "Tom", "James", "Dan", "Sarah", "Anna", "Paul", "Mark", "Laura", "Kate",
    "Peter", "Alice", "Emma", "Robert", "David", "Michael", "Daniel", "Andrew", "Simon", "Kevin",
    "Jack", "Adam", "Ryan", "Scott", "Martin", "Steve", "Jason", "Brian", "Eric", "Rachel",
    "Linda", "Lisa", "Jennifer", "Jessica", "Amy", "Maria", "Susan", "Karen", "Julia", "Helen",
    "Ruth", "Jane", "Emily", "Lucy", "Richard", "William", "George",
];
const PLACES: [&str; 12] = [
    "store",
    "market",
    "garden",
    "school",
    "park",
    "library",
    "office",
    "station",
    "hospital",
    "restaurant",
    "beach",
    "museum",
];
const OBJECTS: [&str; 12] = [
    "book", "drink", "ring", "letter", "ball", "key", "map", "box", "cup", "coat", "ticket",
    "bottle",
];

/// The names in order are {0}, {1} and {2}; the last stands for the subject's second mention.
const TEMPLATES: [&str; 8] = [
    "Then, {0} and {1} went to the {place}. {2} gave a {object} to",
    "When {0} and {1} got a {object} at the {place}, {2} decided to give it to",
    "After {0} and {1} went to the {place}, {2} gave a {object} to",
    "Then, {0} and {1} were working at the {place}. {2} decided to give a {object} to",
    "While {0} and {1} were waiting at the {place}, {2} handed a {object} to",
    "Then, {0} and {1} had a long argument, and afterwards {2} brought a {object} from the {place} to",
    "Once {0} and {1} had found a {object} at the {place}, {2} passed it to",
    "Later, {0} and {1} met at the {place}, where {2} offered a {object} to",
];

/// The names that can stand for each other: five at least, of as many tokens.
fn interchangeable(tokenizer: &Tokenizer) -> Result<Vec<Vec<&'static str>>> {
    let mut groups: BTreeMap<usize, Vec<&'static str>> = BTreeMap::new();
    for name in NAMES {
        groups.entry(tokenizer.encode(&format!(" {name}"))?.len()).or_default().push(name);
    }
    let groups: Vec<_> = groups.into_values().filter(|names| names.len() >= 5).collect();
    if groups.is_empty() {
        refuse!("this tokenizer has no five names of as many tokens; give data");
    }
    Ok(groups)
}

/// Where a sentence has its names, and what follows the subject's first mention, which induction heads look at; in
/// bytes.
fn marks(text: &str, object: &str, subject: &str) -> Vec<(&'static str, Range<usize>)> {
    let subjects = mentions(text, subject.trim());
    let second = subjects.get(1..).and_then(<[_]>::last);
    let after = subjects.first().and_then(|first| {
        let next = text[first.end..].char_indices().find(|(_, c)| !c.is_whitespace());
        next.map(|(start, c)| first.end + start..first.end + start + c.len_utf8())
    });
    [
        ("indirect_object", mentions(text, object.trim()).first().cloned()),
        ("subject_first", subjects.first().cloned()),
        ("after_subject_first", after),
        ("subject_second", second.cloned()),
    ]
    .into_iter()
    .filter_map(|(name, span)| Some((name, span?)))
    .collect()
}

/// Where a name stands in a text as a whole word.
fn mentions(text: &str, name: &str) -> Vec<Range<usize>> {
    let is_inside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    (text.match_indices(name).map(|(start, _)| start..start + name.len()))
        .filter(|span| {
            !is_inside(text[..span.start].chars().next_back())
                && !is_inside(text[span.end..].chars().next())
        })
        .collect()
}

impl Ioi {
    /// A random sentence.
    fn draw(&self, groups: &[Vec<&'static str>], random: &mut ChaCha8Rng) -> Question {
        let first = match self.order {
            Order::Both => *[Order::Abba, Order::Baba].choose(random).unwrap_or(&Order::Abba),
            order => order,
        };
        let group = groups.choose_weighted(random, Vec::len).map_or(&[][..], |group| &group[..]);
        let mut names = group.choose_multiple(random, 5).copied();
        let [object, subject, a, b, c] = std::array::from_fn(|_| names.next().unwrap_or_default());
        let mut pick = |words: &[&'static str]| words.choose(random).copied().unwrap_or_default();
        let template = (pick(&TEMPLATES).replace("{place}", pick(&PLACES)))
            .replace("{object}", pick(&OBJECTS));
        let fill = |names: [&str; 3]| {
            (names.iter().enumerate()).fold(template.clone(), |text, (index, name)| {
                text.replace(&format!("{{{index}}}"), name)
            })
        };
        let pair = |one, other| match first {
            Order::Baba => [other, one],
            _ => [one, other],
        };
        let [one, two] = pair(object, subject);
        let (corrupt, answer) = match self.counterfactual {
            Change::Names => {
                let [one, two] = pair(a, b);
                (fill([one, two, c]), a)
            }
            Change::Flip => (fill([one, two, object]), subject),
        };
        let text = fill([one, two, subject]);
        Question {
            prompt: Prompt::new(&text, &format!(" {object}")),
            wrong: format!(" {subject}"),
            counterfactual: Prompt::new(&corrupt, &format!(" {answer}")),
            marks: marks(&text, object, subject),
        }
    }

    fn read(&self, path: &Path, most: Option<usize>, setting: &Setting) -> Result<Prompts> {
        let tokenizer = setting.tokenizer()?;
        let questions: Vec<Row<Question>> = match rows::is_csv(path) {
            true => rows::map(rows::csv::<EapIg>(path)?, |row| {
                row.question(self.counterfactual, tokenizer)
            }),
            false => rows::map(rows::jsonl::<Mib>(path)?, |row| row.question(self.counterfactual)),
        };
        let mut sieve = Sieve::new(path, self.bad_rows, None, setting);
        let examples =
            sieve.keep_all(questions, |question, origin| question.example(tokenizer, origin))?;
        sieve.prompts(examples, most)
    }
}

impl Task for Ioi {
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
        let tokenizer = setting.tokenizer()?;
        let groups = interchangeable(tokenizer)?;
        let mut random = generated::random(split, setting.seed);
        let questions = std::iter::repeat_with(|| self.draw(&groups, &mut random))
            .filter(|question| generated::is_of(split, question.prompt.text()))
            .enumerate();
        let made = questions.map(|(index, question)| {
            question.example(tokenizer, &format!("generated sentence {}", index + 1))
        });
        Ok(Box::new(Prompts(generated::take(split, limit, made)?)))
    }
}

register!(dyn Task, Ioi, "ioi", "indirect objects: from templates, or MIB's or EAP-IG's files");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use circuit_framework::Example;
    use proptest::prelude::*;

    use super::*;
    use crate::tests::{check_counterfactuals, gpt2, setting, tokenizer, tokenizers};

    fn load(task: &Ioi, split: Split, tokenizer: &Tokenizer, seed: u64) -> Result<Vec<Example>> {
        let setting = Setting { tokenizer: Some(tokenizer), seed, ..setting(1024) };
        Ok(task.load(split, &setting)?.examples().to_vec())
    }

    fn names(text: &str) -> Vec<&str> {
        let words = text.split(|c: char| !c.is_alphanumeric());
        words.filter(|word| NAMES.contains(word)).collect()
    }

    /// The marked tokens say the names, in the order in which they stand, once each.
    fn check_marks(example: &Example, [object, subject]: [&str; 2], tokenizer: &Tokenizer) {
        let spans = &example.spans;
        let text = |name: &str| {
            let tokens: Vec<u32> = spans[name].iter().map(|&at| example.tokens[at]).collect();
            tokenizer.decode(&tokens).unwrap().trim().to_owned()
        };
        assert_eq!(text("indirect_object"), object);
        assert_eq!([text("subject_first"), text("subject_second")], [subject, subject]);
        assert!(spans["subject_first"] < spans["subject_second"]);
        // Some tokenizers have a token for the space between words.
        let is_word =
            |at: &usize| !tokenizer.decode(&example.tokens[*at..=*at]).unwrap().trim().is_empty();
        let next = (spans["subject_first"].last().unwrap() + 1..).find(is_word);
        assert_eq!(spans["after_subject_first"], [next.unwrap()]);
        assert!(spans["indirect_object"] < spans["subject_second"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..Default::default() })]

        #[test]
        fn sentences_follow_the_pattern(seed in any::<u64>(), flip in any::<bool>(), abba in any::<bool>()) {
            let task = Ioi {
                order: if abba { Order::Abba } else { Order::Baba },
                counterfactual: if flip { Change::Flip } else { Change::Names },
                train_examples: Some(50),
                ..Ioi::default()
            };
            for tokenizer in tokenizers() {
                let examples = load(&task, Split::Train, tokenizer, seed).unwrap();
                prop_assert_eq!(examples.len(), 50);
                check_counterfactuals(&examples);
                for example in examples {
                    let text = tokenizer.decode(&example.tokens).unwrap();
                    let other = &example.counterfactual.as_ref().unwrap().tokens;
                    let other = tokenizer.decode(other).unwrap();
                    let (own, other) = (names(&text), names(&other));
                    let [object, subject] = if abba { [own[0], own[1]] } else { [own[1], own[0]] };
                    prop_assert_eq!(&own[2..], &[subject, object]);
                    check_marks(&example, [object, subject], tokenizer);
                    prop_assert_ne!(other[3], object, "the counterfactual's answer differs");
                    match flip {
                        true => prop_assert_eq!(&other[..], &[own[0], own[1], object, subject]),
                        false => {
                            let three: BTreeSet<&str> = other[..3].iter().copied().collect();
                            prop_assert_eq!(three.len(), 3);
                            prop_assert!(own.iter().all(|name| !three.contains(name)));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_splits_do_not_overlap_whatever_the_seeds() {
        let task = Ioi::default();
        let test = load(&task, Split::Test, tokenizer(), 1).unwrap();
        let test: BTreeSet<&[u32]> = test.iter().map(|example| &example.tokens[..]).collect();
        let train = load(&task, Split::Train, tokenizer(), 2).unwrap();
        assert!(train.iter().all(|example| !test.contains(&example.tokens[..])));
    }

    const MIB: &str = r#"{"prompt": "As Amy and Tom ate, Tom gave it to", "metadata": {"subject": "Tom",
 "indirect_object": "Amy", "random_c": "Dan"}, "choices": ["Tom", "Amy"], "answerKey": 1,
 "s2_io_flip_counterfactual": {"prompt": "As Amy and Tom ate, Amy gave it to", "answerKey": 0}}"#;

    #[test]
    fn published_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ioi.jsonl");
        std::fs::write(&path, MIB.replace('\n', "")).unwrap();
        let task = Ioi { data: Some(path), counterfactual: Change::Flip, ..Ioi::default() };
        for tokenizer in tokenizers() {
            let examples = load(&task, Split::Train, tokenizer, 0).unwrap();
            check_counterfactuals(&examples);
            let text = tokenizer.decode(&examples[0].tokens).unwrap();
            assert_eq!(text, "As Amy and Tom ate, Tom gave it to Amy");
            check_marks(&examples[0], ["Amy", "Tom"], tokenizer);
        }
        let task = Ioi { counterfactual: Change::Names, ..task };
        let error = load(&task, Split::Train, tokenizer(), 0).unwrap_err().to_string();
        assert!(error.contains("ioi.jsonl:1: the row has no abc_counterfactual"), "{error}");

        let path = folder.path().join("ioi.csv");
        let Some(gpt2) = gpt2() else { return };
        let [amy, tom] = [" Amy", " Tom"].map(|name| gpt2.encode(name).unwrap()[0]);
        let row = format!(
            "clean,corrupted,correct_idx,incorrect_idx\n\
             \"As Amy and Tom ate, Tom gave it to\",\"As Amy and Tom ate, Dan gave it to\",{amy},{tom}\n"
        );
        std::fs::write(&path, row).unwrap();
        let task = Ioi { data: Some(path), ..Ioi::default() };
        let examples = load(&task, Split::Train, gpt2, 0).unwrap();
        check_counterfactuals(&examples);
        assert_eq!(
            (&examples[0].keys[0].correct[..], &examples[0].keys[0].wrong[..]),
            (&[amy][..], &[tom][..])
        );
        let error = load(&task, Split::Train, tokenizer(), 0).unwrap_err().to_string();
        assert!(error.contains("ioi.csv:2: ") && error.contains("another tokenizer's"), "{error}");
        // With the table's other counterfactual the names are known without the ids.
        let row = "clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\n\
             \"As Amy and Tom ate, Tom gave it to\",\"As Amy and Tom ate, Dan gave it to\",\
             \"As Amy and Tom ate, Amy gave it to\",0,0\n";
        std::fs::write(task.data.as_ref().unwrap(), row).unwrap();
        for counterfactual in [Change::Names, Change::Flip] {
            let task = Ioi { counterfactual, ..task.clone() };
            for tokenizer in tokenizers() {
                let examples = load(&task, Split::Train, tokenizer, 0).unwrap();
                check_counterfactuals(&examples);
                let text = tokenizer.decode(&examples[0].tokens).unwrap();
                assert_eq!(text, "As Amy and Tom ate, Tom gave it to Amy");
                check_marks(&examples[0], ["Amy", "Tom"], tokenizer);
            }
        }
    }
}
