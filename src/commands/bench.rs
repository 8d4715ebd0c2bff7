//! `bench`: how long a discover-and-tune step takes, phase by phase, on random examples.

use std::time::Instant;

use anyhow::{Result, bail};
use circuit_framework::attribution::Positions;
use circuit_framework::candle_core::DType;
use circuit_framework::tuning::{Event, Step, Tuner};
use circuit_framework::weights::parameters::{Owner, Selection};
use circuit_framework::{Example, Key, Model, Tensor, memory};
use circuit_models::Loaded;
use clap::{Arg, ArgAction, ArgMatches, Command};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use toml::Table;

use super::plan::Plan;
use super::{check_alike, json_flag, show};
use crate::flags::{self, COMPUTING, DISCOVERY, Flag, MODEL, TUNING};
use crate::job;
use crate::outputs::Outputs;
use crate::print::say;

const FLAGS: &[&[Flag]] = &[MODEL, COMPUTING, DISCOVERY, TUNING];

/// What is timed where no flag says otherwise: the published implementation's step.
fn defaults() -> Table {
    toml::toml! {
        tuning = { steps = 5, batch_size = 16, optimizer = "sgd", momentum = 0.9, lr = 1e-4 }
        metric = { name = "logit_diff" }
    }
}

pub(crate) fn command() -> Command {
    flags::add_over(
        Command::new("bench")
            .about("Time a discover-and-tune step, phase by phase, on random examples"),
        FLAGS,
        &defaults(),
    )
    .arg(
        Arg::new("seq-len")
            .long("seq-len")
            .value_name("N")
            .default_value("32")
            .value_parser(clap::value_parser!(u64).range(4..))
            .help("Tokens an example; two of them are key tokens"),
    )
    .arg(
        Arg::new("plan")
            .long("plan")
            .action(ArgAction::SetTrue)
            .help("Time nothing: reckon what memory a step takes, from config.json alone"),
    )
    .arg(
        Arg::new("tuned-share")
            .long("tuned-share")
            .value_name("S")
            .default_value("1")
            .requires("plan")
            .value_parser(share)
            .help("With --plan: the share of the nodes' parameters that is tuned"),
    )
    .arg(json_flag())
}

/// A number from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    let share: Option<f64> = text.parse().ok();
    share.filter(|share| (0.0..=1.0).contains(share)).ok_or("give a number from 0 to 1".to_owned())
}

/// Seconds of a phase, over the timed steps.
#[derive(Serialize)]
struct Times {
    median_s: f64,
    min_s: f64,
    max_s: f64,
}

impl Times {
    fn of(steps: &[Step], seconds: impl Fn(&Step) -> f64) -> Self {
        let mut all: Vec<f64> = steps.iter().map(seconds).collect();
        all.sort_by(f64::total_cmp);
        let middle = all.len() / 2;
        let median = match all.len() % 2 {
            0 => (all[middle - 1] + all[middle]) / 2.0,
            _ => all[middle],
        };
        Self { median_s: median, min_s: all[0], max_s: all[all.len() - 1] }
    }
}

