//! Gender de-biasing (arXiv 2502.06106, section 4.1): which pronoun the model expects for somebody with
//! an occupation. The metric is logit(pronoun) − logit(counter-pronoun) at the pronoun; tuned with a
//! penalty on its magnitude (`tuning.metric_penalty`), the model learns to expect both alike.
//!
//! Positions and tokens are derived from the text with the model's own tokenizer: the first token that
//! differs when the pronoun alone is exchanged.

mod occupations;
mod pronouns;
mod sentences;

use std::path::{Path, PathBuf};

use circuit_framework::tokenizer::Tokenizer;
use circuit_framework::{
    Evaluation, Example, Figures, Key, Options, Plugin, Result, Setting, Split, Task, answers,
    inventory, origin, pass, refuse,
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

/// Sentences and their examples, in step; the part of WinoBias they are.
#[derive(Debug)]
struct Loaded {
    part: Option<&'static str>,
    sentences: Vec<Sentence>,
    examples: Vec<Example>,
}

impl Sentence {
    fn example(&self, tokenizer: &Tokenizer, origin: &str) -> Result<Example> {
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
        Ok(Example {
            predicted: 1..tokens.len(),
            keys: vec![Key {
                position,
                correct: vec![tokens[position]],
                wrong: vec![other[position]],
            }],
            tokens,
            counterfactual: None,
            origin: origin.to_owned(),
        })
    }
}

impl Bias {
    fn load(&self, split: Split, setting: &Setting) -> Result<Vec<Loaded>> {
        let (test, most, suffix) = match split {
            Split::Train => (None, self.train_examples, "dev"),
            Split::Test => (self.test_data.as_ref(), self.test_examples, "test"),
        };
        let Some(path) = test.or(self.data.as_ref()) else {
            refuse!("task `bias` needs data: BUG's CSV, a file of WinoBias, or its folder");
        };
        if !path.is_dir() {
            return Ok(vec![self.load_file(path, None, most, setting)?]);
        }
        let mut loaded = Vec::new();
        for (part, name) in WINOBIAS {
            let file = path.join(format!("{name}.{suffix}"));
            if file.exists() {
                loaded.push(self.load_file(&file, Some(part), most, setting)?);
            }
        }
        if loaded.is_empty() {
            refuse!(
                "{}: no files of WinoBias; their names begin as {}",
                path.display(),
                WINOBIAS[0].1
            );
        }
        Ok(loaded)
    }

    fn load_file(
        &self,
        path: &Path,
        part: Option<&'static str>,
        most: Option<usize>,
        setting: &Setting,
    ) -> Result<Loaded> {
        let tokenizer = setting.tokenizer()?;
        let mut sieve = Sieve::new(path, self.bad_rows, self.max_tokens, setting);
        let mut loaded = Loaded { part, sentences: Vec::new(), examples: Vec::new() };
        let read = sieve.keep_all(sentences::read(path)?, |sentence, origin| {
            Ok((sentence.example(tokenizer, origin)?, sentence))
        })?;
        for (example, sentence) in read.into_iter().take(most.unwrap_or(usize::MAX)) {
            if let Some(example) = sieve.fit(example) {
                loaded.sentences.push(sentence);
                loaded.examples.push(example);
            }
        }
        sieve.report(loaded.examples.len())?;
        Ok(loaded)
    }
}

impl Loaded {
    /// logit(pronoun) − logit(counter-pronoun) of each sentence.
    fn differences(&self, evaluation: &Evaluation) -> Result<Vec<f64>> {
        let mut differences = vec![0.0; self.examples.len()];
        evaluation.for_each_batch(&self.examples, |indices, batch, readout| {
            let keys: Vec<_> = batch.keys().collect();
            let found = answers::logit_differences(readout, &keys)?;
            for (&(row, ..), difference) in keys.iter().zip(pass::values(&found)?) {
                differences[indices[row]] = difference;
            }
            Ok(())
        })?;
        Ok(differences)
    }
}

impl Task for Bias {
    fn default_metric(&self) -> &str {
        "logit_diff"
    }

    fn examples(&self, split: Split, setting: &Setting) -> Result<Vec<Example>> {
        Ok(self.load(split, setting)?.into_iter().flat_map(|loaded| loaded.examples).collect())
    }

    fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures> {
        let loaded = self.load(Split::Test, &evaluation.setting)?;
        let examples: Vec<Example> =
            loaded.iter().flat_map(|loaded| loaded.examples.iter().cloned()).collect();
        let mut result = evaluation.language_modelling(&examples)?;
        let mut shares = Vec::new();
        for loaded in &loaded {
            let differences = loaded.differences(evaluation)?;
            for (sentence, difference) in loaded.sentences.iter().zip(&differences) {
                // p / (p + p') of two softmax probabilities: the logistic of the logits' difference.
                let own = 1.0 / (1.0 + (-difference).exp());
                let male = if sentence.gender == Gender::Male { own } else { 1.0 - own };
                shares.push((&sentence.occupation[..], male));
            }
            if let Some(part) = loaded.part {
                let right = differences.iter().filter(|&&difference| difference > 0.0).count();
                let mean = differences.iter().sum::<f64>() / differences.len() as f64;
                result.insert(format!("{part}.right_share"), share(right, differences.len()));
                result.insert(format!("{part}.logit_diff"), mean);
            }
        }
        let occupations = occupations(&shares);
        evaluation.write_jsonl("occupations.jsonl", &occupations)?;
        evaluation.write("prejudice_risk.svg", histogram(&occupations).as_bytes())?;
        result.extend(figures(&occupations));
        Ok(result)
    }
}

impl Options<dyn Task> for Bias {
    fn build(self) -> Result<Box<dyn Task>> {
        Ok(Box::new(self))
    }
}

inventory::submit! {
    Plugin::<dyn Task>::new::<Bias>(
        "bias", "gender de-biasing: pronouns for occupations, from BUG or WinoBias", origin!(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{fixture, setting, shared};

    fn load(path: PathBuf, bad_rows: BadRows) -> Result<Vec<Loaded>> {
        Bias { data: Some(path), bad_rows, ..Bias::default() }.load(Split::Train, &setting(4096))
    }

    #[test]
    fn the_fixture_of_bug_is_read_and_its_bad_rows_are_named() {
        let error = load(fixture("bug.csv"), BadRows::Stop).unwrap_err().to_string();
        assert!(error.contains("bug.csv:4") && error.contains("\"it\""), "{error}");
        let loaded = load(fixture("bug.csv"), BadRows::Skip).unwrap();
        let [loaded] = &loaded[..] else { panic!("one file") };
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
        let parts: Vec<(Option<&str>, usize)> =
            loaded.iter().map(|loaded| (loaded.part, loaded.examples.len())).collect();
        assert_eq!(parts, [(Some("type1.pro"), 2), (Some("type1.anti"), 2)]);
        // The other file says "him" where the next word alone would be taken for a noun.
        assert_eq!(loaded[0].sentences[1].counter, "him");
        let processed = load(fixture("winobias/processed.jsonl"), BadRows::Skip).unwrap();
        assert_eq!(processed[0].sentences[0].text, loaded[0].sentences[0].text);
        assert_eq!(processed[0].sentences.len(), 1);
    }

    #[test]
    fn all_of_winobias_is_read() {
        let Some(folder) = shared("bias/winobias") else { return };
        let task = Bias { data: Some(folder.clone()), bad_rows: BadRows::Skip, ..Bias::default() };
        for split in [Split::Train, Split::Test] {
            let loaded = task.load(split, &setting(4096)).unwrap();
            let counts: Vec<usize> = loaded.iter().map(|loaded| loaded.examples.len()).collect();
            assert_eq!(counts, [396, 396, 396, 396], "{split:?}");
        }
        let processed =
            load(folder.join("pro_stereotyped_type2_dev.jsonl"), BadRows::Skip).unwrap();
        assert_eq!(processed[0].examples.len(), 396);
    }
}
