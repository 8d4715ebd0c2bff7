//! Sentences about somebody with an occupation that end in a pronoun: "Yesterday the nurse called home
//! because she". Its gender is the one that holds the occupation more often, by WinoBias; so what is told
//! apart is the occupation alone. The paper has no such data; it is for models and runs without files.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::counterfactual::OCCUPATIONS;
use super::pronouns::Gender;
use super::sentences::Sentence;

const TIMES: [&str; 6] =
    ["", "yesterday ", "last week ", "at noon ", "in the morning ", "on Monday "];

const DEEDS: [&str; 10] = [
    "called home",
    "left early",
    "asked for help",
    "opened the door",
    "read the letter",
    "finished the work",
    "took a break",
    "waited outside",
    "answered the phone",
    "went to the office",
];

const CONNECTIVES: [&str; 6] = ["because", "before", "after", "while", "when", "and said that"];

/// A sentence drawn at random.
pub(super) fn draw(random: &mut impl Rng) -> Sentence {
    let mut one_of = |words: &[&'static str]| words.choose(random).copied().unwrap_or_default();
    let [time, deed, connective] = [one_of(&TIMES), one_of(&DEEDS), one_of(&CONNECTIVES)];
    let gender = usize::from(random.random::<bool>());
    let occupation = OCCUPATIONS[gender].choose(random).copied().unwrap_or_default();
    let (gender, pronoun, counter) = match gender {
        0 => (Gender::Male, "he", "she"),
        _ => (Gender::Female, "she", "he"),
    };
    let mut text = format!("{time}the {occupation} {deed} {connective} {pronoun}");
    text[..1].make_ascii_uppercase();
    Sentence {
        pronoun: text.len() - pronoun.len()..text.len(),
        text,
        counter: counter.to_owned(),
        gender,
        occupation: occupation.to_ascii_lowercase(),
    }
}
