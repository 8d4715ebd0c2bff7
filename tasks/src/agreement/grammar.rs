//! A small grammar of number agreement with attractors: "the keys to the old cabinet are new". Its
//! words are separated by spaces, so a word-level tokenizer reads them as they stand.

use circuit_framework::Split;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;

use super::{ATTRACTOR, Mark, SUBJECT, Sentence, Verb};
use crate::generated;

/// Singular and plural.
const NOUNS: [[&str; 2]; 40] = [
    ["key", "keys"],
    ["cabinet", "cabinets"],
    ["author", "authors"],
    ["book", "books"],
    ["man", "men"],
    ["woman", "women"],
    ["child", "children"],
    ["teacher", "teachers"],
    ["student", "students"],
    ["doctor", "doctors"],
    ["painter", "painters"],
    ["house", "houses"],
    ["garden", "gardens"],
    ["tree", "trees"],
    ["river", "rivers"],
    ["bridge", "bridges"],
    ["city", "cities"],
    ["story", "stories"],
    ["letter", "letters"],
    ["song", "songs"],
    ["picture", "pictures"],
    ["window", "windows"],
    ["door", "doors"],
    ["table", "tables"],
    ["chair", "chairs"],
    ["lamp", "lamps"],
    ["boat", "boats"],
    ["train", "trains"],
    ["horse", "horses"],
    ["dog", "dogs"],
    ["cat", "cats"],
    ["bird", "birds"],
    ["mouse", "mice"],
    ["foot", "feet"],
    ["farmer", "farmers"],
    ["singer", "singers"],
    ["knife", "knives"],
    ["box", "boxes"],
    ["road", "roads"],
    ["hill", "hills"],
];

/// Singular and plural, and what may follow.
const VERBS: [([&str; 2], &[&str]); 8] = [
    (["is", "are"], ADJECTIVES),
    (["was", "were"], ADJECTIVES),
    (["seems", "seem"], ADJECTIVES),
    (["looks", "look"], ADJECTIVES),
    (["stays", "stay"], ADJECTIVES),
    (["has", "have"], PARTICIPLES),
    (["waits", "wait"], PLACES),
    (["stands", "stand"], PLACES),
];

const ADJECTIVES: &[&str] = &[
    "old", "new", "small", "large", "strange", "quiet", "bright", "dark", "famous", "lonely",
    "clean", "heavy",
];
const PARTICIPLES: &[&str] = &["changed", "vanished", "arrived", "returned", "fallen"];
const PLACES: &[&str] = &["here", "there", "outside", "nearby"];
const PREPOSITIONS: &[&str] = &["to", "of", "near", "behind", "beside", "under", "with", "for"];

/// An endless, seeded stream of a split's sentences. The test split's all have an attractor: a noun
/// of the other number between subject and verb. `flipped` gives the verb its wrong form.
pub(super) fn sentences(split: Split, seed: u64, flipped: bool) -> impl Iterator<Item = Sentence> {
    let mut random = generated::random(split, seed);
    std::iter::from_fn(move || Some(Plan::draw(&mut random)))
        .filter(move |plan| match split {
            Split::Train => !plan.is_held_out(),
            Split::Test => plan.is_held_out() && plan.has_attractor(),
        })
        .enumerate()
        .map(move |(index, plan)| {
            plan.sentence(flipped, &format!("generated sentence {}", index + 1))
        })
}

/// What a sentence says. Numbers are 0 for singular, 1 for plural.
#[derive(Clone)]
struct Plan {
    subject: (usize, usize),
    adjective: Option<&'static str>,
    /// Preposition, noun, number.
    phrases: Vec<(&'static str, usize, usize)>,
    verb: usize,
    ending: &'static str,
}

impl Plan {
    fn draw(random: &mut ChaCha8Rng) -> Self {
        let noun = |random: &mut ChaCha8Rng| {
            (random.random_range(0..NOUNS.len()), (random.next_u32() & 1) as usize)
        };
        let subject = noun(random);
        let adjective = random.random_bool(0.3).then(|| pick(ADJECTIVES, random));
        let phrases = (0..[0, 1, 1, 2][random.random_range(0..4)])
            .map(|_| {
                let (index, number) = noun(random);
                (pick(PREPOSITIONS, random), index, number)
            })
            .collect();
        let verb = random.random_range(0..VERBS.len());
        let ending = pick(VERBS[verb].1, random);
        Self { subject, adjective, phrases, verb, ending }
    }

