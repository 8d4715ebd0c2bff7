//! Generating text: batches of similar length, padded on the left, with a key/value cache; greedy or
//! seeded sampling. What is generated depends neither on the batch size nor on the other prompts.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::data::example::by_length;
use crate::evaluation::Evaluation;
use crate::pass::cache::Cache;
use crate::peers;
use crate::progress::{self, Progress};
use crate::{Result, refuse};

/// How tokens are chosen, and how many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Generation {
    /// At most so many tokens a prompt; the context may end it earlier.
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature).
    pub temperature: f64,
}

impl Default for Generation {
    fn default() -> Self {
        Self { max_new_tokens: 256, temperature: 0.0 }
    }
}

/// A sequence that is being written.
struct Sequence {
    /// Which prompt it answers.
    prompt: usize,
    written: Vec<u32>,
    random: ChaCha8Rng,
}

impl Evaluation<'_> {
    /// What follows each prompt, up to one of the `stop` tokens, which is left out.
    ///
    /// # Errors
    /// If a prompt is empty or fills the context, if more tokens are asked for than the context has, or
    /// if the temperature is no number from 0 up.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        options: &Generation,
        stop: &[u32],
    ) -> Result<Vec<Vec<u32>>> {
        if !(options.temperature.is_finite() && options.temperature >= 0.0) {
            refuse!("temperature is {}; it must be a number from 0 up", options.temperature);
        }
        let context = self.model.context();
        if options.max_new_tokens >= context {
            refuse!(
                "max_new_tokens is {}, but the model's context is {context} tokens, the prompt's \
                 included; give at most {}",
                options.max_new_tokens,
                context - 1
            );
        }
        if let Some(prompt) = prompts.iter().find(|p| p.is_empty() || p.len() >= context) {
            refuse!(
                "a prompt has {} tokens; to be answered in a context of {context} it must have 1 to {}",
                prompt.len(),
                context - 1
            );
        }
        let order = by_length(prompts, Vec::len);
        let batches = order.chunks(self.batch_size.max(1));
        let (mut done, total) = (0, prompts.len());
        let of_batches = peers::share(self.peers, batches, |batch| {
            let sequences = self.generate_batch(prompts, batch, options, stop)?;
            done += batch.len();
            (self.report)(Progress { stage: "generate", done, total, figure: None });
            Ok(flattened(sequences))
        })?;
        let mut answers = vec![Vec::new(); prompts.len()];
        for of_batch in of_batches {
            let mut rest = &of_batch[..];
            while let [prompt, length, following @ ..] = rest {
                let (written, others) = following.split_at(*length as usize);
                answers[*prompt as usize] = written.iter().map(|&token| token as u32).collect();
                rest = others;
            }
        }
        Ok(answers)
    }

    fn generate_batch(
        &self,
        prompts: &[Vec<u32>],
        batch: &[usize],
        options: &Generation,
        stop: &[u32],
    ) -> Result<Vec<Sequence>> {
        let context = self.model.context();
        let (mut tokens, padding) = self.pad_left(prompts, batch)?;
        let capacity = tokens.dim(1)? + options.max_new_tokens;
        let cache = Arc::new(Mutex::new(Cache::new(padding, capacity)));
        let start = |&prompt: &usize| Sequence {
            prompt,
            written: Vec::new(),
            random: stream(self.setting.seed, prompt),
        };
        let mut going: Vec<Sequence> = batch.iter().map(start).collect();
        let mut finished = Vec::with_capacity(batch.len());
        if options.max_new_tokens == 0 {
            return Ok(going);
        }
        loop {
            progress::check_stop()?;
            let logits = self.next_logits(&cache, &tokens)?;
            let mut keep = Vec::new();
            let mut rest = Vec::new();
            for (row, mut sequence) in going.into_iter().enumerate() {
                let token = options.choose(&logits[row], &mut sequence.random);
                if stop.contains(&token) {
                    finished.push(sequence);
                    continue;
                }
                sequence.written.push(token);
                let length = prompts[sequence.prompt].len() + sequence.written.len();
                if sequence.written.len() == options.max_new_tokens || length == context {
                    finished.push(sequence);
                } else {
                    keep.push(row as u32);
                    rest.push(sequence);
                }
            }
            if rest.is_empty() {
                return Ok(finished);
            }
            if keep.len() < logits.len() {
                cache.lock().unwrap_or_else(PoisonError::into_inner).keep(&keep)?;
            }
            let last: Vec<u32> = rest.iter().filter_map(|s| s.written.last()).copied().collect();
            tokens = Tensor::from_vec(last, (rest.len(), 1), &self.model.device())?;
            going = rest;
        }
    }

    /// The logits that follow each sequence's last token.
    fn next_logits(&self, cache: &Arc<Mutex<Cache>>, tokens: &Tensor) -> Result<Vec<Vec<f64>>> {
        let (batch, seq) = tokens.dims2()?;
        let readout = self.forward_continuing(cache, tokens)?;
        let last: Vec<u32> = (1..=batch).map(|sequence| (sequence * seq - 1) as u32).collect();
        Ok(readout.logits(&last)?.to_dtype(DType::F64)?.to_vec2()?)
    }

    /// The prompts as one tensor u32 [batch, seq], padded on the left with token 0, and how many
    /// columns of each are padding.
    fn pad_left(&self, prompts: &[Vec<u32>], batch: &[usize]) -> Result<(Tensor, Vec<usize>)> {
        let seq = batch.iter().map(|&prompt| prompts[prompt].len()).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(batch.len() * seq);
        let mut padding = Vec::with_capacity(batch.len());
        for &prompt in batch {
            let prompt = &prompts[prompt];
            padding.push(seq - prompt.len());
            ids.resize(ids.len() + seq - prompt.len(), 0);
            ids.extend_from_slice(prompt);
        }
        Ok((Tensor::from_vec(ids, (batch.len(), seq), &self.model.device())?, padding))
    }
}

/// A prompt's own random numbers.
fn stream(seed: u64, prompt: usize) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(prompt as u64);
    random
}

impl Generation {
    fn choose(&self, logits: &[f64], random: &mut ChaCha8Rng) -> u32 {
        let mut best = 0;
        for (token, logit) in logits.iter().enumerate() {
            if *logit > logits[best] {
                best = token;
            }
        }
        if self.temperature == 0.0 {
            return best as u32;
        }
        let weight = |logit: &f64| ((logit - logits[best]) / self.temperature).exp();
        let total: f64 = logits.iter().map(weight).sum();
        let mut left = random.random::<f64>() * total;
        for (token, logit) in logits.iter().enumerate() {
            left -= weight(logit);
            if left < 0.0 {
                return token as u32;
            }
        }
        best as u32
    }
}

/// Sequences as numbers, which processes exchange: of each its prompt, its length and its tokens.
fn flattened(sequences: Vec<Sequence>) -> Vec<f64> {
    let of = |Sequence { prompt, written, .. }: Sequence| {
        let head = [prompt as f64, written.len() as f64];
        head.into_iter().chain(written.into_iter().map(f64::from))
    };
    sequences.into_iter().flat_map(of).collect()
}
