//! What the tasks that make their own examples have in common: which of them are kept for testing, and
//! how many are drawn. What a tokenizer can't take is left out and counted.

use circuit_framework::{Example, Result, Split, memory, refuse};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// One text in ten is kept for testing, whatever the seed: those whose hash says so.
const HELD_OUT: u64 = 10;

/// Whether a text is one that is never trained on.
pub(crate) fn is_held_out(text: &str) -> bool {
    // FNV-1a, so that the split is the same on every platform and with every compiler.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash % HELD_OUT == 0
}

/// Whether a text is of this split.
pub(crate) fn is_of(split: Split, text: &str) -> bool {
    is_held_out(text) == (split == Split::Test)
}

/// The random numbers of a split. The splits draw from different streams, so their lengths don't
/// depend on each other.
pub(crate) fn random(split: Split, seed: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(u64::from(split == Split::Test));
    random
}

/// Refuses to generate more examples than there is memory for.
///
/// # Errors
/// Naming the setting.
pub(crate) fn check_count(split: Split, count: usize) -> Result<()> {
    let setting = match split {
        Split::Train => "train_examples",
        Split::Test => "test_examples",
    };
    // With their tokens, keys and counterfactuals.
    let bytes = memory::product(&[count, 2 * size_of::<Example>()]);
    memory::check(&format!("{setting} is {count}, and to generate them"), bytes, "give fewer")
}

/// The first of the examples that can be used: as many as the limit says, without one 2000 to train
/// on and 500 to evaluate on. An error is an example that this tokenizer can't take.
///
/// # Errors
/// If none can be used, with the reason of the first.
pub(crate) fn take<T>(
    split: Split,
    limit: Option<usize>,
    made: impl Iterator<Item = Result<T>>,
) -> Result<Vec<T>> {
    let count = limit.unwrap_or(match split {
        Split::Train => 2000,
        Split::Test => 500,
    });
    check_count(split, count)?;
    let (mut examples, mut left_out, mut reason) = (Vec::with_capacity(count), 0, None);
    for example in made.take(4 * count) {
        match example {
            Ok(example) => examples.push(example),
            Err(error) => {
                left_out += 1;
                reason.get_or_insert(error);
            }
        }
        if examples.len() == count {
            break;
        }
    }
    let reason = reason.map_or_else(|| "none was asked for".to_owned(), |error| error.to_string());
    if examples.is_empty() {
        refuse!("no generated example can be used with this tokenizer: {reason}");
    }
    if left_out > 0 {
        log::warn!("{left_out} generated examples left out, the first since {reason}");
    }
    Ok(examples)
}
