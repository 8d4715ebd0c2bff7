//! Direct effects on the logits: what each writer adds to the right answers' mean logit less the wrong ones'
//! through the final norm alone.
//!
//! With its scale held at what it is in the clean run, the final norm is linear, so that the effects of all
//! writers, with the biases that none of them owns, sum to the difference of the logits. A soft cap on the
//! logits (Gemma 2) isn't linear: the sum is the difference before it.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::findings::{Table, names, number};
use super::lens::{Lens, LensSums};
use super::{Analysis, NodeEffect, Panel, Shown, rows, weights};
use crate::data::example::{Batch, Key};
use crate::evaluation::answers::{KeyRow, check_wrong_answers};
use crate::evaluation::batches;
use crate::graph::Graph;
use crate::ops::backward::Rules;
use crate::ops::weight;
use crate::pass::{Pass, Unembedding, Written};
use crate::peers;
use crate::progress::{self, Progress};
use crate::{Error, Result};

/// Direct effects and the logit lens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logits {
    /// The right answers' mean logit less the wrong ones', before a soft cap: the sum of all that follows.
    pub difference: f64,
    /// The part of biases that no writer owns.
    pub biases: f64,
    /// The part of each writer, in computation order.
    pub nodes: Vec<NodeEffect>,
    /// What would be predicted from the stream after each layer.
    pub lens: Vec<Lens>,
}

/// What one site wrote at the keys.
struct AtKeys {
    /// The first of its writers in the graph.
    first: usize,
    /// [writers, keys, d_model]
    outputs: Tensor,
    /// A bias that none of them owns [1, d_model].
    bias: Option<Tensor>,
}

impl Analysis<'_> {
    /// The direct effect of every writer on the logit difference, and the logit lens.
    ///
    /// # Errors
    /// If an example has no wrong answers, the logits aren't finite numbers, or a tensor operation fails.
    pub fn logits(&self) -> Result<Logits> {
        for example in self.examples {
            check_wrong_answers(example)
                .map_err(|error| Error::input(format!("{}: {error}", example.origin)))?;
        }
        let graph = self.model.graph();
        let mut done = 0;
        let batches = batches(self.model, self.examples, self.batch_size);
        let of_batches = peers::share(self.peers, batches, |batch| {
            progress::check_stop()?;
            let batch = batch?;
            let numbers = self.logits_of(&batch)?;
            done += batch.examples.len();
            let total = self.examples.len();
            (self.report)(Progress { stage: "analyze logits", done, total, figure: None });
            Ok(numbers)
        })?;
        let mut sums = vec![0.0; 2 + graph.writers().len()];
        let mut lens = LensSums::default();
        for of_batch in of_batches {
            let (numbers, of_lens) = of_batch.split_at(sums.len().min(of_batch.len()));
            sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
            lens.join(of_lens);
        }
        let (difference, biases, effects) = (sums[0], sums[1], sums.split_off(2));
        if !difference.is_finite() {
            return Err(Error::NotFinite(format!("the logit difference is {difference}")));
        }
        let nodes = graph.writers().iter().zip(effects);
        Ok(Logits {
            difference,
            biases,
            nodes: nodes.map(|(&node, effect)| NodeEffect { node, effect }).collect(),
            lens: lens.finish(),
        })
    }

    /// A batch's share of the difference, of the biases, of each writer's effect, and of the lens.
    fn logits_of(&self, batch: &Batch) -> Result<Vec<f64>> {
        let graph = self.model.graph();
        let mut effects = vec![0.0; graph.writers().len()];
        let (mut biases, mut lens) = (0.0, LensSums::default());
        let keys: Vec<KeyRow> = batch.keys().collect();
        let weights = weights(batch, &keys, self.examples.len());
        let rows = Tensor::new(rows(&keys), batch.tokens.device())?;
        let (written, read) = (Shown::new(), Shown::new());
        let pass = self.watching(&rows, written.handle(), read.handle());
        let readout = self.model.forward(&pass, &batch.tokens)?;
        let (unembedding, read) = (readout.unembedding(), read.take());
        let Some((_, stream)) = read.last() else { return Ok(Vec::new()) };
        let at_hidden = directions(unembedding, &keys)?;
        let rules = Rules { norm_scales: true, ..Rules::default() };
        let at_stream = unembedding.norm.pull_back(stream, &at_hidden, rules)?;
        let product = |a: &Tensor, b: &Tensor| weighted_sum(&a.broadcast_mul(b)?, &weights);
        for site in written.take() {
            for index in 0..site.outputs.dim(0)? {
                effects[site.first + index] += product(&at_stream, &site.outputs.get(index)?)?;
            }
            if let Some(bias) = &site.bias {
                biases += product(&at_stream, bias)?;
            }
        }
        if let Some(bias) = &unembedding.norm.bias {
            biases += product(&at_hidden, &bias.tensor)?;
        }
        let hidden = unembedding.norm.forward(stream)?;
        let difference = product(&at_hidden, &hidden)?;
        lens.add(graph, unembedding, &read, (&keys, &weights))?;
        Ok([&[difference, biases], &effects[..], &lens.numbers()].concat())
    }

    /// A pass that shows what is written and read at `rows`, a site at a time.
    fn watching(
        &self,
        rows: &Tensor,
        written: Shown<AtKeys>,
        read: Shown<(usize, Tensor)>,
    ) -> Pass {
        let graph = self.model.graph().clone();
        let (write_rows, read_rows) = (rows.clone(), rows.clone());
        Pass::forward_only()
            .on_write(move |site| {
                let writers = graph.writers_of(site.site());
                let values = site.values()?.index_select(&write_rows, 0)?;
                let outputs = site.outputs_of(&values, writers.len())?;
                written.push(AtKeys { first: writers.start, outputs, bias: unowned(&site) });
                Ok(())
            })
            .on_read(move |site, x| {
                read.push((site, x.index_select(&read_rows, 0)?));
                Ok(())
            })
    }
}

