//! `plugin`: a crate of one's own that every command knows: new, build, check.

use std::path::Path;

use anyhow::{Context, Result, bail};
use circuit_framework::attribution::{Ablation, Discovery};
use circuit_framework::model::Precision;
use circuit_framework::plugin::conformance;
use circuit_framework::plugin::registry::{self, Kind, Plugin, Registration};
use circuit_framework::run::experiment::{Experiment, ModelChoice};
use circuit_framework::{
    Architecture, AttributionMethod, Example, ParamSelector, PatchingMetric, Setting, Split, Task,
    files, inventory,
};
use circuit_models::Loaded;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::{Table, Value};

use crate::flags::{self, Flag, MODEL};
use crate::plugins;
use crate::print::say;

/// The flags of `check`.
const CHECK: &[&[Flag]] = &[MODEL];

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

const TEMPLATES: [Template; 5] = [
    template!("task", "indirect_object", ["Cargo.toml", "src/lib.rs"]),
    template!("metric", "top_k_margin", ["Cargo.toml", "src/lib.rs"]),
    template!("method", "node_sums", ["Cargo.toml", "src/lib.rs"]),
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
        )
        .arg(
            Arg::new("program")
                .long("program")
                .action(ArgAction::SetTrue)
                .help("Make it a program too: every command, with this crate's plugins built in"),
        );
    let check = Command::new("check")
        .about("Tell whether a plugin fits this program and keeps to what its kind promises")
        .after_help(
            "A task is checked with the model's tokenizer, a model plugin on the model's config.json, \
             and a metric that is made for one task on that task's examples.",
        )
        .arg(path("The plugin file"));
    Command::new("plugin")
        .about(
            "Tasks, metrics, methods, selectors and models in crates of your own; see docs/plugins.md",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            new,
            Command::new("build")
                .about("Compile a plugin crate against this very program")
                .arg(path("The crate's folder")),
            flags::add(check, CHECK),
        ])
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let Some((command, matches)) = matches.subcommand() else {
        return Ok(());
    };
    let path = matches.get_one::<String>("path").map_or(Path::new(""), Path::new);
    match command {
        "new" => {
            let kind = matches.get_one::<String>("kind").map_or("", String::as_str);
            write_new(path, kind, matches.get_flag("program"))
        }
        "build" => {
            say!("{}", plugins::compile(path)?.display());
            Ok(())
        }
        _ => check(path, matches),
    }
}

/// The root of the repository that the program was built from: a crate of one's own depends on it.
const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// Writes a template's files under another name.
fn write_new(folder: &Path, kind: &str, program: bool) -> Result<()> {
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(is_name) {
        bail!("`{name}` is no name for a crate; write lower-case letters, digits, - and _");
    }
    if folder.exists() {
        bail!("{}: exists already", folder.display());
    }
    let framework = Path::new(REPOSITORY).join("framework");
    let registered = name.replace('-', "_");
    for template in TEMPLATES.iter().filter(|template| template.kind == kind) {
        for (file, content) in template.files {
            let mut content = content
                .replace(&format!("template-{kind}"), name)
                .replace("../../framework", &framework.to_string_lossy())
                .replace(template.registers, &registered);
            if program && *file == "Cargo.toml" {
                content = with_program(&content);
            }
            write(&folder.join(file), &content)?;
        }
    }
    if program {
        write(&folder.join("src/main.rs"), &PROGRAM.replace("NAME", &registered))?;
        say!("`cargo run --` in {} is circuit-tuning with {kind} `{registered}`", folder.display());
    } else {
        say!("{kind} `{registered}` is in {}", folder.display());
    }
    Ok(())
}

/// A program of one's own.
const PROGRAM: &str = "\
//! circuit-tuning with this crate's plugins: every command knows them.

use std::process::ExitCode;

// Linked for what it registers.
use NAME as _;

fn main() -> ExitCode {
    circuit_tuning::main()
}
";

/// A plugin's manifest, with what its program needs: the command line, and the repository's own profiles,
/// since without optimisation a step would take minutes.
fn with_program(manifest: &str) -> String {
    const WORKSPACE: &str = include_str!("../../Cargo.toml");
    let profiles = WORKSPACE.find("[profile.").map_or("", |start| &WORKSPACE[start..]);
    let program = format!("[dependencies]\ncircuit-tuning = {{ path = {REPOSITORY:?} }}\n");
    manifest.replacen("[dependencies]\n", &program, 1) + "\n" + profiles
}

fn write(path: &Path, content: &str) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    Ok(files::write_atomically(path, content.as_bytes())?)
}