#[derive(Serialize)]
struct Report {
    /// A forward pass, the metric's backward pass, the scores.
    discover: Times,
    prune: Times,
    /// Selection, the loss's backward pass, the selected rows' gradients, the update.
    tune: Times,
    step: Times,
    tokens_per_s: f64,
    /// Edges that are scored.
    edges: usize,
    /// Parameters tuned in the median step, of all and of those that nodes own.
    tuned_share: f64,
    tuned_share_of_nodes: f64,
    /// What candle's matrix product reaches at the MLP's shapes, measured before the steps.
    matmul_gflops: f64,
    /// The share of the step's time that its matrix products would take at that rate.
    matmul_share: f64,
    /// The most memory the program held, where the system tells.
    peak_rss_bytes: Option<u64>,
    /// The processes that shared each step.
    ranks: usize,
    /// Bytes that this one gave to others in the median step.
    sent_bytes: u64,
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let mut table = defaults();
    flags::apply(matches, FLAGS, &mut table)?;
    let experiment = flags::from_table(table, "settings")?;
    check_alike(&experiment)?;
    if experiment.tuning.steps == Some(0) {
        bail!("there is nothing to time in 0 steps; give --steps 1 or more");
    }
    let outputs = Outputs::new(matches, &[], experiment.inputs())?;
    let seq = matches.get_one::<u64>("seq-len").map_or(32, |seq| *seq as usize);
    if matches.get_flag("plan") {
        let model = circuit_models::outline(&experiment.model)?;
        let share = matches.get_one("tuned-share").copied().unwrap_or(1.0);
        let plan = Plan::of(&*model, &experiment, seq as u64, share);
        return show(matches, &outputs, &plan, Plan::print);
    }
    let plugins = experiment.plugins()?;
    let Loaded { model, .. } = circuit_models::load(&job::with_own_device(&experiment.model))?;
    let batch = experiment.tuning.batch_size;
    let bytes =
        memory::product(&[batch, seq.saturating_mul(4).saturating_add(size_of::<Example>())]);
    let what = format!("--batch-size {batch} of --seq-len {seq}");
    memory::check(&what, bytes, "give smaller numbers")?;
    let matmul_gflops = matmul_gflops(&*model, batch * seq)?;
    let examples = examples(&*model, batch, seq, experiment.seed);

    let steps = experiment.tuning.total_steps(examples.len());
    // The first step finds memory cold and is not counted.
    let tuning =
        circuit_framework::tuning::Tuning { steps: Some(steps + 1), ..experiment.tuning.clone() };
    let tuner = Tuner {
        model: &*model,
        metric: &*plugins.metric,
        selector: &*plugins.selector,
        discovery: &experiment.discovery,
        pruning: &experiment.pruning,
        tuning: &tuning,
        matched: None,
        seed: experiment.seed,
        peers: job::peers(),
    };
    let (mut timed, mut sent) = (Vec::new(), Vec::new());
    let mut before = tuner.peers.sent();
    tuner.run(&examples, &mut |event| {
        if let Event::Step { step, .. } = event {
            timed.push(step.clone());
            let now = tuner.peers.sent();
            sent.push(now - before);
            before = now;
        }
        Ok(())
    })?;
    timed.remove(0);
    sent.sort_unstable();
    let sent_bytes = sent[sent.len() / 2];
    let report = Report::of(&timed, &tuner, examples.len() * seq, matmul_gflops, sent_bytes);
    show(matches, &outputs, &report, print)
}

/// Random tokens; the middle and the last one are key tokens.
fn examples(model: &dyn Model, count: usize, seq: usize, seed: u64) -> Vec<Example> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let vocabulary = model.vocabulary() as u32;
    let example = |index: usize| {
        let tokens: Vec<u32> = (0..seq).map(|_| random.random_range(0..vocabulary)).collect();
        let key = |position: usize| Key {
            position,
            correct: vec![tokens[position]],
            wrong: vec![(tokens[position] + 1) % vocabulary],
        };
        Example {
            predicted: 1..seq,
            keys: vec![key(seq / 2), key(seq - 1)],
            origin: format!("random example {index}"),
            tokens,
            ..Example::default()
        }
    };
    (0..count).map(example).collect()
}

/// The width of the residual stream, which is that of every weight matrix.
pub(super) fn d_model(model: &dyn Model) -> usize {
    model.parameters().iter().map(|(_, parameter)| parameter.width()).max().unwrap_or(1)
}

/// The best of a few products [rows, d_model] · [d_model, 4·d_model], in 10⁹ operations a second.
fn matmul_gflops(model: &dyn Model, rows: usize) -> Result<f64> {
    let d_model = d_model(model);
    let entries = [[rows, d_model], [d_model, 4 * d_model], [rows, 4 * d_model]];
    let bytes = entries.map(|[rows, columns]| memory::product(&[rows, columns, size_of::<f32>()]));
    memory::check(
        &format!("a matrix product of the {rows} tokens in a batch"),
        bytes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes)),
        "give a smaller --batch-size or --seq-len",
    )?;
    let (device, dtype) = (model.device(), DType::F32);
    let a = Tensor::ones((rows, d_model), dtype, &device)?;
    let b = Tensor::ones((d_model, 4 * d_model), dtype, &device)?;
    let operations = (2 * rows * d_model * 4 * d_model) as f64;
    let mut best: f64 = 0.0;
    for _ in 0..20 {
        let start = Instant::now();
        let product = a.matmul(&b)?;
        product.device().synchronize()?;
        best = best.max(operations / start.elapsed().as_secs_f64());
    }
    Ok(best / 1e9)
}

