//! `analyze`: what single nodes do. A subcommand an analysis; with a run folder each is done before and after
//! tuning. What is computed is the framework's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use circuit_framework::analysis::{
    Findings, Logits, Name, NodeEffect, Pattern, Request, Table, strongest,
};
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::files;
use circuit_framework::graph::circuit::Circuit;
use circuit_framework::graph::{Input, Node, Port};
use circuit_framework::results::circuit_file::CircuitFile;
use circuit_framework::run::Runner;
use circuit_framework::run::experiment::{Experiment, ModelChoice};
use clap::{Arg, ArgGroup, ArgMatches, Command};
use serde::Deserialize;
use serde_json::Value;

use super::{json_flag, output, path, show, table, with_runner};
use crate::experiments;
use crate::flags::{self, ABLATION, ANALYSIS, COMPUTING, Flag, MODEL, TASK};
use crate::outputs::Outputs;
use crate::print::say;

const FLAGS: &[&[Flag]] = &[MODEL, COMPUTING, TASK, ABLATION, ANALYSIS];

/// Lines of a table that are printed.
const TOP: &str = "20";

pub(crate) fn command() -> Command {
    let heads =
        output("heads", "NODE,…", "Look at these heads; at all without it").value_delimiter(',');
    let from_span =
        output("from", "SPAN", "Look from this span's last token, not from the key positions");
    let patterns = number("patterns", "Show what the heads look at in the first N examples too");
    let to = output("to", "INPUT,…", "Readers: heads' inputs, as head.2.1.q, or logits")
        .value_delimiter(',');
    let from = output(
        "from",
        "NODE,…",
        "Only from these writers, each a forward pass a batch; from all without it",
    )
    .value_delimiter(',');
    let strongest =
        number("strongest", "The input --port of the N heads with the strongest effects");
    let port = output("port", "q|k|v", "Which input of the strongest heads").default_value("q");
    let of = output(
        "of",
        "FILE.json",
        "The effects are those that `analyze logits` or `analyze paths` left \
        in this file; direct effects without it",
    )
    .requires("strongest");
    let circuit =
        output("circuit", "C.json", "The circuit; with --run its circuits before and after");
    let readers = ArgGroup::new("readers").args(["to", "strongest"]).required(true);
    Command::new("analyze")
        .about("Look at what single nodes do: direct effects, attention, paths, roles")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            analysis(Name::Logits, "Direct effects on the logit difference, and the logit lens"),
            analysis(Name::Attention, "Where heads look from the key positions")
                .args([heads, from_span, patterns]),
            analysis(
                Name::Paths,
                "Path patching: what readers do without what one writer tells them",
            )
            .args([from, to, strongest, port, of])
            .group(readers),
            analysis(Name::Roles, "What each node of a circuit does, in a table")
                .arg(circuit)
                .group(ArgGroup::new("which").args(["circuit", "run"]).required(true)),
        ])
}

fn analysis(name: Name, about: &'static str) -> Command {
    let run = output("run", "DIR", "The model of this run, before and after tuning")
        .conflicts_with_all(["model", "random-init", "mlp-head-width"]);
    flags::add(Command::new(name.name()).about(about), FLAGS)
        .arg(run)
        .arg(output("table", "FILE.csv", "Write a line a node as comma-separated values"))
        .arg(output("svg", "FILE.svg", "Draw a heat map, layers by heads"))
        .arg(number("top", "Print only the N lines that matter most").default_value(TOP))
        .arg(json_flag())
}

fn number(name: &'static str, help: &'static str) -> Arg {
    output(name, "N", help).value_parser(clap::value_parser!(u64).range(1..))
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let Some((name, matches)) = matches.subcommand() else { bail!("name an analysis") };
    let Some(folder) = path(matches, "run") else {
        let experiment = flags::experiment(matches, FLAGS)?;
        let outputs = outputs(matches, experiment.inputs())?;
        return with_runner(&experiment, |runner| {
            let request = request(name, matches, runner, path(matches, "circuit"))?;
            let findings = runner.analysis()?.run(&request)?;
            finish(matches, &outputs, runner, &[("", findings)])
        });
    };
    let (before, after) = of_run(matches, &folder)?;
    let inputs = before.inputs().into_iter().chain([folder.clone()]);
    let outputs = outputs(matches, inputs.collect())?;
    let circuit = |when: &str| {
        path(matches, "circuit").unwrap_or_else(|| folder.join(format!("circuit-{when}.json")))
    };
    let found = with_runner(&before, |runner| {
        let request = request(name, matches, runner, Some(circuit("before")))?;
        Ok(runner.analysis()?.run(&request)?)
    })?;
    with_runner(&after, |runner| {
        // The readers that were the strongest before.
        let request = match &found {
            Findings::Paths(paths) => {
                Request::Paths { from: nodes(matches, "from")?, to: paths.to.clone() }
            }
            _ => request(name, matches, runner, Some(circuit("after")))?,
        };
        let findings = runner.analysis()?.run(&request)?;
        finish(matches, &outputs, runner, &[("before", found), ("after", findings)])
    })
}

