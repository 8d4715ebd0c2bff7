//! `faithfulness`: run circuits alone and say how much of the model they carry, by scores or one circuit.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use circuit_framework::evaluation::ranking::{self, RANDOM, Ranking};
use circuit_framework::evaluation::{
    CircuitEvaluation, CircuitFigures, Curve, FRACTIONS, Faithfulness, Line, Scale,
};
use circuit_framework::graph::circuit::Circuit;
use circuit_framework::graph::{Kind, Node};
use circuit_framework::results::circuit_file::CircuitFile;
use circuit_framework::results::provenance::Provenance;
use circuit_framework::run::Runner;
use circuit_framework::run::experiment::Experiment;
use circuit_framework::{Scores, files};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{json_flag, output, path, show, with_runner};
use crate::flags::{self, ABLATION, COMPUTING, FAITHFULNESS, Flag, MODEL, TASK};
use crate::outputs::Outputs;
use crate::print::say;

const FLAGS: &[&[Flag]] = &[MODEL, COMPUTING, TASK, ABLATION, FAITHFULNESS];

pub(crate) fn command() -> Command {
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    let faithfulness = Command::new("faithfulness")
        .about("Judge a circuit: run the model with every edge outside it ablated");
    flags::add(faithfulness, FLAGS)
        .mut_arg("ablation", |ablation| ablation.required(true))
        .mut_arg("ranking", |ranking| ranking.requires("scores"))
        .mut_arg("fractions", |fractions| fractions.requires("scores"))
        .arg(switch("no-prune", "Keep the edges of dead ends too"))
        .arg(output("scores", "S.safetensors", "Circuits of growing size, the best edges by these scores"))
        .arg(output("circuit", "C.json", "This circuit, and its complement"))
        .group(ArgGroup::new("which").args(["scores", "circuit"]).required(true))
        .arg(
            Arg::new("knockout")
                .long("knockout")
                .value_name("NODE,…")
                .action(ArgAction::Append)
                .conflicts_with("scores")
                .help("Ablate the edges out of these writers in the model and in the circuit; can be repeated"),
        )
        .arg(switch("minimality", "What the metric loses with each edge of the circuit: a pass an edge")
            .conflicts_with("scores"))
        .arg(output("plot", "OUT.svg", "Plot faithfulness over the share of edges here, beside a random ranking's"))
        .arg(json_flag())
}

/// The result: `--json` writes it.
#[derive(Serialize)]
struct Judged {
    #[serde(flatten)]
    scale: Scale,
    /// How many the graph has.
    edges: usize,
    /// A curve under its ranking's name, or a circuit's figures.
    #[serde(flatten)]
    found: Map<String, Value>,
}

/// What is judged.
enum Subject {
    Scores(PathBuf),
    Circuit { file: PathBuf, knockouts: Vec<Vec<Node>>, minimality: bool },
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let mut experiment = flags::experiment(matches, FLAGS)?;
    if matches.get_flag("no-prune") {
        experiment.faithfulness.get_or_insert_with(Faithfulness::default).prune = false;
    }
    let subject = subject(matches)?;
    if !matches.contains_id("nodes") {
        experiment.discovery.nodes = subject.nodes()?;
    }
    let settings = experiment.faithfulness.clone().unwrap_or_default();
    settings.check()?;
    let inputs = experiment.inputs().into_iter().chain([subject.file().to_path_buf()]);
    let outputs = Outputs::new(matches, &["plot"], inputs.collect())?;
    with_runner(&experiment, |runner| {
        let evaluation = runner.circuit_evaluation(&experiment.discovery.nodes)?;
        match &subject {
            Subject::Scores(file) => {
                let scores = Scores::load(file, runner.model)?;
                let plot = outputs.file("plot")?;
                let curve = judge_scores(runner, &evaluation, &settings, &scores, plot)?;
                show(matches, &outputs, &curve.judged(), |_| curve.print())
            }
            Subject::Circuit { file, knockouts, minimality } => {
                let graph = runner.model.graph().subset(&experiment.discovery.nodes);
                let circuit = Circuit::load(file, runner.model, &graph)?;
                let (scale, figures) = evaluation.circuit(&circuit, knockouts, *minimality)?;
                if let Some(plot) = outputs.file("plot")? {
                    plot_circuit(runner, &evaluation, &figures, plot)?;
                }
                let judged = Judged { scale, edges: evaluation.all.len(), found: map(&figures)? };
                show(matches, &outputs, &judged, |judged| print_circuit(judged, &circuit, &figures))
            }
        }
    })
}

fn subject(matches: &ArgMatches) -> Result<Subject> {
    if let Some(scores) = path(matches, "scores") {
        return Ok(Subject::Scores(scores));
    }
    let names = matches.get_many::<String>("knockout").into_iter().flatten();
    let knockouts = names.map(|names| {
        let nodes = names.split(',').map(|name| name.trim().parse::<Node>());
        nodes.collect::<Result<Vec<_>, _>>()
    });
    Ok(Subject::Circuit {
        file: path(matches, "circuit").unwrap_or_default(),
        knockouts: knockouts.collect::<Result<_, _>>()?,
        minimality: matches.get_flag("minimality"),
    })
}

impl Subject {
    fn file(&self) -> &Path {
        match self {
            Subject::Scores(file) | Subject::Circuit { file, .. } => file,
        }
    }

