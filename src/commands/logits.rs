//! `logits`: the likeliest next tokens at every position of a sequence, to be held beside another tool's.

use anyhow::{Context, Result, bail};
use circuit_framework::candle_core::DType;
use circuit_framework::data::tokenizer::Tokenizer;
use circuit_framework::{Model, Pass, Tensor};
use circuit_models::Loaded;
use clap::{Arg, ArgGroup, ArgMatches, Command};
use serde::Serialize;

use super::{json_flag, output, show};
use crate::flags::{self, COMPUTING, Flag, MODEL};
use crate::outputs::Outputs;
use crate::print::say;

const FLAGS: &[&[Flag]] = &[MODEL, COMPUTING];

/// Positions whose logits are formed at a time: a large vocabulary makes long rows.
const ROWS: usize = 64;

pub(crate) fn command() -> Command {
    let logits = Command::new("logits").about("Show the likeliest next tokens at every position");
    flags::add(logits, FLAGS)
        .arg(
            output("text", "TEXT", "A text; what the tokenizer puts before texts is put before it")
                .allow_hyphen_values(true),
        )
        .arg(
            output("tokens", "ID,…", "Token ids, with commas between; taken as they are")
                .value_delimiter(',')
                .value_parser(clap::value_parser!(u32)),
        )
        .group(ArgGroup::new("sequence").args(["text", "tokens"]).required(true))
        .arg(
            Arg::new("top")
                .long("top")
                .value_name("N")
                .default_value("20")
                .value_parser(clap::value_parser!(u64).range(1..))
                .help("Tokens a position"),
        )
        .arg(json_flag())
}

#[derive(Serialize)]
struct Logits {
    tokens: Vec<u32>,
    /// The mean next-token cross-entropy; none of a single token, which nothing predicts.
    loss: Option<f64>,
    /// At each position the likeliest next tokens, each with its logit.
    top: Vec<Vec<(u32, f64)>>,
    /// log Σ exp of each position's logits.
    #[serde(skip)]
    normalisers: Vec<f64>,
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let experiment = flags::experiment(matches, FLAGS)?;
    let outputs = Outputs::new(matches, &[], experiment.inputs())?;
    let Loaded { model, tokenizer } = circuit_models::load(&experiment.model)?;
    let tokenizer = tokenizer.as_ref();
    let tokens: Vec<u32> = match matches.get_one::<String>("text") {
        Some(text) => {
            let tokenizer =
                tokenizer.context("the model has no tokenizer; give --tokens instead of --text")?;
            tokenizer.note_unknown_words([&text[..]])?;
            tokenizer.prefix().into_iter().chain(tokenizer.encode(text)?).collect()
        }
        None => matches.get_many("tokens").into_iter().flatten().copied().collect(),
    };
    let top = matches.get_one::<u64>("top").map_or(20, |&top| top as usize);
    let logits = compute(&*model, tokens, top)?;
    show(matches, &outputs, &logits, |logits| print(logits, tokenizer))
}

fn compute(model: &dyn Model, tokens: Vec<u32>, top: usize) -> Result<Logits> {
    let (vocabulary, context) = (model.vocabulary(), model.context());
    if tokens.is_empty() || tokens.len() > context {
        bail!(
            "the sequence has {} tokens; it must have 1 to {context}, the model's context",
            tokens.len()
        );
    }
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
        bail!(
            "token id {id}, but the model's vocabulary has {vocabulary}; ids go from 0 to {}",
            vocabulary - 1
        );
    }
    let input = Tensor::new(&tokens[..], &model.device())?.unsqueeze(0)?;
    let readout = model.forward(&Pass::forward_only(), &input)?;
    let (mut best, mut normalisers, mut losses) = (Vec::new(), Vec::new(), Vec::new());
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    for rows in positions.chunks(ROWS) {
        let logits: Vec<Vec<f64>> = readout.logits(rows)?.to_dtype(DType::F64)?.to_vec2()?;
        for (&row, logits) in rows.iter().zip(logits) {
            if logits.iter().any(|logit| !logit.is_finite()) {
                bail!("position {row}: a logit is no finite number");
            }
            let largest = logits.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
            let normaliser = largest + sum.ln();
            let next = tokens.get(row as usize + 1);
            losses.extend(next.map(|&next| normaliser - logits[next as usize]));
            normalisers.push(normaliser);
            best.push(likeliest(&logits, top));
        }
    }
    let loss = (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64);
    Ok(Logits { tokens, loss, top: best, normalisers })
}

/// The largest logits with their tokens, largest first; of equals the lower id.
fn likeliest(logits: &[f64], top: usize) -> Vec<(u32, f64)> {
    let mut all: Vec<(u32, f64)> = (0..).zip(logits.iter().copied()).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(top);
    all
}

fn print(logits: &Logits, tokenizer: Option<&Tokenizer>) {
    let text = |id: u32| match tokenizer.and_then(|tokenizer| tokenizer.text(id)) {
        Some(text) => format!("{text:?}"),
        None => String::new(),
    };
    if let Some(loss) = logits.loss {
        say!("loss {loss:.6}");
    }
    say!("position  token  {:>10}  {:>11}", "logit", "probability");
    for (position, &token) in logits.tokens.iter().enumerate() {
        say!("{position:>8}  {token:>5}  {}", text(token));
        for &(id, logit) in &logits.top[position] {
            let probability = (logit - logits.normalisers[position]).exp();
            say!("{:>8}  {id:>5}  {logit:>10.4}  {probability:>11.6}  {}", "", text(id));
        }
    }
}
