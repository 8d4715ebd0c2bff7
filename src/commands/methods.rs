//! `methods`: attribution methods beside one that is held for right, on the user's own model and task: how
//! far their scores agree with its, how faithful the circuits are that they rank first, what they cost.

use std::time::Instant;

use anyhow::{Result, bail};
use circuit_framework::attribution::{Agreement, Discovery, MethodChoice};
use circuit_framework::evaluation::CircuitEvaluation;
use circuit_framework::evaluation::ranking::Ranking;
use circuit_framework::files;
use circuit_framework::graph::circuit::Circuit;
use circuit_framework::graph::pruning::Pruning;
use circuit_framework::results::provenance::Provenance;
use circuit_framework::run::Runner;
use circuit_framework::run::experiment::Experiment;
use circuit_framework::{Error, Scores};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;
use toml::Table;

use super::{json_flag, output, show, table, with_runner};
use crate::flags::{self, COMPUTING, DISCOVERY, DISCOVERY_BATCH, Flag, MODEL, TASK};
use crate::outputs::Outputs;
use crate::print;

/// The edges that scores are correlated on where nobody says how many.
const TOP: usize = 200;

const FLAGS: &[&[Flag]] = &[MODEL, COMPUTING, TASK, DISCOVERY, DISCOVERY_BATCH];

/// Exact edge patching knows no other positions. Nobody is shown a bootstrap.
fn defaults() -> Table {
    toml::toml! {
        discovery = { positions = "all", bootstrap = 0 }
    }
}

pub(crate) fn command() -> Command {
    let about = "Put attribution methods side by side: agreement with exact edge patching, overlap and \
                 faithfulness of circuits, time";
    flags::add_over(Command::new("methods").about(about), FLAGS, &defaults())
        .mut_arg("method", |method| method.hide(true))
        .arg(
            Arg::new("compare")
                .long("compare")
                .value_name("METHOD,…")
                .value_delimiter(',')
                .default_value("eap,relp")
                .help("The methods to compare"),
        )
        .arg(
            Arg::new("against")
                .long("against")
                .value_name("METHOD")
                .default_value("exact")
                .help("The method they are held to"),
        )
        .arg(
            Arg::new("top")
                .long("top")
                .value_name("N")
                .value_parser(clap::value_parser!(u64).range(2..))
                .help(format!(
                    "Correlate scores on each method's N strongest edges; a circuit has as many, where \
                     --top-n doesn't say otherwise [default: {TOP}, or all where there are fewer]"
                )),
        )
        .arg(
            Arg::new("strongest-only").long("strongest-only").action(ArgAction::SetTrue).help(
                "Have --against score only the edges that are correlated, for models whose every edge can't be \
                 patched; it has no circuit, CPR or CMD of its own then",
            ),
        )
        .arg(output("markdown", "OUT.md", "Write the tables here"))
        .arg(json_flag())
}

#[derive(Serialize)]
struct Comparison {
    /// What the reference's scores are of.
    provenance: Provenance,
    /// On how many of each method's strongest edges scores are correlated.
    top: usize,
    graph_edges: usize,
    /// The reference last.
    methods: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    method: String,
    #[serde(flatten)]
    agreement: Option<Agreement>,
    /// The area under faithfulness by its signed ranking, as MIB takes it.
    cpr: Option<f64>,
    /// The area under |1 − faithfulness| by its absolute ranking.
    cmd: Option<f64>,
    /// The Jaccard index of its circuit with each method's that has one, in the order of `methods`.
    overlaps: Vec<f64>,
    /// How long the discovery took.
    seconds: f64,
}

/// What one method found.
struct Found {
    method: String,
    scores: Scores,
    circuit: Circuit,
    seconds: f64,
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let mut table = defaults();
    flags::apply(matches, FLAGS, &mut table)?;
    let experiment = flags::from_table(table, "settings")?;
    let compared = matches.get_many::<String>("compare").into_iter().flatten();
    let names: Vec<&String> = compared.chain(matches.get_one::<String>("against")).collect();
    let top = matches.get_one::<u64>("top").map(|&top| top as usize);
    let outputs = Outputs::new(matches, &["markdown"], experiment.inputs())?;
    with_runner(&experiment, |runner| {
        let top = top_of(runner, top)?;
        let experiments: Vec<Experiment> =
            names.iter().map(|name| with_method(&experiment, name, top)).collect();
        let comparison = compare(runner, &experiments, top, matches.get_flag("strongest-only"))?;
        let tables = markdown(&comparison);
        if let Some(path) = outputs.file("markdown")? {
            files::write_atomically(path, tables.as_bytes())?;
        }
        show(matches, &outputs, &comparison, |_| print::text(&tables))
    })
}

/// How many edges scores are correlated on: as many as asked for, or what is usual.
fn top_of(runner: &Runner, asked: Option<usize>) -> Result<usize> {
    let edges = runner.model.graph().subset(&runner.experiment.discovery.nodes).edge_count();
    match asked {
        Some(top) if top > edges => {
            bail!("--top is {top}, but the graph has {edges} edges; give at most that")
        }
        Some(top) => Ok(top),
        None => Ok(edges.min(TOP)),
    }
}

