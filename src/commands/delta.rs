//! `delta`: the rows that a run changed as a file of their own, put into models, taken out of them, and reckoned
//! with.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use circuit_framework::Delta;
use circuit_framework::delta::Extent;
use circuit_framework::graph::circuit::Circuit;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;

use super::{json_flag, output, path, show};
use crate::experiments;
use crate::flags::{self, Flag, MODEL};
use crate::outputs::{self, Outputs};
use crate::print::say;

const FLAGS: &[&[Flag]] = &[MODEL];

pub(crate) fn command() -> Command {
    let file = || output("out", "OUT.safetensors", "Write the delta here").required(true);
    let folder = || output("out", "DIR", "Save the model to this new folder").required(true);
    let delta = |name: &'static str, about: &'static str| Command::new(name).about(about);
    Command::new("delta")
        .about("Keep what a run changed as a file of its own; apply, revert and add such files")
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .arg(Arg::new("run").value_name("RUN").required(true).help("A finished run's folder"))
        .arg(file())
        .arg(json_flag())
        .subcommands([
            flags::add(delta("apply", "Put a delta into the model that it is of"), FLAGS)
                .arg(one())
                .arg(folder())
                .arg(json_flag()),
            flags::add(delta("revert", "Take a delta out of a model that has it"), FLAGS)
                .arg(one())
                .arg(folder())
                .arg(json_flag()),
            flags::add(delta("restrict", "Keep the rows that a circuit's nodes own"), FLAGS)
                .arg(one())
                .arg(output("circuit", "C.json", "The circuit").required(true))
                .arg(file())
                .arg(json_flag()),
            delta("negate", "Change as much the other way").arg(one()).arg(file()).arg(json_flag()),
            delta("scale", "Change so many times as much")
                .arg(one())
                .arg(
                    Arg::new("by")
                        .long("by")
                        .value_name("X")
                        .required(true)
                        .allow_negative_numbers(true)
                        .value_parser(clap::value_parser!(f64))
                        .help("The factor: 0 changes nothing, 1 as much as before"),
                )
                .arg(file())
                .arg(json_flag()),
            delta("add", "Sum the changes of several deltas of one model")
                .arg(several())
                .arg(file())
                .arg(json_flag()),
            delta("merge", "Join deltas of one model that change different rows")
                .arg(several())
                .arg(file())
                .arg(json_flag()),
        ])
}

fn one() -> Arg {
    Arg::new("deltas").value_name("DELTA.safetensors").required(true).help("The delta")
}

fn several() -> Arg {
    one().action(ArgAction::Append).num_args(2..).help("The deltas")
}

/// What `--json` writes.
#[derive(Serialize)]
struct Outcome {
    /// The delta, or the folder of the model.
    out: PathBuf,
    #[serde(flatten)]
    extent: Extent,
    /// SHA-256 of the weights that the delta is of.
    base: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sizes: Option<Sizes>,
}

/// How large a delta is beside the model that it gives.
#[derive(Serialize)]
struct Sizes {
    /// The size of the delta's file.
    bytes: u64,
    /// The size of the file in which the run saved the tuned model's weights.
    model_bytes: u64,
    /// The entries of all parameters.
    model_parameters: usize,
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        None => of_run(matches),
        Some((verb @ ("apply" | "revert"), matches)) => into_model(verb, matches),
        Some((verb, matches)) => into_delta(verb, matches),
    }
}

/// The rows that a run changed.
fn of_run(matches: &ArgMatches) -> Result<()> {
    let run = path(matches, "run").unwrap_or_default();
    let outputs = Outputs::new(matches, &["out"], vec![run.clone()])?;
    let Some(out) = outputs.file("out")? else { return Ok(()) };
    let (config, tuned) = (run.join("config.toml"), run.join("model"));
    for (file, what) in
        [(&config, "is no run folder"), (&tuned, "the run has saved no tuned model")]
    {
        if !file.exists() {
            bail!("{}: {what}; give a run that `run` or `tune` finished", run.display());
        }
    }
    let origin = config.display().to_string();
    let experiment = flags::from_table(experiments::find(&origin)?, &origin)?;
    let base = circuit_models::load(&experiment.model).context("the model before tuning")?.model;
    let after = circuit_models::load(&experiment.model.saved_to(&tuned))?.model;
    let name = experiment.model.path.display().to_string();
    let delta = Delta::between(base.parameters(), after.parameters(), &name)?;
    delta.save(out)?;
    let sizes = Sizes {
        bytes: out.metadata()?.len(),
        model_bytes: tuned.join("model.safetensors").metadata()?.len(),
        model_parameters: base.parameters().count(),
    };
    show(matches, &outputs, &Outcome::new(out, &delta, Some(sizes)), print)
}

