//! What `list settings` prints: every setting of an experiment with its default and what it does, in
//! words or as the page docs/settings.md.

use circuit_framework::plugin::description::{Allowed, Description};

use crate::flags::shown;
use crate::print::{self, say};

/// The page's first lines.
const INTRODUCTION: &str = "\
# Settings

Every setting of an experiment, as this program knows it:

```bash
circuit-tuning list settings --markdown > docs/settings.md
```

writes this page. An experiment file has the settings without a dot first and the others in tables,
`tuning.lr` as `lr` under `[tuning]`; on the command line each is `--set tuning.lr=1e-4`, and the common
ones have a flag of their own (`circuit-tuning tune --help`). A task, metric, selector or model
architecture has options beside its name, which `circuit-tuning list` shows: `--set
task.direction=disagreement`. A run folder's `config.toml` has them all, as they were in that run.
";

pub(super) fn print(settings: &[Description]) {
    say!("Settings, for experiment files and --set");
    for setting in settings {
        say!("  {} = {}", setting.name, shown(&setting.default));
        say!("      {}", setting.description);
        for Allowed { name, description } in &setting.values {
            match &description[..] {
                "" => say!("      {name}"),
                _ => say!("      {name}: {description}"),
            }
        }
    }
}

pub(super) fn print_page(settings: &[Description]) {
    print::text(INTRODUCTION);
    let mut section = None;
    for setting in settings {
        let of = setting.name.split_once('.').map_or("experiment", |(section, _)| section);
        if section != Some(of) {
            section = Some(of);
            say!(
                "\n## {of}\n\n| setting | type | default | what it does |\n| --- | --- | --- | --- |"
            );
        }
        say!(
            "| `{}` | {} | {} | {}{} |",
            setting.name,
            setting.kind,
            match &shown(&setting.default)[..] {
                "none" => "none".to_owned(),
                default => format!("`{default}`"),
            },
            // A bar would end the cell.
            setting.description.replace('|', "\\|"),
            values(setting).replace('|', "\\|"),
        );
    }
}

/// The allowed values as a further sentence.
fn values(setting: &Description) -> String {
    let value = |Allowed { name, description }: &Allowed| match description.trim_end_matches('.') {
        "" => format!("`{name}`"),
        description => format!("`{name}` ({description})"),
    };
    if setting.values.is_empty() {
        return String::new();
    }
    let which = if setting.kind == "array" { "Any" } else { "One" };
    let values: Vec<String> = setting.values.iter().map(value).collect();
    format!(" {which} of {}.", values.join(", "))
}