/// The experiment with another method, with circuits of `top` edges where nobody says how many.
fn with_method(experiment: &Experiment, method: &str, top: usize) -> Experiment {
    let Experiment { discovery, pruning, .. } = experiment.clone();
    let method = MethodChoice::named(method.trim());
    Experiment {
        discovery: Discovery { method, ..discovery },
        pruning: Pruning { top_n: pruning.top_n.or(Some(top)), ..pruning },
        ..experiment.clone()
    }
}

fn compare(
    runner: &Runner,
    experiments: &[Experiment],
    top: usize,
    strongest_only: bool,
) -> Result<Comparison> {
    let evaluation = runner.circuit_evaluation(&runner.experiment.discovery.nodes)?;
    let runners: Vec<Runner> = (experiments.iter())
        .map(|experiment| Runner { experiment, data: Default::default(), ..*runner })
        .collect();
    // What one of them can't score is refused before any of them works.
    runners.iter().try_for_each(|runner| runner.examples().map(|_| ()))?;
    let Some((last, others)) = runners.split_last() else {
        bail!("there are no methods to compare; name some with --compare");
    };
    let mut found: Vec<Found> = others.iter().map(discover).collect::<Result<_>>()?;
    let start = Instant::now();
    let reference = match strongest_only {
        true => {
            let edges = found.iter().flat_map(|method| method.scores.strongest(top)).collect();
            last.score_edges(last.examples()?, &edges)?
        }
        false => {
            found.push(discover(last)?);
            found[others.len()].scores.clone()
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    let areas = areas(runner, &evaluation, &found)?;
    let row = |(method, (cpr, cmd)): (&Found, _)| Row {
        method: method.method.clone(),
        agreement: Some(Agreement::of(&method.scores, &reference, top)),
        cpr,
        cmd,
        overlaps: found.iter().map(|other| method.circuit.jaccard(&other.circuit)).collect(),
        seconds: method.seconds,
    };
    let mut methods: Vec<Row> = found.iter().zip(areas).map(row).collect();
    if strongest_only {
        let method = last.experiment.discovery.method.name.clone();
        methods.push(Row {
            method,
            agreement: None,
            cpr: None,
            cmd: None,
            overlaps: Vec::new(),
            seconds,
        });
    }
    Ok(Comparison {
        provenance: last.provenance(last.examples()?),
        top,
        graph_edges: reference.graph.edge_count(),
        methods,
    })
}

fn discover(runner: &Runner) -> Result<Found> {
    let start = Instant::now();
    let found = runner.discover(runner.examples()?)?;
    Ok(Found {
        method: runner.experiment.discovery.method.name.clone(),
        scores: found.scores,
        circuit: found.circuit,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// CPR and CMD of each method's rankings, as MIB takes them; none where there is nothing to measure
/// faithfulness by.
fn areas(
    runner: &Runner,
    evaluation: &CircuitEvaluation,
    found: &[Found],
) -> Result<Vec<(Option<f64>, Option<f64>)>> {
    let mut orders = Vec::new();
    for method in found {
        for ranking in [Ranking::Signed, Ranking::Absolute] {
            orders.push(ranking.order(runner.model.graph(), &evaluation.all, &method.scores)?);
        }
    }
    let settings = runner.experiment.faithfulness.clone().unwrap_or_default();
    match evaluation.curves(&orders, &settings.fractions) {
        Ok((_, curves)) => {
            Ok(curves.chunks(2).map(|two| (Some(two[0].cpr), Some(two[1].cmd))).collect())
        }
        Err(error @ Error::NoEffect { .. }) => {
            log::warn!("there is no CPR and no CMD: {error}");
            Ok(vec![(None, None); found.len()])
        }
        Err(error) => Err(error.into()),
    }
}

/// The methods' figures, and below them how far their circuits overlap.
fn markdown(Comparison { provenance, top, graph_edges, methods }: &Comparison) -> String {
    let Some(reference) = methods.last() else { return String::new() };
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
    let words = |list: &[&str]| -> Vec<String> { list.iter().map(|&w| w.to_owned()).collect() };
    let mut figures =
        vec![words(&["method", "pearson", "spearman", "overlap", "CPR", "CMD", "seconds"])];
    figures.extend(methods.iter().map(|row| {
        vec![
            row.method.clone(),
            number(row.agreement.and_then(|agreement| agreement.pearson)),
            number(row.agreement.and_then(|agreement| agreement.spearman)),
            number(row.overlaps.get(methods.len() - 1).copied()),
            number(row.cpr),
            number(row.cmd),
            format!("{:.1}", row.seconds),
        ]
    }));
    let mut overlaps = vec![vec!["overlap".to_owned()]];
    let with_circuits = || methods.iter().filter(|row| !row.overlaps.is_empty());
    overlaps[0].extend(with_circuits().map(|row| row.method.clone()));
    overlaps.extend(with_circuits().map(|row| {
        let shares = row.overlaps.iter().map(|&overlap| number(Some(overlap)));
        std::iter::once(row.method.clone()).chain(shares).collect()
    }));
    format!(
        "{}, {provenance}\n\nagainst {} on each one's {top} strongest of {graph_edges} edges\n\n{}\n{}",
        provenance.task,
        reference.method,
        table::markdown(&figures, 1),
        table::markdown(&overlaps, 1),
    )
}
