//! Readers that fail, to see that what watches them sees it.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::{Reader, Target};
use crate::{execute, mutate};

pub fn targets() -> Vec<Target> {
    let target = |name, fails: fn()| {
        // Good files come first.
        let corpus = || Ok(vec![b"good".to_vec(), b"good too".to_vec()]);
        Target::new(name, mutate::bytes, corpus, move |_: &Path| -> Result<Reader> {
            Ok(Box::new(move |input| {
                if !input.starts_with(b"good") {
                    fails();
                }
                Ok(())
            }))
        })
    };
    let refused = Target::new(
        "broken-corpus",
        mutate::bytes,
        || Ok(vec![b"good".to_vec()]),
        |_| Ok(Box::new(|_| anyhow::bail!("a reader that refuses good files"))),
    );
    vec![
        refused,
        target("broken-panic", || panic!("a reader that fails")),
        target("broken-abort", || std::process::abort()),
        target("broken-slow", compute),
        target("broken-hang", || std::thread::sleep(Duration::from_secs(3600))),
        target("broken-memory", || drop(std::hint::black_box(vec![1u8; 2 << 30]))),
        target("broken-stack", || {
            std::hint::black_box(deep(1_000_000_000));
        }),
    ]
}

/// Computes for too long.
fn compute() {
    let end = execute::computed().map_or(0, |start| start + execute::SLOW + 100);
    while execute::computed().is_ok_and(|now| now < end) {}
}

fn deep(left: u64) -> u64 {
    let here = std::hint::black_box([left; 16]);
    if left == 0 { 0 } else { here[3] ^ deep(left - 1) }
}
