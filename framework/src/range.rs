//! Which numbers a setting may be. Infinity and NaN, which TOML can spell, never fit.

use std::fmt::Display;

use crate::{Result, refuse};

/// A range of finite numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    FromZero,
    AboveZero,
    FromZeroToBelowOne,
}

impl Range {
    /// Refuses a setting whose value is out of this range.
    ///
    /// # Errors
    /// With the name, the value and what would be right.
    pub(crate) fn check<T: Copy + Display + Into<f64>>(self, name: &str, value: T) -> Result<()> {
        let number = value.into();
        let (fits, right) = match self {
            Range::FromZero => (number >= 0.0, "a finite number from 0 up"),
            Range::AboveZero => (number > 0.0, "a finite number above 0"),
            Range::FromZeroToBelowOne => ((0.0..1.0).contains(&number), "from 0 to below 1"),
        };
        if !(fits && number.is_finite()) {
            refuse!("{name} is {value}; it must be {right}");
        }
        Ok(())
    }
}
