//! What a model must keep to.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::values::{self, largest};
use super::{agrees, central_difference, check_float64};
use crate::model::Model;
use crate::ops::cross_entropy::Target;
use crate::pass::cache::Cache;
use crate::pass::{Captured, Pass, Written, scalar};
use crate::tuning::gradients::Gradients;
use crate::weights::parameters::{Owner, Parameter, Selection};
use crate::{Result, refuse};

/// Checks that a model announces every site of its graph in order, with as many readers and writers
/// as the graph says; that the residual stream each site reads is the sum of what was written before;
/// that rows are owned by the nodes in whose place they stand, and change no other node's value before
/// the output projection; that projections are what `state_dict` has under their names; that logits
/// depend neither on padding nor on a cache; and that the gradients of what every node owns agree with
/// central differences.
///
/// # Errors
/// Saying what is broken, or that the model is not float64.
pub fn model(model: &dyn Model, seed: u64) -> Result<()> {
    check_float64(model)?;
    let (batch, seq) = (2, model.context().min(5));
    let tokens = draw(model, (batch, seq), seed)?;
    let written = Arc::new(Mutex::new(Vec::new()));
    let shown = written.clone();
    let pass = Pass::with_gradients(&model.device())?.on_write(move |written| {
        shown.lock().unwrap_or_else(PoisonError::into_inner).push(written);
        Ok(())
    });
    let loss = loss(model, &pass, &tokens)?;
    let written = std::mem::take(&mut *written.lock().unwrap_or_else(PoisonError::into_inner));
    let mut captured = Vec::new();
    pass.backward(&loss, &mut |left| {
        captured.push(left);
        Ok(())
    })?;
    check_announcements(model, &written, &captured)?;
    check_owners(model, &captured)?;
    check_stream(&written, &captured)?;
    values::check(model, &captured, &tokens, seed)?;
    check_projections(model)?;
    check_gradients(model, &captured, &tokens)?;
    check_padding(model, &tokens, seed)?;
    check_cache(model, &tokens)
}

/// Random tokens u32 [batch, seq].
pub(super) fn draw(model: &dyn Model, shape: (usize, usize), seed: u64) -> Result<Tensor> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let token = || random.random_range(0..model.vocabulary() as u32);
    let tokens: Vec<u32> = std::iter::repeat_with(token).take(shape.0 * shape.1).collect();
    Ok(Tensor::from_vec(tokens, shape, &model.device())?)
}

/// The summed loss of every token but the first.
fn loss(model: &dyn Model, pass: &Pass, tokens: &Tensor) -> Result<Tensor> {
    let (batch, seq) = tokens.dims2()?;
    let ids = tokens.to_vec2::<u32>()?;
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (sequence, ids) in ids.iter().enumerate().take(batch) {
        for (position, &token) in ids.iter().enumerate().skip(1) {
            rows.push((sequence * seq + position - 1) as u32);
            targets.push(Target { token, weight: 1.0 });
        }
    }
    model.forward(pass, tokens)?.cross_entropy(&rows, targets)
}

fn check_announcements(
    model: &dyn Model,
    written: &[Written],
    captured: &[Captured],
) -> Result<()> {
    let graph = model.graph();
    let writing: Vec<usize> =
        (0..graph.site_count()).filter(|&site| !graph.writers_of(site).is_empty()).collect();
    let announced: Vec<usize> = written.iter().map(Written::site).collect();
    if announced != writing {
        refuse!("sites {announced:?} were written, but the graph's writers are at {writing:?}");
    }
    let reading: Vec<usize> =
        (0..graph.site_count()).filter(|&site| !graph.readers_of(site).is_empty()).collect();
    // A backward pass meets the sites from last to first.
    let mut read: Vec<usize> = captured
        .iter()
        .filter_map(|captured| match captured {
            Captured::Reading { reading, .. } => Some(reading.site),
            Captured::FinalNorm { unembedding, .. } => Some(unembedding.site),
            _ => None,
        })
        .collect();
    read.reverse();
    if read != reading {
        refuse!("sites {read:?} were read, but the graph's readers are at {reading:?}");
    }
    for captured in captured {
        let (site, rows, nodes) = match captured {
            Captured::Reading { reading, .. } => {
                (reading.site, reading.weight.tensor.dim(0)?, graph.readers_of(reading.site).len())
            }
            Captured::Writing { writing, .. } => {
                (writing.site, writing.weight.tensor.dim(0)?, graph.writers_of(writing.site).len())
            }
            _ => continue,
        };
        if !rows.is_multiple_of(nodes) {
            refuse!("site {site}: {rows} rows can't be split among the graph's {nodes} nodes");
        }
    }
    Ok(())
}

