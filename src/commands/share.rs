//! Which of a sweep's combinations a process runs, `--shard`: all of them, every n-th, or one after the other that
//! no other process has claimed.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// A process's share of a sweep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Share {
    /// All combinations; no other process may work on the sweep.
    All,
    /// Every `of`-th combination, from the `index`-th, counted from 0.
    Part { index: usize, of: usize },
    /// Whichever no other process has claimed.
    Claimed,
}

impl FromStr for Share {
    type Err = String;

    /// "3/16", the third of sixteen, or "auto".
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Claimed);
        }
        let part = text.split_once('/').and_then(|(number, of)| {
            let (number, of): (usize, usize) = (number.parse().ok()?, of.parse().ok()?);
            (1..=of).contains(&number).then(|| Self::Part { index: number - 1, of })
        });
        part.ok_or_else(|| "write it as I/N, the I-th of N shares, or as auto".to_owned())
    }
}

impl Share {
    /// Whether the combination of this index may fall to the share.
    pub fn has(self, combination: usize) -> bool {
        match self {
            Self::All | Self::Claimed => true,
            Self::Part { index, of } => combination % of == index,
        }
    }
}

/// A combination's claim, as long as it lives: a lock, which the system releases when its process ends in whatever
/// way. None if another process has it.
///
/// # Errors
/// If the file can't be made, or the folder's file system knows no locks.
pub(crate) fn claim(file: &Path) -> Result<Option<File>> {
    let lock = File::options().create(true).truncate(false).write(true).open(file);
    let lock = lock.with_context(|| file.display().to_string())?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => bail!(
            "{}: the file system knows no locks ({error}); give each process its part, --shard I/N",
            file.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every combination falls to one part.
        #[test]
        fn parts_share_out_a_sweep(of in 1usize..20, combinations in 0usize..50) {
            let parts: Vec<Share> =
                (1..=of).map(|number| format!("{number}/{of}").parse().unwrap()).collect();
            for combination in 0..combinations {
                prop_assert_eq!(parts.iter().filter(|part| part.has(combination)).count(), 1);
            }
        }
    }

    #[test]
    fn what_is_no_share_is_refused() {
        for text in ["", "0/4", "5/4", "1", "1/0", "a/b", "-1/4", "Auto"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
        assert_eq!("auto".parse(), Ok(Share::Claimed));
    }
}
