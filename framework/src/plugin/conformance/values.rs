//! What the rows that a node reads through must do, found by moving them: a head, or a part of an MLP,
//! has a value of its own before the output projection, and rows do what their port's name says.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::graph::{Input, Node, Port};
use crate::model::Model;
use crate::pass::{Captured, Pass, Reading, Written};
use crate::{Result, refuse};

/// Checks every site that was read in a pass over tokens u32 [batch, seq].
pub(super) fn check(
    model: &dyn Model,
    captured: &[Captured],
    tokens: &Tensor,
    seed: u64,
) -> Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // A backward pass met the sites from last to first.
    for captured in captured.iter().rev() {
        if let Captured::Reading { reading, x, .. } = captured {
            let site = Site { model, reading, tokens };
            site.check(&reading.normalise(x)?, &mut random)?;
        }
    }
    Ok(())
}

/// A site that reads.
struct Site<'a> {
    model: &'a dyn Model,
    reading: &'a Reading,
    /// u32 [batch, seq]
    tokens: &'a Tensor,
}

impl Site<'_> {
    /// `normed` [batch·seq, d_model] is what its projection is given.
    fn check(&self, normed: &Tensor, random: &mut ChaCha8Rng) -> Result<()> {
        let graph = self.model.graph();
        let readers = &graph.readers()[graph.readers_of(self.reading.site)];
        let d_model = self.reading.weight.tensor.dim(1)?;
        let height = self.reading.weight.tensor.dim(0)? / readers.len();
        let before = self.values(self.tokens)?;
        for (reader, input) in readers.iter().enumerate() {
            let noise: Vec<f64> =
                (0..height * d_model).map(|_| random.random_range(-1.0..1.0)).collect();
            let noise = Tensor::from_vec(noise, (height, d_model), &self.model.device())?;
            let change = (self.moved(reader, &noise, self.tokens)? - &before)?;
            self.check_others(input, &change, &before)?;
            if matches!(input.port, Port::Value | Port::Up) {
                let twice = (self.moved(reader, &(noise * 2.0)?, self.tokens)? - &before)?;
                if !is_nothing(&(twice - (change * 2.0)?)?, &before)? {
                    refuse!(
                        "`{input}`: the value before the output projection is not linear in what it \
                         reads; its rows are another port's"
                    );
                }
            }
            if input.port == Port::Query {
                self.check_query(reader, input, normed)?;
            }
        }
        Ok(())
    }

    /// The site where what is read here is written: its own, or in a parallel layer another.
    fn writes(&self) -> Result<usize> {
        let graph = self.model.graph();
        let readers = &graph.readers()[graph.readers_of(self.reading.site)];
        let of = |node: &Node| {
            readers.iter().any(|r| (r.node.kind(), r.node.layer()) == (node.kind(), node.layer()))
        };
        let mut sites = (0..graph.site_count())
            .filter(|&site| graph.writers()[graph.writers_of(site)].iter().any(of));
        match sites.next() {
            Some(site) => Ok(site),
            None => {
                refuse!("site {} reads, but no node writes what comes of it", self.reading.site)
            }
        }
    }

    /// The values before the output projection [batch·seq, writers × width].
    fn values(&self, tokens: &Tensor) -> Result<Tensor> {
        let found = Arc::new(Mutex::new(None));
        let (site, shown) = (self.writes()?, found.clone());
        let pass = Pass::forward_only().on_write(move |written| {
            if let Written::Projected { writing, z, .. } = written
                && writing.site == site
            {
                *shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(z);
            }
            Ok(())
        });
        self.model.forward(&pass, tokens)?;
        match found.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(values) => Ok(values),
            None => refuse!("site {site} reads, but writes nothing"),
        }
    }

    /// The values with the rows of the site's `reader`-th reader moved `by` [height, d_model]; the rows
    /// are put back.
    fn moved(&self, reader: usize, by: &Tensor, tokens: &Tensor) -> Result<Tensor> {
        let weight = &self.reading.weight.tensor;
        let height = by.dim(0)?;
        let rows = weight.narrow(0, reader * height, height)?.copy()?;
        weight.slice_set(&(&rows + by)?, 0, reader * height)?;
        let values = self.values(tokens);
        weight.slice_set(&rows, 0, reader * height)?;
        values
    }

    /// Refuses a change of the values of nodes other than the reader's own.
    fn check_others(&self, input: &Input, change: &Tensor, before: &Tensor) -> Result<()> {
        let graph = self.model.graph();
        let shares = matches!(input.port, Port::Query | Port::Key);
        if shares && self.model.heads_share_a_norm() {
            return Ok(());
        }
        let writers = &graph.writers()[graph.writers_of(self.writes()?)];
        let width = change.dim(1)? / writers.len();
        for (index, writer) in writers.iter().enumerate() {
            let change = change.narrow(1, index * width, width)?;
            if !self.reads_for(input, writer) && !is_nothing(&change, before)? {
                refuse!(
                    "the rows of `{input}` change the value of `{writer}` before the output \
                     projection; they may change that of their own node alone"
                );
            }
        }
        Ok(())
    }

    /// Whether an input is a node's own, or that of the key/value head it shares.
    fn reads_for(&self, input: &Input, writer: &Node) -> bool {
        let graph = self.model.graph();
        match (input.node, writer) {
            (Node::KeyValueHead { head: shared, .. }, Node::Head { head, .. }) => {
                let heads = graph.writers().iter().filter(|n| n.layer() == input.node.layer());
                let heads = heads.filter(|n| n.kind() == input.node.kind()).count();
                let readers = &graph.readers()[graph.readers_of(self.reading.site)];
                let key_value_heads = readers.iter().filter(|r| r.port == input.port).count();
                head / (heads / key_value_heads) == shared
            }
            (node, writer) => node == *writer,
        }
    }

    /// Moves what a query reads at the first of two tokens alone: there it has one key to attend to, so
    /// that nothing changes. A key or a value would change what comes after it.
    fn check_query(&self, reader: usize, input: &Input, normed: &Tensor) -> Result<()> {
        let (first, second) = (normed.narrow(0, 0, 1)?, normed.narrow(0, 1, 1)?);
        // The part of what is read at the first token that the second doesn't see.
        let product = |a: &Tensor, b: &Tensor| (a * b)?.sum_keepdim(1);
        let share = product(&first, &second)?.broadcast_div(&product(&second, &second)?)?;
        let direction = (&first - second.broadcast_mul(&share)?)?;
        let graph = self.model.graph();
        let weight = &self.reading.weight.tensor;
        let height = weight.dim(0)? / graph.readers_of(self.reading.site).len();
        let by = direction.broadcast_as((height, weight.dim(1)?))?.contiguous()?;
        let tokens = self.tokens.narrow(0, 0, 1)?.narrow(1, 0, 2)?.contiguous()?;
        let before = self.values(&tokens)?;
        if !is_nothing(&(self.moved(reader, &by, &tokens)? - &before)?, &before)? {
            refuse!(
                "`{input}`: what it reads at the first token changes values, as a key or a value does \
                 and a query doesn't; its rows are another port's"
            );
        }
        Ok(())
    }
}

/// Whether a change is no more than rounding beside the values.
fn is_nothing(change: &Tensor, values: &Tensor) -> Result<bool> {
    Ok(largest(change)? <= 1e-9 * (1.0 + largest(values)?))
}

/// The largest magnitude.
pub(super) fn largest(tensor: &Tensor) -> Result<f64> {
    let values: Vec<f64> = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    Ok(values.into_iter().map(f64::abs).fold(0.0, f64::max))
}