    /// The kinds of nodes in the graph that the file is of.
    fn nodes(&self) -> Result<Vec<Kind>> {
        Ok(nodes(match self {
            Subject::Scores(file) => Scores::provenance(file)?,
            Subject::Circuit { file, .. } => CircuitFile::read(file)?.provenance,
        }))
    }
}

/// The kinds of nodes that scores or a circuit are of; all where nobody says.
pub(super) fn nodes(provenance: Option<Provenance>) -> Vec<Kind> {
    let all = || Experiment::default().discovery.nodes;
    provenance.map_or_else(all, |provenance| provenance.nodes)
}

/// The curve of a ranking.
struct Ranked {
    ranking: Ranking,
    scale: Scale,
    edges: usize,
    curve: Curve,
}

fn judge_scores(
    runner: &Runner,
    evaluation: &CircuitEvaluation,
    settings: &Faithfulness,
    scores: &Scores,
    plot: Option<&Path>,
) -> Result<Ranked> {
    let ranking = settings.ranking;
    let mut orders = vec![ranking.order(runner.model.graph(), &evaluation.all, scores)?];
    if plot.is_some() {
        orders.push(ranking::random(&evaluation.all, runner.experiment.seed));
    }
    let (scale, curves) = evaluation.curves(&orders, &settings.fractions)?;
    if let Some(plot) = plot {
        let labels = [ranking.name(), RANDOM].into_iter();
        let lines = labels.zip(&curves).map(|(label, curve)| curve.line(label)).collect();
        write_plot(runner, evaluation, lines, plot)?;
    }
    let edges = evaluation.all.len();
    let Some(curve) = curves.into_iter().next() else { bail!("there is no curve") };
    Ok(Ranked { ranking, scale, edges, curve })
}

/// A circuit as one point, beside random circuits of all sizes.
fn plot_circuit(
    runner: &Runner,
    evaluation: &CircuitEvaluation,
    figures: &CircuitFigures,
    file: &Path,
) -> Result<()> {
    let random = ranking::random(&evaluation.all, runner.experiment.seed);
    let (_, curve) = evaluation.curve(random, &FRACTIONS)?;
    let share = figures.n as f64 / evaluation.all.len() as f64;
    let circuit = Line { label: "circuit".to_owned(), points: vec![(share, figures.faithfulness)] };
    write_plot(runner, evaluation, vec![circuit, curve.line(RANDOM)], file)
}

fn write_plot(
    runner: &Runner,
    evaluation: &CircuitEvaluation,
    lines: Vec<Line>,
    file: &Path,
) -> Result<()> {
    let title = super::draw::title(&runner.provenance(evaluation.examples));
    let plot = runner.faithfulness_plot(evaluation, title, lines);
    Ok(files::write_atomically(file, plot.svg().as_bytes())?)
}

impl Ranked {
    fn judged(&self) -> Judged {
        let Self { ranking, scale, edges, curve } = self;
        let found = [(ranking.name().to_owned(), serde_json::json!(curve))];
        Judged { scale: *scale, edges: *edges, found: Map::from_iter(found) }
    }

    fn print(&self) {
        let Self { ranking, scale, edges, curve } = self;
        print_scale(scale, *edges);
        say!(
            "{:>9} {:>9} {:>9} {:>12} {:>13}",
            "fraction",
            "edges",
            "kept",
            "metric",
            "faithfulness"
        );
        for point in &curve.points {
            say!(
                "{:>9} {:>9} {:>9} {:>12.6} {:>13.4}",
                point.fraction,
                point.n,
                point.kept,
                point.metric,
                point.faithfulness
            );
        }
        say!("\nCPR  {:.4}\nCMD  {:.4}  (ranking {})", curve.cpr, curve.cmd, ranking.name());
    }
}

fn print_scale(scale: &Scale, edges: usize) {
    say!("whole model  {:.6}", scale.metric_full);
    say!("no edge      {:.6}", scale.metric_empty);
    say!("graph        {edges} edges\n");
}

fn print_circuit(judged: &Judged, circuit: &Circuit, figures: &CircuitFigures) {
    print_scale(&judged.scale, judged.edges);
    say!("{:12} {:>9} {:>9} {:>12} {:>13}", "", "edges", "kept", "metric", "faithfulness");
    say!(
        "{:12} {:>9} {:>9} {:>12.6} {:>13.4}",
        "circuit",
        figures.n,
        figures.kept,
        figures.metric,
        figures.faithfulness
    );
    say!(
        "{:12} {:>9} {:>9} {:>12.6} {:>13.4}",
        "complement",
        judged.edges - figures.n,
        "",
        figures.complement.metric,
        figures.complement.faithfulness
    );
    for knockout in &figures.knockouts {
        let nodes: Vec<String> = knockout.nodes.iter().map(Node::to_string).collect();
        say!(
            "\nwithout {}: model {:.6}, circuit {:.6}, incompleteness {:.6}",
            nodes.join(", "),
            knockout.model,
            knockout.circuit,
            knockout.incompleteness
        );
    }
    if let Some(minimality) = &figures.minimality {
        say!("\nwhat the metric loses with an edge:");
        for (edge, loss) in circuit.edges.iter().zip(minimality) {
            say!("  {loss:>12.6}  {} → {}", edge.writer, edge.reader);
        }
    }
}

/// A struct's fields.
fn map(value: &impl Serialize) -> Result<Map<String, Value>> {
    match serde_json::to_value(value)? {
        Value::Object(map) => Ok(map),
        other => bail!("{other} is no object"),
    }
}