/// What the flags name to write; files that they name to read are inputs too.
fn outputs(matches: &ArgMatches, inputs: Vec<PathBuf>) -> Result<Outputs> {
    let read = ["circuit", "of"]
        .into_iter()
        .filter_map(|flag| matches.try_get_one::<String>(flag).ok().flatten().map(PathBuf::from));
    Outputs::new(matches, &["table", "svg"], inputs.into_iter().chain(read).collect())
}

/// The experiment of a run, with its model before tuning and after.
fn of_run(matches: &ArgMatches, folder: &Path) -> Result<(Experiment, Experiment)> {
    let config = folder.join("config.toml");
    if !config.is_file() {
        bail!("{}: is no run folder; give one that `run` or `tune` made", folder.display());
    }
    let origin = config.display().to_string();
    let mut table = experiments::find(&origin)?;
    flags::apply(matches, FLAGS, &mut table)?;
    let before = flags::from_table(table, &origin)?;
    let model = ModelChoice {
        path: folder.join("model"),
        random_init: None,
        adapter: None,
        ..before.model.clone()
    };
    if !model.path.is_dir() {
        bail!("{}: the run has not saved its tuned model", model.path.display());
    }
    let after = Experiment { model, ..before.clone() };
    Ok((before, after))
}

/// What is asked for of a model.
fn request(
    name: &str,
    matches: &ArgMatches,
    runner: &Runner,
    circuit: Option<PathBuf>,
) -> Result<Request> {
    let list = |name: &str| matches.get_many::<String>(name).into_iter().flatten();
    Ok(match name {
        "logits" => Request::Logits,
        "attention" => Request::Attention {
            heads: nodes(matches, "heads")?,
            from: matches.get_one::<String>("from").cloned(),
            patterns: count(matches, "patterns").unwrap_or(0),
        },
        "paths" => match count(matches, "strongest") {
            Some(count) => to_strongest(matches, runner, count)?,
            None => {
                let graph = runner.model.graph();
                let reader = |name: &String| Ok(graph.readers()[graph.reader(name.trim())?.0]);
                Request::Paths {
                    from: nodes(matches, "from")?,
                    to: list("to").map(reader).collect::<Result<Vec<Input>>>()?,
                }
            }
        },
        _ => {
            let file = circuit.context("give the circuit with --circuit, or a run with --run")?;
            let nodes = super::faithfulness::nodes(CircuitFile::read(&file)?.provenance);
            let graph = runner.model.graph().subset(&nodes);
            Request::Roles(Circuit::load(&file, runner.model, &graph)?)
        }
    })
}

/// The nodes that a flag names.
fn nodes(matches: &ArgMatches, name: &str) -> Result<Vec<Node>> {
    let names = matches.get_many::<String>(name).into_iter().flatten();
    Ok(names.map(|name| name.trim().parse()).collect::<Result<_, _>>()?)
}

fn count(matches: &ArgMatches, name: &str) -> Option<usize> {
    matches.get_one::<u64>(name).map(|&count| count as usize)
}

/// Paths to the heads that are the strongest, by their direct effects or those in a file.
fn to_strongest(matches: &ArgMatches, runner: &Runner, count: usize) -> Result<Request> {
    /// What an analysis before left.
    #[derive(Deserialize)]
    struct Before {
        nodes: Vec<NodeEffect>,
    }
    let port = match matches.get_one::<String>("port").map(String::as_str) {
        Some("q") => Port::Query,
        Some("k") => Port::Key,
        Some("v") => Port::Value,
        other => bail!("--port {}: a head's inputs are q, k and v", other.unwrap_or_default()),
    };
    let from = nodes(matches, "from")?;
    let Some(file) = path(matches, "of") else {
        return Ok(Request::PathsToStrongest { from, count, port });
    };
    let Before { nodes } = files::read_json(&file).with_context(|| {
        format!(
            "{}: must be what `analyze logits --json` or `analyze paths --json` wrote",
            file.display()
        )
    })?;
    Ok(Request::Paths { from, to: strongest(runner.model.graph(), &nodes, count, port)? })
}

