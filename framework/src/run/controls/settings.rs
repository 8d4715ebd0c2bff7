//! The settings of controls: the table `[controls]`.

use serde::{Deserialize, Deserializer, Serialize};

use crate::run::experiment::Choice;
use crate::{Result, refuse};

/// Which controls are tuned, and with which seeds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Controls {
    /// The controls, each a selector's name or a table of its `name` and options: `random`,
    /// `random_parameters` and `complement` tune at every step as many parameters as the circuit does, and
    /// `static` at every step what the circuit tunes at its first.
    #[serde(deserialize_with = "names_or_tables")]
    pub kinds: Vec<Choice>,
    /// The seeds with which the circuit and every control are tuned: how many, counted up from the
    /// experiment's own, or a list of those beside it. Data order and generated data come from them.
    #[schemars(with = "Vec<u64>")]
    pub seeds: Seeds,
}

/// The most seeds: each takes as long as a run.
const MOST_SEEDS: u64 = 10_000;

/// Seeds beside the experiment's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number of seeds, or a list of them")]
pub enum Seeds {
    /// So many, the experiment's own among them, counted up from that.
    Count(u64),
    /// These, and the experiment's own.
    Listed(Vec<u64>),
}

impl Default for Seeds {
    fn default() -> Self {
        Self::Count(1)
    }
}

impl Seeds {
    /// Each seed once, the experiment's own first.
    pub fn beside(&self, own: u64) -> Vec<u64> {
        let mut seeds = vec![own];
        let others: Vec<u64> = match self {
            Self::Count(count) => (1..*count).map(|number| own.wrapping_add(number)).collect(),
            Self::Listed(seeds) => seeds.clone(),
        };
        for seed in others {
            if !seeds.contains(&seed) {
                seeds.push(seed);
            }
        }
        seeds
    }
}

impl Controls {
    /// Refuses settings that can't be followed.
    ///
    /// # Errors
    /// Naming the setting and what would be right.
    pub(in crate::run) fn check(&self) -> Result<()> {
        if self.seeds == Seeds::Count(0) {
            refuse!("controls.seeds is 0; give at least 1");
        }
        let count = match &self.seeds {
            Seeds::Count(count) => *count,
            Seeds::Listed(seeds) => seeds.len() as u64,
        };
        if count > MOST_SEEDS {
            refuse!("controls.seeds are {count}, each tuned for itself; give at most {MOST_SEEDS}");
        }
        Ok(())
    }
}

/// Choices, of which one without options may be its name alone, and a single one no list.
fn names_or_tables<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Choice>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a selector's name, or a table of its name and options")]
    enum Kind {
        Name(String),
        Table(Choice),
    }
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "a selector's name, or a table of its name and options, or a list of them"
    )]
    enum Kinds {
        One(Kind),
        Several(Vec<Kind>),
    }
    let kinds = match Kinds::deserialize(deserializer)? {
        Kinds::One(kind) => vec![kind],
        Kinds::Several(kinds) => kinds,
    };
    let choice = |kind| match kind {
        Kind::Name(name) => Choice::named(&name),
        Kind::Table(choice) => choice,
    };
    Ok(kinds.into_iter().map(choice).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Controls, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    #[test]
    fn seeds_are_counted_or_listed_and_the_own_one_is_among_them() {
        let seeds = |text: &str, own| read(text).unwrap().seeds.beside(own);
        assert_eq!(seeds("", 4), [4]);
        assert_eq!(seeds("seeds = 3", 4), [4, 5, 6]);
        assert_eq!(seeds("seeds = [0, 1, 2]", 1), [1, 0, 2]);
        assert_eq!(seeds("seeds = [0, 0]", 7), [7, 0]);
        for refused in ["seeds = 0", "seeds = 1000000000"] {
            assert!(read(refused).unwrap().check().is_err());
        }
        assert!(read("seeds = 'two'").unwrap_err().contains("a number of seeds, or a list"));
    }

    #[test]
    fn kinds_are_names_or_tables_and_written_as_they_are_read() {
        let controls = read("kinds = ['random', { name = 'lora', rank = 4 }]").unwrap();
        assert_eq!(controls.kinds[0], Choice::named("random"));
        assert_eq!(controls.kinds[1].options["rank"], 4.into());
        assert_eq!(read(&toml::to_string(&controls).unwrap()), Ok(controls));
        assert_eq!(read("kinds = 'random'").unwrap().kinds, [Choice::named("random")]);
        assert!(read("kinds = [3]").unwrap_err().contains("a selector's name"));
    }
}
