//! The same sentence about somebody with another occupation: one that people expect the other gender of.
//! Which gender that is, WinoBias says (Zhao et al., 2018, arXiv 1804.06876, from the shares in the
//! statistics of the United States' labour force). Occupations that it doesn't name have none.

use super::sentences::Sentence;

/// By the gender that holds them more often: men, women.
pub(super) const OCCUPATIONS: [[&str; 20]; 2] = [
    [
        "driver",
        "supervisor",
        "janitor",
        "cook",
        "mover",
        "laborer",
        "construction worker",
        "chief",
        "developer",
        "carpenter",
        "manager",
        "lawyer",
        "farmer",
        "salesperson",
        "physician",
        "guard",
        "analyst",
        "mechanic",
        "sheriff",
        "CEO",
    ],
    [
        "attendant",
        "cashier",
        "teacher",
        "nurse",
        "assistant",
        "secretary",
        "auditor",
        "cleaner",
        "receptionist",
        "clerk",
        "counselor",
        "designer",
        "hairdresser",
        "writer",
        "housekeeper",
        "baker",
        "accountant",
        "editor",
        "librarian",
        "tailor",
    ],
];

/// The sentence with each occupation of the other gender in turn, other than those it names anyway.
/// None where its own occupation has no gender, or doesn't stand before the pronoun.
pub(super) fn sentences(sentence: &Sentence) -> Vec<Sentence> {
    let own = (OCCUPATIONS.iter().enumerate()).find_map(|(gender, occupations)| {
        let place = occupations
            .iter()
            .position(|occupation| occupation.eq_ignore_ascii_case(&sentence.occupation))?;
        Some((gender, place))
    });
    let text = sentence.text.to_ascii_lowercase();
    let (Some((gender, place)), Some(span)) = (own, sentence.occupation_span()) else {
        return Vec::new();
    };
    let start = span.start;
    let others = OCCUPATIONS[1 - gender];
    // From its own place on, so that not all get the first that fits.
    let others = others.iter().cycle().skip(place).take(others.len());
    others
        .filter(|other| !text.contains(&other.to_ascii_lowercase()))
        .filter(|other| article_fits(&text[..start], &sentence.occupation, other))
        .map(|other| exchanged(sentence, start, other))
        .collect()
}

/// Whether an "a" or "an" before the one goes with the other.
fn article_fits(before: &str, own: &str, other: &str) -> bool {
    let vowel = |word: &str| word.starts_with(|c: char| "aeiou".contains(c.to_ascii_lowercase()));
    let article = before.split_whitespace().next_back();
    !matches!(article, Some("a" | "an")) || vowel(own) == vowel(other)
}

fn exchanged(sentence: &Sentence, start: usize, other: &str) -> Sentence {
    let end = start + sentence.occupation.len();
    let own = &sentence.text[start..end];
    let is_title = own.starts_with(|c: char| c.is_ascii_uppercase())
        && own.contains(|c: char| c.is_ascii_lowercase());
    let other = match is_title {
        true => other[..1].to_ascii_uppercase() + &other[1..],
        false => other.to_owned(),
    };
    let moved = |at: usize| at + other.len() - own.len();
    Sentence {
        text: format!("{}{other}{}", &sentence.text[..start], &sentence.text[end..]),
        pronoun: moved(sentence.pronoun.start)..moved(sentence.pronoun.end),
        occupation: other.to_ascii_lowercase(),
        ..sentence.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bias::pronouns::Gender;

    fn sentence(text: &str, occupation: &str) -> Sentence {
        let start = text.find(" he ").unwrap() + 1;
        Sentence {
            text: text.to_owned(),
            pronoun: start..start + 2,
            counter: "she".to_owned(),
            gender: Gender::Male,
            occupation: occupation.to_owned(),
        }
    }

    #[test]
    fn the_occupation_alone_is_exchanged() {
        let own = sentence("The Developer asked the nurse, since he was ill", "developer");
        let others = sentences(&own);
        assert_eq!(others.len(), 19, "all twenty but the nurse");
        assert_eq!(others[0].text, "The Receptionist asked the nurse, since he was ill");
        for other in others {
            assert_eq!(&other.text[other.pronoun.clone()], "he");
            assert!(OCCUPATIONS[1].contains(&&other.occupation[..]));
        }
        let texts = |text, occupation| -> Vec<String> {
            sentences(&sentence(text, occupation)).into_iter().map(|other| other.text).collect()
        };
        let after_an = texts("Here an analyst says he is ill", "analyst");
        assert_eq!(
            after_an[0], "Here an accountant says he is ill",
            "an article stays right: {after_an:?}"
        );
        assert!(after_an.len() < 20);
        assert!(
            texts("So the nurse says he is the CEO", "nurse")
                .iter()
                .all(|t| !t.contains("CEO says"))
        );
    }

    #[test]
    fn what_has_no_gender_or_stands_behind_has_none() {
        assert!(sentences(&sentence("The poet says he is ill", "poet")).is_empty());
        assert!(sentences(&sentence("So he is a guard", "guard")).is_empty());
        assert!(sentences(&sentence("The lifeguards say he is ill", "guard")).is_empty());
    }
}