/// The bias that a site adds to the stream and none of its writers owns.
fn unowned(written: &Written) -> Option<Tensor> {
    match written {
        Written::Projected { writing, .. } if !writing.bias_is_written => {
            writing.bias.as_ref().map(|bias| bias.tensor.clone())
        }
        _ => None,
    }
}

/// What the normalised stream is multiplied with to be the logit difference of each key [keys, d_model].
fn directions(unembedding: &Unembedding, keys: &[KeyRow]) -> Result<Tensor> {
    let table = &unembedding.weight.tensor;
    let mean = |answers: &[u32]| -> Result<Tensor> {
        let rows = weight::rows_of(table, &Tensor::new(answers, table.device())?)?;
        Ok(rows.mean_keepdim(0)?)
    };
    let of = |(_, key, _): &(usize, &Key, u32)| -> Result<Tensor> {
        Ok((mean(&key.correct)? - mean(&key.wrong)?)?)
    };
    Ok(Tensor::cat(&keys.iter().map(of).collect::<Result<Vec<_>>>()?, 0)?)
}

/// Σ over keys of weight · Σ of the key's row of values [keys, d_model].
fn weighted_sum(values: &Tensor, weights: &[f64]) -> Result<f64> {
    let sums: Vec<f64> = values.to_dtype(DType::F64)?.sum(1)?.to_vec1()?;
    Ok(sums.iter().zip(weights).map(|(sum, weight)| sum * weight).sum())
}

impl Logits {
    /// A line a node, and one for the biases.
    pub(super) fn table(&self) -> Table {
        let nodes = self.nodes.iter().map(|of| (of.node.to_string(), of.effect));
        let all: Vec<(String, f64)> = nodes.chain([("biases".to_owned(), self.biases)]).collect();
        Table {
            head: names(["node", "effect"]),
            weights: all.iter().map(|(_, effect)| effect.abs()).collect(),
            lines: all.into_iter().map(|(node, effect)| vec![node, number(effect)]).collect(),
        }
    }

    /// The direct effects.
    pub(super) fn panel(&self, graph: &Graph) -> Panel {
        Panel::new(graph, "direct effect", self.nodes.iter().map(|of| (of.node, of.effect)))
    }
}
