//! Gender de-biasing (arXiv 2502.06106, section 4.1): which pronoun the model expects for somebody with
//! an occupation. The metric is logit(pronoun) − logit(counter-pronoun) at the pronoun; tuned with a
//! penalty on its magnitude (`tuning.metric_penalty`), the model learns to expect both alike.
//!
//! Positions and tokens are derived from the text with the model's own tokenizer: the first token that
//! differs when the pronoun alone is exchanged. Where a run needs counterfactuals, which the paper has
//! none of, they are the sentences with an occupation of the other gender and of as many tokens; what has
//! none is left out and counted.

mod counterfactual;
mod occupations;
mod pronouns;
mod sentences;

use std::ops::Range;
use std::path::{Path, PathBuf};

use circuit_framework::data::example::Counterfactual;
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::{
    Dataset, Evaluation, Example, Figures, Key, Result, Setting, Split, Task, evaluation::answers,
    pass, refuse, register,
};
use serde::{Deserialize, Serialize};

use crate::instruction::share;
use crate::rows::{BadRows, Sieve};
use occupations::{figures, histogram, occupations};
use pronouns::Gender;
use sentences::Sentence;

/// Where the sentences are.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Bias {
    /// BUG's CSV, or a file of WinoBias, or its folder (then the dev files), to discover and tune on.
    data: Option<PathBuf>,
    /// The same to evaluate on (of a folder the test files); without it, `data`.
    test_data: Option<PathBuf>,
    /// At most so many sentences to discover and tune on.
    train_examples: Option<usize>,
    /// At most so many sentences of a file to evaluate on.
    test_examples: Option<usize>,
    /// Leave out sentences of more tokens; the context is always a limit.
    max_tokens: Option<usize>,
    /// Rows that can't be used: `stop` or `skip`.
    bad_rows: BadRows,
}

/// The parts of WinoBias: what figures call them, and the beginning of their files' names.
const WINOBIAS: [(&str, &str); 4] = [
    ("type1.pro", "pro_stereotyped_type1.txt"),
    ("type1.anti", "anti_stereotyped_type1.txt"),
    ("type2.pro", "pro_stereotyped_type2.txt"),
    ("type2.anti", "anti_stereotyped_type2.txt"),
];

/// Sentences and their examples, in step.
#[derive(Debug, Default)]
struct Sentences {
    sentences: Vec<Sentence>,
    examples: Vec<Example>,
    /// The parts of WinoBias that these are.
    parts: Vec<(&'static str, Range<usize>)>,
}

impl Sentence {
    /// The tokens, and the key: the first token that differs when the pronoun alone is exchanged.
    fn tokenise(&self, tokenizer: &Tokenizer) -> Result<(Vec<u32>, Key)> {
        let prefix: Vec<u32> = tokenizer.prefix().into_iter().collect();
        let encode = |text: &str| {
            Ok::<_, circuit_framework::Error>([&prefix[..], &tokenizer.encode(text)?].concat())
        };
        let tokens = encode(&self.text)?;
        let mut swapped = self.text.clone();
        swapped.replace_range(self.pronoun.clone(), &self.counter);
        let other = encode(&swapped)?;
        let position = tokens.iter().zip(&other).position(|(own, other)| own != other);
        let Some(position) = position.filter(|&position| position > 0) else {
            refuse!("the pronoun is the first token, which nothing predicts");
        };
        let key = Key { position, correct: vec![tokens[position]], wrong: vec![other[position]] };
        Ok((tokens, key))
    }

    /// Marked are the pronoun and, where it stands before it, the occupation.
    fn marks(&self) -> impl Iterator<Item = (&'static str, Range<usize>)> {
        let occupation = self.occupation_span().map(|span| ("occupation", span));
        occupation.into_iter().chain([("pronoun", self.pronoun.clone())])
    }