fn check(path: &Path, matches: &ArgMatches) -> Result<()> {
    say!("{}", plugins::describe(path)?);
    let mut settings = Table::new();
    flags::apply(matches, CHECK, &mut settings)?;
    let mut failed = 0;
    for registration in plugins::load(path)? {
        let outcome = conforms(&registration, &settings);
        let said = match &outcome {
            Ok(said) => said.clone(),
            Err(error) => format!("does not conform: {error:#}"),
        };
        say!("{} `{}`: {said}", registration.kind, registration.name);
        failed += usize::from(outcome.is_err());
    }
    if failed > 0 {
        bail!("{}: {failed} of its plugins do not conform", path.display());
    }
    Ok(())
}

/// Runs the conformance suite of the registration's kind, with its options and the model of `settings`.
/// Says what was done.
fn conforms(registration: &Registration, settings: &Table) -> Result<String> {
    let name = registration.name;
    let seed = settings.get("seed").and_then(Value::as_integer).unwrap_or(0) as u64;
    // Of metrics and selectors on the built-in model, whatever model another of the plugins needs.
    let embedded = || load(model(&Table::new())?);
    match registration.kind {
        <dyn Task as Kind>::NAME => {
            let task = build::<dyn Task>(name, settings, "task")?;
            let loaded = load(model(settings)?)?;
            conformance::task(&*task, &setting(&loaded, seed), loaded.model.vocabulary())?;
        }
        <dyn PatchingMetric as Kind>::NAME => {
            let metric = build::<dyn PatchingMetric>(name, settings, "metric")?;
            let (task, loaded) = match metric.task() {
                Some(task) => (build::<dyn Task>(task, settings, "task")?, load(model(settings)?)?),
                None => (Experiment::default().plugins()?.task, embedded()?),
            };
            let examples = examples(&*task, &setting(&loaded, seed))?;
            conformance::metric(&*metric, &*loaded.model, &examples)?;
        }
        <dyn AttributionMethod as Kind>::NAME => {
            let method = build::<dyn AttributionMethod>(name, settings, "method")?;
            let (plugins, loaded) = (Experiment::default().plugins()?, embedded()?);
            let examples = examples(&*plugins.task, &setting(&loaded, seed))?;
            let discovery = Discovery { ablation: Ablation::Corrupt, ..Discovery::default() };
            let (model, metric) = (&*loaded.model, &*plugins.metric);
            conformance::attribution_method(&*method, model, metric, &examples, &discovery)?;
        }
        <dyn ParamSelector as Kind>::NAME => {
            let selector = build::<dyn ParamSelector>(name, settings, "selector")?;
            conformance::selector(&*selector, &*embedded()?.model, seed)?;
        }
        <dyn Architecture as Kind>::NAME => architecture_conforms(name, model(settings)?)?,
        // Of these there is nothing that all keep to.
        _ => return Ok("registered".to_owned()),
    }
    Ok("conforms".to_owned())
}

/// Checks an architecture on the config.json of a model, its weights drawn.
fn architecture_conforms(name: &str, mut choice: ModelChoice) -> Result<()> {
    let seed = *choice.random_init.get_or_insert(0);
    let architecture = registry::find::<dyn Architecture>(name)?.build(&choice.options)?;
    let path = choice.path.display().to_string();
    let Loaded { model, .. } = load(choice)?;
    let config = model.config();
    if config["model_type"] != name {
        bail!(
            "{path} has model_type {}; give --model a folder whose config.json has \"{name}\"",
            config["model_type"]
        );
    }
    Ok(conformance::architecture(&*architecture, config, seed)?)
}

/// A plugin with the options in a section of `settings`.
fn build<T: Kind + ?Sized>(name: &str, settings: &Table, section: &str) -> Result<Box<T>>
where
    Plugin<T>: inventory::Collect,
{
    let options = settings.get(section).and_then(Value::as_table);
    Ok(registry::find::<T>(name)?.build(options.unwrap_or(&Table::new()))?)
}

/// The model of `settings`, in float64.
fn model(settings: &Table) -> Result<ModelChoice> {
    let section = settings.get("model").map(|model| ("model".to_owned(), model.clone()));
    let choice = flags::from_table(Table::from_iter(section), "settings")?.model;
    Ok(ModelChoice { dtype: Precision::Float64, ..choice })
}

fn load(choice: ModelChoice) -> Result<Loaded> {
    Ok(circuit_models::load(&choice)?)
}

fn setting(loaded: &Loaded, seed: u64) -> Setting<'_> {
    Setting {
        tokenizer: loaded.tokenizer.as_ref(),
        context: loaded.model.context(),
        seed,
        counterfactuals: false,
    }
}

/// A few examples of a task, of unequal lengths.
fn examples(task: &dyn Task, setting: &Setting) -> Result<Vec<Example>> {
    let mut examples = task.load(Split::Train, setting)?.examples().to_vec();
    examples.truncate(20);
    examples.sort_by_key(|example| example.tokens.len());
    examples.dedup_by_key(|example| example.tokens.len());
    Ok(examples)
}
