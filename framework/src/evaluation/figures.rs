//! Figures in JSON files. JSON has no form for numbers that aren't finite, so they are written as
//! strings: `"Infinity"`, `"-Infinity"`, `"NaN"`. A figure that is `null` is read as NaN.
//!
//! ```
//! use circuit_framework::evaluation::figures::InJson;
//!
//! let figures = [("loss".to_owned(), 800.0), ("perplexity".to_owned(), f64::INFINITY)].into();
//! let json = serde_json::to_string(&InJson(&figures))?;
//! assert_eq!(json, r#"{"loss":800.0,"perplexity":"Infinity"}"#);
//! # Ok::<(), serde_json::Error>(())
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::evaluation::task::Figures;

/// Figures, to be serialized as JSON files have them.
pub struct InJson<'a>(pub &'a Figures);

impl Serialize for InJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(self.0, serializer)
    }
}

/// Serializes figures; with [`deserialize`] it is made for `#[serde(with = …)]`.
///
/// # Errors
/// As the serializer.
pub fn serialize<S: Serializer>(figures: &Figures, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(figures.iter().map(|(name, &value)| (name, Number::from(value))))
}

/// Deserializes what [`serialize`] wrote.
///
/// # Errors
/// If there are other strings, or as the deserializer.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Figures, D::Error> {
    let numbers = BTreeMap::<String, Option<Number>>::deserialize(deserializer)?;
    let value = |number: Option<Number>| number.map_or(f64::NAN, f64::from);
    Ok(numbers.into_iter().map(|(name, number)| (name, value(number))).collect())
}

/// Serializes a number of a struct that JSON files hold; made for `#[serde(serialize_with = …)]`.
///
/// # Errors
/// As the serializer.
pub fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    Number::from(*value).serialize(serializer)
}

/// A number as JSON files have it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Number {
    Finite(f64),
    Other(Name),
}

/// What isn't finite, by JavaScript's names, which Python's `float` reads too.
#[derive(Serialize, Deserialize)]
enum Name {
    Infinity,
    #[serde(rename = "-Infinity")]
    MinusInfinity,
    NaN,
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        match value {
            f64::INFINITY => Self::Other(Name::Infinity),
            f64::NEG_INFINITY => Self::Other(Name::MinusInfinity),
            _ if value.is_nan() => Self::Other(Name::NaN),
            _ => Self::Finite(value),
        }
    }
}

impl From<Number> for f64 {
    fn from(number: Number) -> Self {
        match number {
            Number::Finite(value) => value,
            Number::Other(Name::Infinity) => f64::INFINITY,
            Number::Other(Name::MinusInfinity) => f64::NEG_INFINITY,
            Number::Other(Name::NaN) => f64::NAN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct File {
        #[serde(with = "super")]
        figures: Figures,
    }

    #[test]
    fn every_number_is_read_back_to_the_bit() {
        let values = [0.1, -0.0, 1e300, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        let named = values.iter().enumerate().map(|(index, &value)| (index.to_string(), value));
        let figures: Figures = named.collect();
        let file = File { figures };
        let text = serde_json::to_string(&file).unwrap();
        let read: File = serde_json::from_str(&text).unwrap();
        let bits = |file: &File| file.figures.values().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read), bits(&file), "{text}");
        let read: File = serde_json::from_str(r#"{"figures": {"loss": null}}"#).unwrap();
        assert!(read.figures["loss"].is_nan());
        assert!(serde_json::from_str::<File>(r#"{"figures": {"loss": "much"}}"#).is_err());
    }
}
