//! How settings are given and found: flags, `--set`, what `list settings` and `--help` show.

use circuit_framework::run::experiment::Experiment;
use circuit_framework::run::settings;

use crate::command_line::{json, refuses, succeeds, words};
use crate::support::repository;

#[test]
fn the_old_key_report_is_refused_by_its_new_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("old.toml"), "report = [{ name = \"accuracy\" }]").unwrap();
    refuses(folder.path(), &["run", "old.toml"], &["old.toml", "`report`", "`measure`"]);
}

#[test]
fn naming_an_experiment_leaves_its_settings_alone() {
    let folder = tempfile::tempdir().unwrap();
    let set = "run embedded --set name=mine --set tuning.steps=1 --set task.test_examples=16";
    succeeds(folder.path(), &words(&format!("{set} --out out")));
    let config = std::fs::read_to_string(folder.path().join("out/config.toml")).unwrap();
    let experiment: Experiment = toml::from_str(&config).unwrap();
    assert_eq!((&experiment.name[..], experiment.seed), ("mine", 2));
    assert_eq!(experiment.task.options["direction"], "disagreement".into());
}

#[test]
fn a_path_that_looks_like_a_number_is_a_path() {
    let folder = tempfile::tempdir().unwrap();
    let line = "{\"tokens\": [1, 3, 119], \"key_positions\": [2], \"wrong\": [4]}\n";
    std::fs::write(folder.path().join("123"), line).unwrap();
    let eval = |rest: &str| format!("eval --task tokens --json {rest}");
    let by_flag = succeeds(folder.path(), &words(&eval("--data 123")));
    assert_eq!(by_flag, succeeds(folder.path(), &words(&eval("--set task.data='123'"))));
    for setting in ["task.data", "model.path"] {
        let line = eval(&format!("--set {setting}=123"));
        let (_, name) = setting.split_once('.').unwrap();
        refuses(folder.path(), &words(&line), &["`123`", name, "quotes"]);
    }
}

#[test]
fn nodes_are_given_as_names_with_commas() {
    let folder = tempfile::tempdir().unwrap();
    let discover = "discover --set task.train_examples=8 --top-n 1 --circuit c.json --nodes";
    succeeds(folder.path(), &words(&format!("{discover} embed,logits")));
    let circuit = json(&folder.path().join("c.json"));
    let [edge] = &circuit["edges"].as_array().unwrap()[..] else { panic!("{circuit}") };
    assert_eq!((&edge["writer"], &edge["reader"]), (&"embed".into(), &"logits".into()));
    refuses(folder.path(), &words(&format!("{discover} head,mpl")), &["mpl", "mlp"]);
}

#[test]
fn the_page_of_settings_is_what_the_program_prints() {
    let folder = tempfile::tempdir().unwrap();
    let printed = succeeds(folder.path(), &["list", "settings", "--markdown"]);
    let page = std::fs::read_to_string(repository("docs/settings.md")).unwrap();
    assert!(
        page == printed,
        "`cargo run -- list settings --markdown > docs/settings.md` makes the page anew"
    );
    let listed = succeeds(folder.path(), &["list", "settings"]);
    for setting in settings::of_experiments() {
        for shown in [&page, &listed] {
            assert!(shown.contains(&setting.name), "{}", setting.name);
        }
    }
    refuses(folder.path(), &["list", "tasks", "--markdown"], &["list settings"]);
}

/// Flags that name files or switch something on: there is no default to show.
const NO_SETTINGS: &[&str] = &[
    "--plugin",
    "--allow-plugins",
    "--out",
    "--json",
    "--force",
    "--scores",
    "--circuit <OUT",
    "--circuit <C.json",
    "--knockout",
    "--minimality",
    "--no-prune",
    "--resume",
    "--shard",
    "--plot",
    "--drawing",
    "--table",
    "--per-example",
    "--markdown",
    "--strongest-only",
    "--quiet",
    "--no-shuffle",
    "--text",
    "--tokens",
    "--landscape",
    "--all-nodes",
    "--plan",
];

#[test]
fn help_shows_the_default_of_every_flag_that_is_a_setting() {
    let folder = tempfile::tempdir().unwrap();
    for command in [
        "run",
        "discover",
        "tune",
        "eval",
        "faithfulness",
        "methods",
        "bench",
        "logits",
        "tokens",
        "draw",
    ] {
        let help = succeeds(folder.path(), &[command, "--help"]);
        let flags = help.lines().filter(|line| line.trim_start().starts_with("--"));
        for line in flags.filter(|line| !line.contains("KEY=VALUE")) {
            let own = NO_SETTINGS.iter().any(|flag| line.contains(flag));
            assert!(own || line.contains("[default: "), "{command}: {line}");
        }
    }
    let tune = succeeds(folder.path(), &["tune", "--help"]);
    assert!(tune.contains("[default: 0.001]") && tune.contains("sgd, adam, adamw"), "{tune}");
    // bench times another optimizer by itself.
    let bench = succeeds(folder.path(), &["bench", "--help"]);
    assert!(bench.contains("[default: sgd]") && bench.contains("[default: 0.0001]"), "{bench}");
}