    fn has_attractor(&self) -> bool {
        self.phrases.iter().any(|&(_, _, number)| number != self.subject.1)
    }

    fn is_held_out(&self) -> bool {
        generated::is_held_out(&self.sentence(false, "").text)
    }

    fn sentence(&self, flipped: bool, origin: &str) -> Sentence {
        let mut other = self.clone();
        other.subject.1 = 1 - self.subject.1;
        let mut sentence = self.text(flipped, origin);
        sentence.counterfactual = Some(Box::new(other.text(flipped, origin)));
        sentence
    }

    fn text(&self, flipped: bool, origin: &str) -> Sentence {
        let (subject, number) = self.subject;
        let mut words = vec!["the"];
        words.extend(self.adjective);
        words.push(NOUNS[subject][number]);
        let mut marks = vec![last(SUBJECT, &words)];
        for &(preposition, noun, of_noun) in &self.phrases {
            words.extend([preposition, "the", NOUNS[noun][of_noun]]);
            marks.extend((of_noun != number).then(|| last(ATTRACTOR, &words)));
        }
        let start = words.iter().map(|word| word.len() + 1).sum();
        let forms = VERBS[self.verb].0;
        let own = if flipped { 1 - number } else { number };
        words.extend([forms[own], self.ending]);
        Sentence {
            text: words.join(" "),
            verbs: vec![Verb {
                span: start..start + forms[own].len(),
                flipped: forms[1 - own].to_owned(),
            }],
            counterfactual: None,
            marks,
            origin: origin.to_owned(),
        }
    }
}

/// A mark on the last of words that stand with a space between them.
fn last(name: &'static str, words: &[&str]) -> Mark {
    let end = words.iter().map(|word| word.len() + 1).sum::<usize>() - 1;
    (name, end - words.last().map_or(0, |word| word.len())..end)
}

fn pick(words: &[&'static str], random: &mut ChaCha8Rng) -> &'static str {
    words.choose(random).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn texts(split: Split, seed: u64, count: usize) -> Vec<String> {
        sentences(split, seed, false).take(count).map(|sentence| sentence.text).collect()
    }

    #[test]
    fn splits_are_disjoint_whatever_the_seeds() {
        let test: BTreeSet<String> = texts(Split::Test, 1, 2000).into_iter().collect();
        assert!(texts(Split::Train, 2, 20_000).iter().all(|text| !test.contains(text)));
    }

    #[test]
    fn a_seed_gives_the_same_sentences_always() {
        assert_eq!(texts(Split::Train, 7, 100), texts(Split::Train, 7, 100));
        assert_ne!(texts(Split::Train, 7, 100), texts(Split::Train, 8, 100));
    }

    #[test]
    fn the_verb_agrees_with_the_subject_and_not_with_the_attractor() {
        for sentence in sentences(Split::Test, 0, false).take(500) {
            let [verb] = &sentence.verbs[..] else { panic!("one verb: {}", sentence.text) };
            let form = &sentence.text[verb.span.clone()];
            let words: Vec<&str> = sentence.text.split(' ').collect();
            let number = |word: &str| {
                NOUNS.iter().find_map(|forms| forms.iter().position(|form| *form == word))
            };
            let marked = |name: &str| -> Vec<Option<usize>> {
                let marks = sentence.marks.iter().filter(|mark| mark.0 == name);
                marks.map(|(_, span)| number(&sentence.text[span.clone()])).collect()
            };
            let mut nouns = words.iter().filter_map(|word| number(word));
            let subject = nouns.next().expect("a subject");
            assert!(
                VERBS
                    .iter()
                    .any(|(forms, _)| forms[subject] == form && forms[1 - subject] == verb.flipped)
            );
            assert_eq!(marked(SUBJECT), [Some(subject)]);
            let attractors: Vec<_> = nouns.filter(|&number| number != subject).map(Some).collect();
            assert!(!attractors.is_empty(), "no attractor: {}", sentence.text);
            assert_eq!(marked(ATTRACTOR), attractors);
            let counterfactual = sentence.counterfactual.expect("a counterfactual");
            assert_eq!(counterfactual.text.split(' ').count(), words.len());
            assert_ne!(counterfactual.text, sentence.text);
        }
    }
}
