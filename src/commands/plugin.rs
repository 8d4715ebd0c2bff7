//! `plugin`: a crate of one's own that every command knows: new, build, check.

use std::path::Path;

use anyhow::{Context, Result, bail};
use circuit_framework::conformance;
use circuit_framework::experiment::{Experiment, ModelChoice};
use circuit_framework::model::Precision;
use circuit_framework::registry::{self, Kind, Plugin, Registration};
use circuit_framework::{
    Architecture, Example, ParamSelector, PatchingMetric, Setting, Split, Task, files, inventory,
};
use circuit_models::Loaded;
use clap::{Arg, ArgMatches, Command};
use toml::Table;

use crate::{flags, plugins};

/// A template crate of plugins/: its kind, the name it registers, and its files.
struct Template {
    kind: &'static str,
    registers: &'static str,
    files: &'static [(&'static str, &'static str)],
}

macro_rules! template {
    ($kind:literal, $registers:literal, [$($file:literal),*]) => {
        Template {
            kind: $kind,
            registers: $registers,
            files: &[$((
                $file,
                include_str!(concat!("../../plugins/template-", $kind, "/", $file)),
            )),*],
        }
    };
}

const TEMPLATES: [Template; 4] = [
    template!("task", "indirect_object", ["Cargo.toml", "src/lib.rs"]),
    template!("metric", "top_k_margin", ["Cargo.toml", "src/lib.rs"]),
    template!("selector", "largest_rows", ["Cargo.toml", "src/lib.rs"]),
    template!("model", "attention_only", ["Cargo.toml", "src/lib.rs", "config.json"]),
];

pub(crate) fn command() -> Command {
    let path = |help: &'static str| Arg::new("path").value_name("PATH").required(true).help(help);
    let new = Command::new("new")
        .about("Write a plugin crate to start from: a whole, working one")
        .arg(
            Arg::new("path")
                .value_name("NAME")
                .required(true)
                .help("Its folder, the last part its name"),
        )
        .arg(
            Arg::new("kind")
                .long("kind")
                .required(true)
                .value_parser(TEMPLATES.map(|template| template.kind))
                .help("What it registers"),
        );
    let check = Command::new("check")
        .about("Tell whether a plugin fits this program and keeps to what its kind promises")
        .arg(path("The plugin file"))
        .arg(Arg::new("model").long("model").value_name("DIR|FILE.gguf").default_value("embedded").help(
            "What a task's tokenizer is taken from; for a model plugin, the folder with its config.json",
        ));
    Command::new("plugin")
        .about("Tasks, metrics, selectors and models in crates of your own; see docs/plugins.md")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            new,
            Command::new("build")
                .about("Compile a plugin crate against this very program")
                .arg(path("The crate's folder")),
            flags::add(check, &[]),
        ])
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let Some((command, matches)) = matches.subcommand() else {
        return Ok(());
    };
    let path = matches.get_one::<String>("path").map_or(Path::new(""), Path::new);
    match command {
        "new" => write_new(path, matches.get_one::<String>("kind").map_or("", String::as_str)),
        "build" => {
            println!("{}", plugins::compile(path)?.display());
            Ok(())
        }
        _ => check(path, matches),
    }
}

/// Writes a template's files under another name.
fn write_new(folder: &Path, kind: &str) -> Result<()> {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(is_name) {
        bail!("`{name}` is no name for a crate; write lower-case letters, digits, - and _");
    }
    if folder.exists() {
        bail!("{}: exists already", folder.display());
    }
    let framework = Path::new(env!("CARGO_MANIFEST_DIR")).join("framework");
    let registered = name.replace('-', "_");
    for template in TEMPLATES.iter().filter(|template| template.kind == kind) {
        for (file, content) in template.files {
            let content = content
                .replace(&format!("template-{kind}"), name)
                .replace("../../framework", &framework.to_string_lossy())
                .replace(template.registers, &registered);
            let path = folder.join(file);
            let parent = path.parent().unwrap_or(folder);
            std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
            files::write_atomically(&path, content.as_bytes())?;
        }
    }
    println!("{kind} `{registered}` is in {}", folder.display());
    Ok(())
}

