//! Rows of published files of indirect objects: MIB's JSON Lines and EAP-IG's table.

use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::{Result, refuse};
use serde::Deserialize;

use super::{Change, marks};
use crate::prompt::{Prompt, Question};

/// A line of MIB's files; other fields are passed over.
#[derive(Deserialize)]
pub(super) struct Mib {
    prompt: String,
    metadata: Names,
    abc_counterfactual: Option<Other>,
    s2_io_flip_counterfactual: Option<Other>,
}

#[derive(Deserialize)]
struct Names {
    indirect_object: String,
    subject: String,
}

#[derive(Deserialize)]
struct Other {
    prompt: String,
}

impl Mib {
    pub(super) fn question(self, change: Change) -> Result<Question> {
        let Names { indirect_object: object, subject } = self.metadata;
        // Three other names have no right answer: the sentence's own stands where nothing reads it.
        let (column, other, answer) = match change {
            Change::Names => ("abc_counterfactual", self.abc_counterfactual, &object),
            Change::Flip => ("s2_io_flip_counterfactual", self.s2_io_flip_counterfactual, &subject),
        };
        let Some(other) = other else {
            refuse!("the row has no {column}; task.counterfactual chooses it");
        };
        Ok(Question {
            counterfactual: Prompt::new(&other.prompt, &format!(" {answer}")),
            prompt: Prompt::new(&self.prompt, &format!(" {object}")),
            wrong: format!(" {subject}"),
            marks: marks(&self.prompt, &object, &subject),
        })
    }
}

/// The columns of EAP-IG's table that count. The ids are those of the tokenizer it was made for.
#[derive(Deserialize)]
pub(super) struct EapIg {
    clean: String,
    /// The subject's second mention exchanged for a third name.
    corrupted: String,
    /// The same exchanged for the indirect object; not in every table.
    corrupted_hard: Option<String>,
    correct_idx: u32,
    incorrect_idx: u32,
}

impl EapIg {
    pub(super) fn question(self, change: Change, tokenizer: &Tokenizer) -> Result<Question> {
        let flipped = self.corrupted_hard.as_ref().and_then(|hard| exchanged(&self.clean, hard));
        let [subject, object] = match flipped {
            Some(names) => names.map(|name| format!(" {name}")),
            None => {
                [self.name(self.incorrect_idx, tokenizer)?, self.name(self.correct_idx, tokenizer)?]
            }
        };
        let (corrupted, answer) = match (change, self.corrupted_hard) {
            (Change::Names, _) => (self.corrupted, &object),
            (Change::Flip, Some(hard)) => (hard, &subject),
            (Change::Flip, None) => {
                refuse!("the row has no corrupted_hard; task.counterfactual chooses it")
            }
        };
        Ok(Question {
            counterfactual: Prompt::new(&corrupted, answer),
            prompt: Prompt::new(&self.clean, &object),
            marks: marks(&self.clean, &object, &subject),
            wrong: subject,
        })
    }

    fn name(&self, id: u32, tokenizer: &Tokenizer) -> Result<String> {
        let name = tokenizer.text(id).unwrap_or_default();
        if name.trim().is_empty() || !self.clean.contains(name.trim()) {
            refuse!(
                "token {id} is {name:?}, which is not in the sentence; the ids are another tokenizer's"
            );
        }
        Ok(format!(" {}", name.trim()))
    }
}

/// The first word that differs, in both texts.
fn exchanged<'a>(clean: &'a str, other: &'a str) -> Option<[&'a str; 2]> {
    let (own, other) = clean.split(' ').zip(other.split(' ')).find(|(own, other)| own != other)?;
    Some([own, other].map(|word| word.trim_matches(|c: char| !c.is_alphanumeric())))
}