    fn example(&self, tokenizer: &Tokenizer, origin: &str) -> Result<Example> {
        let (tokens, key) = self.tokenise(tokenizer)?;
        Ok(Example {
            predicted: 1..tokens.len(),
            keys: vec![key],
            tokens,
            spans: tokenizer.spans(&self.text, self.marks())?,
            origin: origin.to_owned(),
            ..Example::default()
        })
    }

    /// The first counterfactual in which every token stands where it does in the example.
    fn counterfactual(
        &self,
        example: &Example,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Counterfactual>> {
        for other in counterfactual::sentences(self) {
            let (tokens, key) = other.tokenise(tokenizer)?;
            if tokens.len() == example.tokens.len() && example.keys == [key.clone()] {
                return Ok(Some(Counterfactual { tokens, key_positions: vec![key.position] }));
            }
        }
        Ok(None)
    }
}

impl Bias {
    fn sentences(&self, split: Split, setting: &Setting) -> Result<Sentences> {
        let (test, most, suffix) = match split {
            Split::Train => (None, self.train_examples, "dev"),
            Split::Test => (self.test_data.as_ref(), self.test_examples, "test"),
        };
        let Some(path) = test.or(self.data.as_ref()) else {
            refuse!("task `bias` needs data: BUG's CSV, a file of WinoBias, or its folder");
        };
        let mut all = Sentences::default();
        if !path.is_dir() {
            self.read(path, split, most, setting, &mut all)?;
            return Ok(all);
        }
        for (part, name) in WINOBIAS {
            let file = path.join(format!("{name}.{suffix}"));
            if file.exists() {
                let start = all.examples.len();
                self.read(&file, split, most, setting, &mut all)?;
                all.parts.push((part, start..all.examples.len()));
            }
        }
        if all.parts.is_empty() {
            refuse!(
                "{}: no files of WinoBias; their names begin as {}",
                path.display(),
                WINOBIAS[0].1
            );
        }
        Ok(all)
    }

    /// Adds at most `most` sentences of a file to `all`.
    fn read(
        &self,
        path: &Path,
        split: Split,
        most: Option<usize>,
        setting: &Setting,
        all: &mut Sentences,
    ) -> Result<()> {
        let tokenizer = setting.tokenizer()?;
        let mut sieve = Sieve::new(path, self.bad_rows, self.max_tokens, setting);
        let before = all.examples.len();
        let mut read = sieve.keep_all(sentences::read(path)?, |sentence, origin| {
            Ok((sentence.example(tokenizer, origin)?, sentence))
        })?;
        if setting.counterfactuals {
            add_counterfactuals(path, &mut read, split, tokenizer)?;
        }
        for (example, sentence) in read.into_iter().take(most.unwrap_or(usize::MAX)) {
            if let Some(example) = sieve.fit(example) {
                all.sentences.push(sentence);
                all.examples.push(example);
            }
        }
        sieve.report(all.examples.len() - before)
    }
}

/// Gives sentences their counterfactuals, and leaves those without one out of the training split.
fn add_counterfactuals(
    path: &Path,
    read: &mut Vec<(Example, Sentence)>,
    split: Split,
    tokenizer: &Tokenizer,
) -> Result<()> {
    for (example, sentence) in read.iter_mut() {
        example.counterfactual = sentence.counterfactual(example, tokenizer)?;
    }
    if split == Split::Test {
        return Ok(());
    }
    let all = read.len();
    read.retain(|(example, _)| example.counterfactual.is_some());
    let left_out = all - read.len();
    if all > 0 && read.is_empty() {
        refuse!(
            "{}: none of {all} sentences has a counterfactual; one needs an occupation before the pronoun \
             that WinoBias names, and another of the other gender and of as many tokens",
            path.display()
        );
    }
    if left_out > 0 {
        log::warn!(
            "{}: {left_out} of {all} sentences left out, since every one needs a counterfactual: no \
             occupation of the other gender has as many tokens, or theirs is none that WinoBias names",
            path.display()
        );
    }
    Ok(())
}

impl Sentences {
    /// logit(pronoun) − logit(counter-pronoun) of each sentence.
    fn differences(&self, evaluation: &Evaluation) -> Result<Vec<f64>> {
        evaluation.by_example(&self.examples, |batch, readout| {
            let keys: Vec<_> = batch.keys().collect();
            Ok(pass::values(&answers::logit_differences(readout, &keys)?)?)
        })
    }
}

impl Task for Bias {
    fn default_metric(&self) -> &str {
        "logit_diff"
    }

