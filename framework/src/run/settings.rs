//! The settings of an experiment.

use schemars::schema_for;

use crate::plugin::description::{Description, collect};
use crate::run::experiment::Experiment;

/// Every setting of an experiment: those that stand in no table, then table by table. A plugin's table
/// is its `name` alone: its options are the plugin's own.
pub fn of_experiments() -> Vec<Description> {
    let schema = schema_for!(Experiment).to_value();
    let defaults = serde_json::to_value(Experiment::default()).unwrap_or_default();
    let mut all = Vec::new();
    collect(&schema, &schema, "", &defaults, &mut all);
    all.sort_by_key(|setting| setting.name.contains('.'));
    all
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn setting(name: &str) -> Description {
        of_experiments().into_iter().find(|setting| setting.name == name).unwrap()
    }

    #[test]
    fn settings_carry_their_doc_comment_their_values_and_their_default() {
        let positions = setting("discovery.positions");
        assert_eq!((&positions.default, &positions.kind[..]), (&"key".into(), "string"));
        let names: Vec<&str> = positions.values.iter().map(|value| &value.name[..]).collect();
        assert_eq!(names, ["key", "all"]);
        assert_eq!(positions.values[0].description, "Where a key token is predicted.");
        assert_eq!(setting("discovery.method").default, "eap");
        let steps = setting("tuning.steps");
        assert_eq!((&steps.default, &steps.kind[..]), (&Value::Null, "integer"));
        assert!(steps.description.starts_with("Update steps"), "{}", steps.description);
        assert_eq!(setting("tuning.lr").default, 1e-3);
    }

    #[test]
    fn structs_in_structs_are_listed_by_their_fields() {
        assert_eq!(setting("tuning.top_n_schedule.shape").values.len(), 2);
        let task = setting("task.name");
        assert_eq!(task.default, "agreement");
        assert!(task.description.contains("task"), "{}", task.description);
    }

    #[test]
    fn every_setting_has_a_doc_comment() {
        let all = of_experiments();
        assert!(all.len() > 50, "{}", all.len());
        for setting in all {
            assert!(!setting.description.is_empty(), "{} has none", setting.name);
            assert!(
                setting.description.ends_with('.'),
                "{}: {}",
                setting.name,
                setting.description
            );
        }
    }
}