/// `apply` and `revert`: a model with the delta, or without it again, as a folder.
fn into_model(verb: &str, matches: &ArgMatches) -> Result<()> {
    let file = path(matches, "deltas").unwrap_or_default();
    let experiment = flags::experiment(matches, FLAGS)?;
    let folder = outputs::new_folder(matches, "out")?.unwrap_or_default();
    let inputs = experiment.inputs().into_iter().chain([file.clone()]).collect();
    let outputs = Outputs::new(matches, &[], inputs)?;
    let delta = Delta::load(&file)?;
    let loaded = circuit_models::load(&experiment.model)?;
    match verb {
        "apply" => delta.apply(loaded.model.parameters())?,
        _ => delta.revert(loaded.model.parameters())?,
    }
    circuit_models::save(&folder, &*loaded.model, loaded.tokenizer.as_ref())?;
    show(matches, &outputs, &Outcome::new(&folder, &delta, None), print)
}

/// The verbs that make a delta of deltas.
fn into_delta(verb: &str, matches: &ArgMatches) -> Result<()> {
    let files: Vec<PathBuf> =
        matches.get_many::<String>("deltas").into_iter().flatten().map(PathBuf::from).collect();
    let circuit = matches.try_get_one::<String>("circuit").ok().flatten().map(PathBuf::from);
    let experiment = circuit.is_some().then(|| flags::experiment(matches, FLAGS)).transpose()?;
    let model = experiment.as_ref().map(|experiment| experiment.inputs()).into_iter().flatten();
    let inputs = files.iter().cloned().chain(circuit.clone()).chain(model).collect();
    let outputs = Outputs::new(matches, &["out"], inputs)?;
    let Some(out) = outputs.file("out")? else { return Ok(()) };
    let deltas = files.iter().map(|file| Ok(Delta::load(file)?)).collect::<Result<Vec<Delta>>>()?;
    let all: Vec<&Delta> = deltas.iter().collect();
    let made = match (verb, &circuit, &experiment) {
        ("add", ..) => Delta::add(&all)?,
        ("merge", ..) => Delta::merge(&all)?,
        ("restrict", Some(circuit), Some(experiment)) => {
            let model = circuit_models::load(&experiment.model)?.model;
            let circuit = Circuit::load(circuit, &*model, model.graph())?;
            all[0].restrict(model.parameters(), &circuit.owners())?
        }
        ("negate", ..) => all[0].scale(-1.0)?,
        _ => all[0].scale(matches.get_one("by").copied().context("give the factor with --by")?)?,
    };
    made.save(out)?;
    show(matches, &outputs, &Outcome::new(out, &made, None), print)
}

impl Outcome {
    fn new(out: &Path, delta: &Delta, sizes: Option<Sizes>) -> Self {
        let base = delta.base().sha256.clone();
        Self { out: out.to_owned(), extent: delta.extent(), base, sizes }
    }
}

fn print(Outcome { out, extent, base, sizes }: &Outcome) {
    say!("changed rows  {}", extent.rows);
    match sizes {
        None => say!("parameters    {}", extent.parameters),
        Some(Sizes { bytes, model_bytes, model_parameters }) => {
            let share = extent.parameters as f64 / *model_parameters as f64 * 100.0;
            say!("parameters    {} of {model_parameters}, {share:.1} %", extent.parameters);
            let megabytes = |bytes: u64| bytes as f64 / 1e6;
            say!(
                "size          {:.1} MB; the model's weights {:.1} MB",
                megabytes(*bytes),
                megabytes(*model_bytes)
            );
        }
    }
    say!("base          sha256 {base}");
    say!("written to    {}", out.display());
}