/// Rows belong to the reader or writer in whose place they stand, in the graph's order, or to none.
fn check_owners(model: &dyn Model, captured: &[Captured]) -> Result<()> {
    let (graph, parameters) = (model.graph(), model.parameters());
    for captured in captured {
        match captured {
            Captured::Reading { reading, .. } => {
                let readers = &graph.readers()[graph.readers_of(reading.site)];
                let owners: Vec<Owner> = readers.iter().copied().map(Owner::Reader).collect();
                for param in std::iter::once(&reading.weight).chain(&reading.bias) {
                    check_places(parameters.get(param.id), &owners)?;
                }
            }
            Captured::Writing { writing, .. } => {
                let writers = &graph.writers()[graph.writers_of(writing.site)];
                let owners: Vec<Owner> = writers.iter().copied().map(Owner::Writer).collect();
                check_places(parameters.get(writing.weight.id), &owners)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether the parameter's rows, split evenly among `owners` in order, are theirs or no node's.
fn check_places(parameter: &Parameter, owners: &[Owner]) -> Result<()> {
    let height = parameter.rows() / owners.len();
    for block in parameter.blocks.iter().filter(|block| block.owner != Owner::Shared) {
        let (first, last) = (block.rows.start / height, (block.rows.end - 1) / height);
        if first != last || owners[first] != block.owner {
            refuse!(
                "rows {:?} of `{}` belong to {:?}, but in the graph's order they are those of {:?}",
                block.rows,
                parameter.name,
                block.owner,
                &owners[first..=last]
            );
        }
    }
    Ok(())
}

/// What a site added to the stream [batch·seq, d_model].
fn output(written: &Written) -> Result<Tensor> {
    Ok(match written {
        Written::Embedding { output, .. } => output.clone(),
        Written::Projected { writing, .. } => {
            let output = written.values()?.matmul(&writing.output_weight()?)?;
            match &writing.bias {
                Some(bias) => output.broadcast_add(&bias.tensor)?,
                None => output,
            }
        }
    })
}

fn check_stream(written: &[Written], captured: &[Captured]) -> Result<()> {
    for captured in captured {
        let (site, x) = match captured {
            Captured::Reading { reading, x, .. } => (reading.site, x),
            Captured::FinalNorm { unembedding, x, .. } => (unembedding.site, x),
            _ => continue,
        };
        let mut sum = x.zeros_like()?;
        for written in written.iter().filter(|written| written.site() < site) {
            sum = (sum + output(written)?)?;
        }
        let worst = largest(&(sum - x)?)?;
        if worst > 1e-9 * (1.0 + largest(x)?) {
            refuse!("site {site} reads a stream that is {worst} off the sum of what was written");
        }
    }
    Ok(())
}

fn check_gradients(model: &dyn Model, captured: &[Captured], tokens: &Tensor) -> Result<()> {
    let parameters = model.parameters();
    let mut gradients = Gradients::new(parameters, Selection::blocks(parameters, |_, _| true));
    captured.iter().try_for_each(|captured| gradients.accumulate(captured))?;
    for (id, parameter) in parameters.iter() {
        let Some(gradient) = gradients.get(id) else {
            refuse!("no gradient reaches `{}`", parameter.name);
        };
        let gradient: Vec<f64> = gradient.flatten_all()?.to_vec1()?;
        for (index, block) in parameter.blocks.iter().enumerate() {
            // An entry of each block, so of what each node owns.
            let entries = block.rows.len() * parameter.width();
            let entry = block.rows.start * parameter.width() + (index * 7919 + 5) % entries;
            let difference = central_difference(&parameter.tensor, entry, || {
                Ok(scalar(&loss(model, &Pass::forward_only(), tokens)?)?)
            })?;
            if !agrees(gradient[entry], difference) {
                refuse!(
                    "{:?}: the gradient at entry {entry} of `{}` is {}, but by central differences \
                     {difference}",
                    block.owner,
                    parameter.name,
                    gradient[entry]
                );
            }
        }
    }
    Ok(())
}

/// Every projection is what `state_dict` has under its name.
fn check_projections(model: &dyn Model) -> Result<()> {
    let state = model.state_dict()?;
    for projection in model.projections() {
        let name = format!("{}.weight", projection.name);
        let Some(saved) = state.get(&name) else {
            refuse!("state_dict has no `{name}`, which projections names");
        };
        let weight = &model.parameters().get(projection.parameter).tensor;
        let parts = projection.parts().map(|(rows, _)| weight.narrow(0, rows.start, rows.len()));
        let rows = Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        // What reads has a row an output, what writes a row an input.
        let transposed = projection.reads == projection.fan_in_fan_out;
        let rows = if transposed { rows.t()? } else { rows };
        if saved.dims() != rows.dims() || largest(&(saved - rows)?)? > 0.0 {
            refuse!(
                "`{name}` in state_dict is not the projection of that name; is it transposed, or \
                 another's?"
            );
        }
    }
    Ok(())
}

/// Logits [batch·seq, vocabulary] at the first `seq` positions of each sequence.
pub(super) fn logits(model: &dyn Model, tokens: &Tensor, seq: usize) -> Result<Tensor> {
    let (batch, padded) = tokens.dims2()?;
    let rows: Vec<u32> =
        (0..batch * seq).map(|index| (index / seq * padded + index % seq) as u32).collect();
    model.forward(&Pass::forward_only(), tokens)?.logits(&rows)
}

fn check_padding(model: &dyn Model, tokens: &Tensor, seed: u64) -> Result<()> {
    let (batch, seq) = tokens.dims2()?;
    let extra = (model.context() - seq).min(3);
    let padding = draw(model, (batch, extra), seed.wrapping_add(1))?;
    let padded = Tensor::cat(&[tokens, &padding], 1)?;
    let worst = largest(&(logits(model, tokens, seq)? - logits(model, &padded, seq)?)?)?;
    if worst > 1e-9 {
        refuse!("logits change by {worst} with what stands behind a token");
    }
    Ok(())
}

fn check_cache(model: &dyn Model, tokens: &Tensor) -> Result<()> {
    let (batch, seq) = tokens.dims2()?;
    let whole = logits(model, tokens, seq)?.reshape((batch, seq, model.vocabulary()))?;
    let cache = Arc::new(Mutex::new(Cache::new(vec![0; batch], seq)));
    for position in 0..seq {
        let token = tokens.narrow(1, position, 1)?;
        let readout = model.forward(&Pass::continuing(cache.clone()), &token)?;
        let rows: Vec<u32> = (0..batch as u32).collect();
        let expected = whole.narrow(1, position, 1)?.squeeze(1)?;
        let worst = largest(&(readout.logits(&rows)? - expected)?)?;
        if worst > 1e-9 {
            refuse!(
                "with a cache the logits at position {position} are {worst} off; attend through \
                 the pass"
            );
        }
    }
    Ok(())
}
