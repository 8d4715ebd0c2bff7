//! Contexthub's files: problems in everyday words, each with the reasoning that answers it.

use std::collections::BTreeMap;
use std::path::Path;

use circuit_framework::{Error, Result, files, refuse};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Logic, template};
use crate::instruction::Item;
use crate::rows::Sieve;

/// Which way is reasoned.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Deductive,
    Abductive,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Deductive => "deductive",
            Self::Abductive => "abductive",
        }
    }

    fn instruction(self) -> &'static str {
        match self {
            Self::Deductive => {
                "Below is a deductive reasoning problem. Work out step by step what follows from \
                 what is given, and whether the statement asked about is True, False, or cannot be \
                 decided (N/A)."
            }
            Self::Abductive => {
                "Below is an abductive reasoning problem. Work backwards step by step from what was \
                 observed to what must have caused it, and whether the statement asked about is \
                 True, False, or cannot be decided (N/A)."
            }
        }
    }
}

/// A truth value, as it is written in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) enum Label {
    True,
    False,
    #[serde(rename = "N/A")]
    Unknown,
}

impl Label {
    pub(super) const ALL: [Label; 3] = [Label::True, Label::False, Label::Unknown];

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "N/A",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|label| label.text().eq_ignore_ascii_case(text.trim()))
    }

    fn of(value: &Value) -> Result<Self> {
        let label = match value {
            Value::Bool(true) => Some(Self::True),
            Value::Bool(false) => Some(Self::False),
            Value::String(text) => Self::parse(text),
            _ => None,
        };
        label.ok_or_else(|| {
            Error::input(format!("the answer is {value}; it must be true, false or \"N/A\""))
        })
    }

    /// What it is held against: the opposite, or True where nothing can be decided.
    pub(super) fn wrong(self) -> Self {
        match self {
            Self::True => Self::False,
            Self::False | Self::Unknown => Self::True,
        }
    }
}

/// A problem in the words of one subcategory.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) item: Item,
    pub(super) level: usize,
    pub(super) kind: Kind,
    pub(super) category: String,
    pub(super) answer: Label,
}

/// Propositions by variable (`<aaa>`), the text (`<nl>`) and what else is said of a problem.
pub(super) type Words = serde_json::Map<String, Value>;

/// An entry of `*_logic.json`: the abstract problem, then its categories.
#[derive(Deserialize)]
pub(super) struct Entry {
    pub(super) question: Vec<Words>,
    answer: Value,
    #[serde(flatten)]
    pub(super) categories: serde_json::Map<String, Value>,
}

/// An entry of `*_logic_cot.json`.
#[derive(Deserialize)]
struct Template {
    descriptions: String,
    inferences: String,
}

/// The abstract reasoning by the abstract problem.
pub(super) type Templates = BTreeMap<String, String>;

impl Logic {
    /// All problems of the folder that were asked for, in the order of the files.
    pub(super) fn problems(&self, folder: &Path, sieve: &mut Sieve) -> Result<Vec<Problem>> {
        let (mut problems, mut found) = (Vec::new(), false);
        let levels = if self.levels.is_empty() { &[1, 2, 3, 4] } else { &self.levels[..] };
        for &level in levels {
            for &kind in &self.kinds {
                let name = format!("data_level{level}/{}_logic", kind.name());
                let file = |suffix: &str| folder.join(format!("{name}{suffix}.json"));
                let present = [file("_traincot"), file("")].into_iter().find(|path| path.exists());
                let Some(path) = present else {
                    if !self.levels.is_empty() {
                        refuse!(
                            "{}: there is no such file; leave the level out",
                            file("").display()
                        );
                    }
                    continue;
                };
                found = true;
                let templates = match file("_cot") {
                    path if path.exists() => read_templates(&path)?,
                    _ => Templates::new(),
                };
                for (index, entry) in files::read_json::<Vec<Value>>(&path)?.into_iter().enumerate()
                {
                    let origin = format!("{}: problem {}", path.display(), index + 1);
                    let entry = serde_json::from_value::<Entry>(entry)
                        .map_err(|error| Error::input(error.to_string()));
                    if let Some(entry) = sieve.keep(&origin, entry)? {
                        self.add(&mut problems, &entry, &templates, (level, kind), &origin, sieve)?;
                    }
                }
            }
        }
        if !found {
            refuse!(
                "{}: there is no Contexthub file such as data_level1/{}_logic.json in it; give the folder that \
                 holds data_level1 to data_level4",
                folder.display(),
                self.kinds.first().map_or("deductive", |kind| kind.name())
            );
        }
        Ok(problems)
    }

    fn add(
        &self,
        problems: &mut Vec<Problem>,
        entry: &Entry,
        templates: &Templates,
        (level, kind): (usize, Kind),
        origin: &str,
        sieve: &mut Sieve,
    ) -> Result<()> {
        let Some(answer) = sieve.keep(origin, Label::of(&entry.answer))? else {
            return Ok(());
        };
        let template = (entry.question.first())
            .and_then(|question| question.get("<nl>"))
            .and_then(|text| templates.get(text.as_str()?));
        for (category, subcategories) in &entry.categories {
            if self.category.as_ref().is_some_and(|wanted| wanted != category) {
                continue;
            }
            for (name, words) in subcategories.as_object().into_iter().flatten() {
                let origin = format!("{origin}, {category}, {name}");
                let problem =
                    Problem::new(words, answer, template, category, (level, kind), &origin);
                problems.extend(sieve.keep(&origin, problem)?);
            }
        }
        Ok(())
    }
}

pub(super) fn read_templates(path: &Path) -> Result<Templates> {
    let templates: Vec<Template> = files::read_json(path)?;
    Ok(templates.into_iter().map(|t| (t.descriptions, t.inferences)).collect())
}

impl Problem {
    fn new(
        words: &Value,
        answer: Label,
        template: Option<&String>,
        category: &str,
        (level, kind): (usize, Kind),
        origin: &str,
    ) -> Result<Self> {
        let Some(words) = words.as_object() else {
            refuse!("no object with `<nl>` and propositions");
        };
        let Some(text) = words.get("<nl>").and_then(Value::as_str) else {
            refuse!("there is no `<nl>`, the problem's text");
        };
        let reasoning = match (words.get("gold_cot").and_then(Value::as_str), template) {
            (Some(published), _) => published.to_owned(),
            (None, Some(template)) => template::fill(template, words, category == "abstract")?,
            (None, None) => refuse!("there is neither a `gold_cot` nor a template for it"),
        };
        let mark = format!("<answer>{}</answer>", answer.text());
        let Some(at) = reasoning.rfind(&mark) else {
            refuse!("the reasoning doesn't end in {mark}, the problem's answer");
        };
        let start = at + "<answer>".len();
        Ok(Self {
            item: Item {
                origin: origin.to_owned(),
                question: format!(
                    "{}\n\n{}\n\nEnd with the answer in the form <answer>True|False|N/A</answer>.",
                    kind.instruction(),
                    text.trim()
                ),
                key: start..start + answer.text().len(),
                answer: reasoning,
                wrong: Some(answer.wrong().text().to_owned()),
            },
            level,
            kind,
            category: category.to_owned(),
            answer,
        })
    }
}
