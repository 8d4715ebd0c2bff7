//! A task: indirect object identification (Wang et al., 2022, arXiv 2211.00593). "When Mary and John
//! went to the store, John gave a drink to" is continued by the name that came once, not by the one
//! that came twice. The counterfactual has a third name in the second sentence part, so that both are
//! as likely.
//!
//! The sentences here are of words that the built-in model knows too: "the doctor stands near the
//! teacher for the teacher waits for the". The paper's are a matter of options.

use circuit_framework::data::example::Counterfactual;
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::{Dataset, Example, Key, Result, Setting, Split, Task, refuse, register};
use rand::SeedableRng;
use rand::seq::{IndexedRandom, index};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// What is said of whom.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct IndirectObject {
    /// Sentences up to the indirect object: {IO} is its name, {S} the subject's, which stands there
    /// twice.
    templates: Vec<String>,
    /// Names to draw from; those that are one token behind a space, and no other name's, are used.
    names: Vec<String>,
    /// How many sentences to draw for training, and as many for evaluation.
    count: usize,
}

impl Default for IndirectObject {
    fn default() -> Self {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Self {
            templates: owned(&[
                "the {IO} stands near the {S} for the {S} waits for the",
                "the {S} stands near the {IO} for the {S} waits for the",
                "the {IO} has vanished with the {S} for the {S} looks for the",
                "the {S} has vanished with the {IO} for the {S} looks for the",
                "the {IO} has returned to the {S} for the {S} stays beside the",
                "the {S} has returned to the {IO} for the {S} stays beside the",
            ]),
            names: owned(&[
                "man", "woman", "child", "teacher", "student", "doctor", "painter", "author",
                "farmer", "singer",
            ]),
            count: 128,
        }
    }
}

impl Task for IndirectObject {
    fn default_metric(&self) -> &str {
        "logit_diff"
    }

    fn load(&self, split: Split, setting: &Setting) -> Result<Box<dyn Dataset>> {
        let tokenizer = setting.tokenizer()?;
        let names = self.usable_names(tokenizer)?;
        // A stream a split, so that the test sentences don't depend on how many are trained on.
        let mut random = ChaCha8Rng::seed_from_u64(setting.seed);
        random.set_stream(split as u64);
        let draw = |number: usize| {
            let drawn = index::sample(&mut random, names.len(), 3);
            let [io, subject, other] = [0, 1, 2].map(|place| &names[drawn.index(place)]);
            let Some(template) = self.templates.choose(&mut random) else {
                refuse!("there are no templates");
            };
            self.example(tokenizer, template, [io, subject, other], number)
        };
        let examples: Vec<Example> = (0..self.count).map(draw).collect::<Result<_>>()?;
        Ok(Box::new(examples))
    }
}

/// A name with its token.
struct Name {
    text: String,
    token: u32,
}

impl IndirectObject {
    fn usable_names(&self, tokenizer: &Tokenizer) -> Result<Vec<Name>> {
        let mut usable = Vec::new();
        for text in &self.names {
            // Words that a tokenizer doesn't know may all be one and the same token to it.
            if let [token] = tokenizer.encode(&format!(" {text}"))?[..]
                && usable.iter().all(|name: &Name| name.token != token)
            {
                usable.push(Name { text: text.clone(), token });
            }
        }
        if usable.len() < 3 {
            refuse!(
                "{} of the names are a token of their own in this model; at least 3 must be: set \
                 task.names",
                usable.len()
            );
        }
        Ok(usable)
    }

    /// The sentence of an indirect object and a subject; its counterfactual has another second
    /// subject.
    fn example(
        &self,
        tokenizer: &Tokenizer,
        template: &str,
        [io, subject, other]: [&Name; 3],
        number: usize,
    ) -> Result<Example> {
        let Some((first, second)) = template.rsplit_once("{S}") else {
            refuse!("template `{template}`: there is no {{S}}");
        };
        let tokens = |second_subject: &Name| -> Result<Vec<u32>> {
            let first = first.replace("{IO}", &io.text).replace("{S}", &subject.text);
            let mut tokens: Vec<u32> = tokenizer.prefix().into_iter().collect();
            tokens.extend(tokenizer.encode(&format!("{first}{}{second}", second_subject.text))?);
            // The key token: it is predicted at the position before it.
            tokens.push(io.token);
            Ok(tokens)
        };
        let (tokens, corrupt) = (tokens(subject)?, tokens(other)?);
        Ok(Example {
            predicted: 1..tokens.len(),
            keys: vec![Key {
                position: tokens.len() - 1,
                correct: vec![io.token],
                wrong: vec![subject.token],
            }],
            counterfactual: Some(Counterfactual {
                key_positions: vec![corrupt.len() - 1],
                tokens: corrupt,
            }),
            tokens,
            origin: format!("indirect_object sentence {number}"),
            ..Example::default()
        })
    }
}

register!(dyn Task, IndirectObject, "indirect_object", "which of two names an indirect object has");

#[cfg(test)]
mod tests {
    use super::*;
    use circuit_framework::plugin::conformance::byte_tokenizer;

    #[test]
    fn the_second_subject_is_what_the_counterfactual_changes() {
        let tokenizer = byte_tokenizer().unwrap();
        let name = |text: &str, token| Name { text: text.to_owned(), token };
        let (io, subject, other) = (name("M", 1), name("J", 2), name("T", 3));
        let example = IndirectObject::default()
            .example(&tokenizer, "{IO} and {S} ran, {S} fell to", [&io, &subject, &other], 0)
            .unwrap();
        let text = |tokens: &[u32]| tokenizer.decode(&tokens[..tokens.len() - 1]).unwrap();
        assert_eq!(text(&example.tokens), "M and J ran, J fell to");
        assert_eq!(text(&example.counterfactual.unwrap().tokens), "M and J ran, T fell to");
        assert_eq!(example.keys[0], Key { position: 22, correct: vec![1], wrong: vec![2] });
    }

    #[test]
    fn too_few_names_of_one_token_are_refused() {
        let tokenizer = byte_tokenizer().unwrap();
        let setting =
            Setting { tokenizer: Some(&tokenizer), context: 64, seed: 0, counterfactuals: false };
        let error = IndirectObject::default().load(Split::Train, &setting).err().unwrap();
        assert!(error.to_string().starts_with("0 of the names"), "{error}");
    }
}