/// Writes what is to be written, and shows the rest. Findings have names where there are several.
fn finish(
    matches: &ArgMatches,
    outputs: &Outputs,
    runner: &Runner,
    found: &[(&str, Findings)],
) -> Result<()> {
    if let Some(file) = outputs.file("table")? {
        let tables = found.iter().map(|(name, findings)| findings.table().csv(name));
        let whole: String = tables
            .enumerate()
            .map(|(index, table)| match index {
                0 => table,
                // Under one line of names.
                _ => table.split_once('\n').map_or(String::new(), |(_, lines)| lines.to_owned()),
            })
            .collect();
        files::write_atomically(file, whole.as_bytes())?;
    }
    if let Some(file) = outputs.file("svg")? {
        let map = runner.heat_map(&runner.analysis()?, found);
        files::write_atomically(file, map.svg().as_bytes())?;
    }
    let value = match found {
        [("", findings)] => serde_json::to_value(findings)?,
        found => found
            .iter()
            .map(|(name, findings)| Ok(((*name).to_owned(), serde_json::to_value(findings)?)))
            .collect::<Result<Value>>()?,
    };
    let top = count(matches, "top").unwrap_or(usize::MAX);
    show(matches, outputs, &value, |_| {
        for (name, findings) in found {
            if !name.is_empty() {
                say!("{name} tuning\n");
            }
            print(findings, top, runner.tokenizer);
        }
    })
}

fn print(findings: &Findings, top: usize, tokenizer: Option<&Tokenizer>) {
    let words = if matches!(findings, Findings::Roles(_)) { 3 } else { 1 };
    say!("{}", table::markdown(&strongest_lines(&findings.table(), top), words));
    match findings {
        Findings::Logits(logits) => print_lens(logits),
        Findings::Attention(attention) => {
            attention.patterns.iter().for_each(|pattern| print_pattern(pattern, tokenizer));
        }
        Findings::Paths(paths) => {
            let to: Vec<String> = paths.to.iter().map(Input::to_string).collect();
            say!(
                "paths to {}; the metric is {:.6} in the clean run\n",
                to.join(", "),
                paths.metric
            );
        }
        Findings::Roles(_) => {}
    }
}

/// A table's head, and the lines that matter most.
fn strongest_lines(table: &Table, top: usize) -> Vec<Vec<String>> {
    let mut order: Vec<usize> = (0..table.lines.len()).collect();
    order.sort_by(|&a, &b| table.weights[b].total_cmp(&table.weights[a]));
    let lines = order.into_iter().take(top).map(|index| table.lines[index].clone());
    std::iter::once(table.head.clone()).chain(lines).collect()
}

fn print_lens(logits: &Logits) {
    let head = ["after layer", "p(right)", "rank", "p(wrong)", "rank"].map(str::to_owned);
    let lines = logits.lens.iter().map(|lens| {
        let layer = lens.layer.map_or_else(|| "embed".to_owned(), |layer| layer.to_string());
        let answers = [lens.right, lens.wrong];
        let answers = answers.into_iter().flat_map(|answer| {
            [format!("{:.4}", answer.probability), format!("{:.1}", answer.rank)]
        });
        std::iter::once(layer).chain(answers).collect()
    });
    let cells: Vec<Vec<String>> = std::iter::once(head.to_vec()).chain(lines).collect();
    say!("{}", table::markdown(&cells, 1));
    say!("logit difference {:.6}, the sum of all effects\n", logits.difference);
}

fn print_pattern(pattern: &Pattern, tokenizer: Option<&Tokenizer>) {
    let heads = pattern.heads.keys().map(Node::to_string);
    let head = ["token".to_owned(), "marked".to_owned()].into_iter().chain(heads).collect();
    let lines = pattern.tokens.iter().enumerate().map(|(position, &token)| {
        let text = tokenizer.and_then(|tokenizer| tokenizer.text(token));
        let text = text.map_or_else(|| token.to_string(), |text| format!("{text:?}"));
        let spans = pattern.spans.iter().filter(|(_, span)| span.contains(&position));
        let marks: Vec<&str> = spans.map(|(name, _)| &name[..]).collect();
        let weights = pattern.heads.values().map(|weights| format!("{:.3}", weights[position]));
        [text, marks.join(" ")].into_iter().chain(weights).collect()
    });
    let cells: Vec<Vec<String>> = std::iter::once(head).chain(lines).collect();
    say!("{}\n\n{}", pattern.origin, table::markdown(&cells, 2));
}