impl Report {
    /// The report of timed steps of so many tokens each.
    fn of(
        steps: &[Step],
        tuner: &Tuner,
        tokens: usize,
        matmul_gflops: f64,
        sent_bytes: u64,
    ) -> Self {
        let step = Times::of(steps, |step| step.discovery_seconds + step.tuning_seconds);
        let mut tuned: Vec<usize> = steps.iter().map(|step| step.tuned_parameters).collect();
        tuned.sort_unstable();
        let tuned = tuned[tuned.len() / 2] as f64;
        let parameters = tuner.model.parameters();
        let owned = Selection::blocks(parameters, |_, block| block.owner != Owner::Shared);
        let owned = owned.count(parameters) as f64;
        let products = 2.0 * tokens as f64 * entries(tuner, owned, tuned);
        Self {
            discover: Times::of(steps, |step| step.discovery_seconds - step.prune_seconds),
            prune: Times::of(steps, |step| step.prune_seconds),
            tune: Times::of(steps, |step| step.tuning_seconds),
            tokens_per_s: tokens as f64 / step.median_s,
            edges: tuner.model.graph().subset(&tuner.discovery.nodes).edge_count(),
            tuned_share: tuned / parameters.count() as f64,
            tuned_share_of_nodes: tuned / owned,
            matmul_gflops,
            matmul_share: products / (matmul_gflops * 1e9) / step.median_s,
            peak_rss_bytes: peak_rss_bytes(),
            ranks: tuner.peers.size(),
            sent_bytes,
            step,
        }
    }
}

/// The entries of matrices that a token is multiplied with in a step: through the blocks forward and back; its
/// logits and their pull-back; the selected rows' gradients. The scores' own are left out.
fn entries(tuner: &Tuner, owned: f64, tuned: f64) -> f64 {
    // The keys are in each example's second half, and before the first there is nothing to go back to.
    let backward_passes = match tuner.discovery.positions {
        _ if tuner.metric.is_loss() => 1.0,
        Positions::Key => 1.5,
        Positions::All => 2.0,
    };
    let unembedding = (tuner.model.vocabulary() * d_model(tuner.model)) as f64;
    (1.0 + backward_passes) * owned + 2.0 * unembedding + tuned
}

/// The most memory this process has held, as Linux counts it.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn print(report: &Report) {
    say!("{:12}{:>10}{:>10}{:>10}", "seconds", "median", "min", "max");
    let phases = [
        ("discover", &report.discover),
        ("prune", &report.prune),
        ("tune", &report.tune),
        ("step", &report.step),
    ];
    for (name, Times { median_s, min_s, max_s }) in phases {
        say!("{name:12}{median_s:>10.4}{min_s:>10.4}{max_s:>10.4}");
    }
    say!("");
    say!("tokens/s     {:.0}, {} edges scored", report.tokens_per_s, report.edges);
    say!(
        "tuned        {:.1} % of all parameters, {:.1} % of the nodes'",
        100.0 * report.tuned_share,
        100.0 * report.tuned_share_of_nodes
    );
    say!(
        "matmul       {:.0} GFLOP/s; at that rate the step's products are {:.0} % of its time",
        report.matmul_gflops,
        100.0 * report.matmul_share
    );
    if let Some(bytes) = report.peak_rss_bytes {
        say!("peak memory  {:.2} GiB", bytes as f64 / f64::from(1 << 30));
    }
    if report.ranks > 1 {
        let megabytes = report.sent_bytes as f64 / 1e6;
        say!("ranks        {}; each gives {megabytes:.1} MB a step to the others", report.ranks);
    }
}