    fn load(&self, split: Split, setting: &Setting) -> Result<Box<dyn Dataset>> {
        Ok(Box::new(self.sentences(split, setting)?))
    }

    fn why_no_counterfactual(&self) -> Option<&str> {
        Some(
            "no occupation of the other gender has as many tokens, or its own is none that WinoBias names",
        )
    }
}

impl Dataset for Sentences {
    fn examples(&self) -> &[Example] {
        &self.examples
    }

    fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures> {
        let mut result = evaluation.language_modelling(&self.examples)?;
        let differences = self.differences(evaluation)?;
        let male_share = |(sentence, difference): (&Sentence, &f64)| {
            // p / (p + p') of two softmax probabilities: the logistic of the logits' difference.
            let own = 1.0 / (1.0 + (-difference).exp());
            if sentence.gender == Gender::Male { own } else { 1.0 - own }
        };
        let shares: Vec<(&str, f64)> = (self.sentences.iter().zip(&differences))
            .map(|pair| (&pair.0.occupation[..], male_share(pair)))
            .collect();
        for (part, range) in &self.parts {
            let differences = &differences[range.clone()];
            let right = differences.iter().filter(|&&difference| difference > 0.0).count();
            let mean = differences.iter().sum::<f64>() / differences.len() as f64;
            result.insert(format!("{part}.right_share"), share(right, differences.len()));
            result.insert(format!("{part}.logit_diff"), mean);
        }
        let occupations = occupations(&shares);
        evaluation.write_jsonl("occupations.jsonl", &occupations)?;
        evaluation.write("prejudice_risk.svg", histogram(&occupations).as_bytes())?;
        result.extend(figures(&occupations));
        Ok(result)
    }
}

register!(
    dyn Task,
    Bias,
    "bias",
    "gender de-biasing: pronouns for occupations, from BUG or WinoBias"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{fixture, setting, shared};

    fn load(path: PathBuf, bad_rows: BadRows) -> Result<Sentences> {
        let task = Bias { data: Some(path), bad_rows, ..Bias::default() };
        task.sentences(Split::Train, &setting(4096))
    }

    /// The text of the tokens at a span.
    fn marked(
        example: &Example,
        name: &str,
        tokenizer: &circuit_framework::data::tokenizer::Tokenizer,
    ) -> String {
        let span = example.spans.get(name).map_or(&[][..], |span| span);
        let tokens: Vec<u32> = span.iter().map(|&at| example.tokens[at]).collect();
        tokenizer.decode(&tokens).unwrap().trim().to_owned()
    }

    #[test]
    fn the_fixture_of_bug_is_read_and_its_bad_rows_are_named() {
        let error = load(fixture("bug.csv"), BadRows::Stop).unwrap_err().to_string();
        assert!(error.contains("bug.csv:4") && error.contains("\"it\""), "{error}");
        let loaded = load(fixture("bug.csv"), BadRows::Skip).unwrap();
        let shown: Vec<(&str, &str, &str)> = (loaded.sentences.iter())
            .map(|s| (&s.text[..], &s.counter[..], &s.occupation[..]))
            .collect();
        assert_eq!(
            shown,
            [
                ("The baker said that he was tired, and", "she", "baker"),
                ("A \"quick\" surgeon washed her hands.", "his", "surgeon"),
            ]
        );
        let tokenizer = crate::tests::tokenizer();
        for (sentence, example) in loaded.sentences.iter().zip(&loaded.examples) {
            assert_eq!(marked(example, "occupation", tokenizer), sentence.occupation);
            let [key] = &example.keys[..] else { panic!("one key") };
            // Tokens are bytes here, so positions are the text's.
            let own = &sentence.text[sentence.pronoun.clone()];
            let at = own.bytes().zip(sentence.counter.bytes()).position(|(a, b)| a != b).unwrap();
            assert_eq!(key.position, sentence.pronoun.start + at);
            assert_eq!(tokenizer.decode(&key.correct).unwrap(), own[at..at + 1]);
        }
    }

    #[test]
    fn the_fixture_of_winobias_is_read_from_all_its_forms() {
        let loaded = load(fixture("winobias"), BadRows::Stop).unwrap();
        assert_eq!(loaded.parts, [("type1.pro", 0..2), ("type1.anti", 2..4)]);
        // The other file says "him" where the next word alone would be taken for a noun.
        assert_eq!(loaded.sentences[1].counter, "him");
        let processed = load(fixture("winobias/processed.jsonl"), BadRows::Skip).unwrap();
        assert_eq!(processed.sentences[0].text, loaded.sentences[0].text);
        assert_eq!(processed.sentences.len(), 1);
    }

    #[test]
    fn all_of_winobias_is_read() {
        let Some(folder) = shared("bias/winobias") else { return };
        let task = Bias { data: Some(folder.clone()), bad_rows: BadRows::Skip, ..Bias::default() };
        for split in [Split::Train, Split::Test] {
            let loaded = task.sentences(split, &setting(4096)).unwrap();
            let counts: Vec<usize> = loaded.parts.iter().map(|(_, range)| range.len()).collect();
            assert_eq!(counts, [396, 396, 396, 396], "{split:?}");
        }
        let processed =
            load(folder.join("pro_stereotyped_type2_dev.jsonl"), BadRows::Skip).unwrap();
        assert_eq!(processed.examples.len(), 396);
    }
    #[test]
    fn counterfactuals_are_as_long_and_of_another_occupation() {
        let Some(folder) = shared("bias/winobias") else { return };
        let task = Bias { data: Some(folder), bad_rows: BadRows::Skip, ..Bias::default() };
        for tokenizer in crate::tests::tokenizers() {
            let setting =
                Setting { counterfactuals: true, tokenizer: Some(tokenizer), ..setting(4096) };
            let loaded = task.sentences(Split::Train, &setting).unwrap();
            // Of 4 · 396 sentences; a few have no occupation before the pronoun.
            assert!(loaded.examples.len() > 1400, "{}", loaded.examples.len());
            crate::tests::check_counterfactuals(&loaded.examples);
            for (example, sentence) in loaded.examples.iter().zip(&loaded.sentences) {
                let occupation = marked(example, "occupation", tokenizer);
                assert!(occupation.eq_ignore_ascii_case(&sentence.occupation), "{occupation}");
                assert_eq!(
                    marked(example, "pronoun", tokenizer),
                    sentence.text[sentence.pronoun.clone()]
                );
                assert!(example.spans["pronoun"].contains(&example.keys[0].position));
                let other = &example.counterfactual.as_ref().unwrap().tokens;
                let other = tokenizer.decode(other).unwrap();
                let differing = |a: &str, b: &str| {
                    a.split(' ').filter(|word| !b.split(' ').any(|own| own == *word)).count()
                };
                // The occupation alone, of one or two words.
                assert!((1..=2).contains(&differing(&other, &sentence.text)), "{other}");
            }
            let test = task.sentences(Split::Test, &setting).unwrap();
            assert_eq!(test.examples.len(), 4 * 396);
        }
    }

    #[test]
    fn a_file_without_any_counterfactual_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("poets.txt.dev");
        std::fs::write(&path, "1 [The poet] said that [he] was ill.\n").unwrap();
        let task = Bias { data: Some(path), ..Bias::default() };
        let setting = Setting { counterfactuals: true, ..setting(4096) };
        let error = task.sentences(Split::Train, &setting).unwrap_err().to_string();
        assert!(error.contains("none of 1 sentences has a counterfactual"), "{error}");
    }
}