fn check(path: &Path, matches: &ArgMatches) -> Result<()> {
    println!("{}", plugins::describe(path)?);
    let mut table = Table::new();
    flags::apply(matches, &[], &mut table)?;
    let model = matches.get_one::<String>("model").map_or("embedded", String::as_str);
    let mut failed = 0;
    for registration in plugins::load(path)? {
        let outcome = conforms(&registration, Path::new(model), &table);
        let said = match &outcome {
            Ok(said) => said.clone(),
            Err(error) => format!("does not conform: {error:#}"),
        };
        println!("{} `{}`: {said}", registration.kind, registration.name);
        failed += usize::from(outcome.is_err());
    }
    if failed > 0 {
        bail!("{}: {failed} of its plugins do not conform", path.display());
    }
    Ok(())
}

/// Runs the conformance suite of the registration's kind; `settings` may have a table of options for
/// it. Says what was done.
fn conforms(registration: &Registration, model: &Path, settings: &Table) -> Result<String> {
    let name = registration.name;
    let embedded = || load(Path::new("embedded"), None, &Table::new());
    match registration.kind {
        <dyn Task as Kind>::NAME => {
            let task = build::<dyn Task>(name, settings, "task")?;
            let Loaded { model, tokenizer } = load(model, None, &Table::new())?;
            let setting =
                Setting { tokenizer: tokenizer.as_ref(), context: model.context(), seed: 0 };
            conformance::task(&*task, &setting, model.vocabulary())?;
        }
        <dyn PatchingMetric as Kind>::NAME => {
            let metric = build::<dyn PatchingMetric>(name, settings, "metric")?;
            let loaded = embedded()?;
            conformance::metric(&*metric, &*loaded.model, &sentences(&loaded)?)?;
        }
        <dyn ParamSelector as Kind>::NAME => {
            let selector = build::<dyn ParamSelector>(name, settings, "selector")?;
            conformance::selector(&*selector, &*embedded()?.model, 0)?;
        }
        <dyn Architecture as Kind>::NAME => {
            let loaded = load(model, Some(0), settings)
                .context("give --model the folder with its config.json")?;
            conformance::model(&*loaded.model, 0)?;
        }
        // Of these there is nothing that all keep to.
        _ => return Ok("registered".to_owned()),
    }
    Ok("conforms".to_owned())
}

fn build<T: Kind + ?Sized>(name: &str, settings: &Table, section: &str) -> Result<Box<T>>
where
    Plugin<T>: inventory::Collect,
{
    let options = settings.get(section).and_then(|options| options.as_table());
    Ok(registry::find::<T>(name)?.build(options.unwrap_or(&Table::new()))?)
}

/// A model in float64, its architecture's options those of `settings`.
fn load(path: &Path, random_init: Option<u64>, settings: &Table) -> Result<Loaded> {
    let options = settings.get("model").and_then(|options| options.as_table().cloned());
    Ok(circuit_models::load(&ModelChoice {
        path: path.to_path_buf(),
        random_init,
        dtype: Precision::Float64,
        options: options.unwrap_or_default(),
        ..ModelChoice::default()
    })?)
}

/// A few examples of the default task, of unequal lengths.
fn sentences(loaded: &Loaded) -> Result<Vec<Example>> {
    let task = Experiment::default().plugins()?.task;
    let tokenizer = loaded.tokenizer.as_ref();
    let setting = Setting { tokenizer, context: loaded.model.context(), seed: 0 };
    let mut examples = task.load(Split::Train, &setting)?.examples().to_vec();
    examples.truncate(20);
    examples.sort_by_key(|example| example.tokens.len());
    examples.dedup_by_key(|example| example.tokens.len());
    Ok(examples)
}
