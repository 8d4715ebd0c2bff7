//! Rotary frequencies: the settings in config.json in both of transformers' spellings, `rope_theta`
//! with `rope_scaling` and `rope_parameters`, and the frequencies that come of them.

use circuit_framework::{Checkpoint, Error, Result, refuse};
use serde::Deserialize;
use serde_json::Value;

/// The settings of rotary frequencies.
pub(crate) struct Rope {
    pub(crate) theta: f64,
    pub(crate) scaling: Option<Llama3Scaling>,
}

/// Llama 3's scaling for long contexts.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Llama3Scaling {
    pub(crate) factor: f64,
    pub(crate) low_freq_factor: f64,
    pub(crate) high_freq_factor: f64,
    pub(crate) original_max_position_embeddings: f64,
}

/// Keys beside those of the type itself.
const COMMON: [&str; 4] = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
const LLAMA3: [&str; 4] =
    ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];

impl Rope {
    /// Reads a configuration as transformers does.
    ///
    /// # Errors
    /// Naming the first setting that can't be read.
    pub(crate) fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let (origin, config) = (&checkpoint.origin, &checkpoint.config);
        let (key, settings) = match (&config["rope_scaling"], &config["rope_parameters"]) {
            (old, Value::Null) => ("rope_scaling", old),
            (Value::Null, new) => ("rope_parameters", new),
            (old, new) if old == new => ("rope_parameters", new),
            _ => refuse!(
                "{origin}: config.json: `rope_scaling` and `rope_parameters` differ; one of them can be read"
            ),
        };
        if !settings.is_null() && !settings.is_object() {
            refuse!("{origin}: config.json: `{key}` is no table of settings");
        }
        let kind = [&settings["rope_type"], &settings["type"]];
        let kind = kind.into_iter().find(|kind| !kind.is_null());
        let known: &[&str] = match kind.map_or(Some("default"), Value::as_str) {
            Some("default") => &[],
            Some("llama3") => &LLAMA3,
            _ => refuse!(
                "{origin}: config.json: `{key}.rope_type` is {}; what can be read is \"default\" or \"llama3\"",
                kind.unwrap_or(&Value::Null)
            ),
        };
        for (setting, value) in settings.as_object().into_iter().flatten() {
            let is_known = COMMON.contains(&&**setting) || known.contains(&&**setting);
            if !is_known && !value.is_null() {
                refuse!(
                    "{origin}: config.json: `{key}.{setting}` is set; with this rope_type it can't be read"
                );
            }
        }
        for partial in [&config["partial_rotary_factor"], &settings["partial_rotary_factor"]] {
            if !partial.is_null() && partial.as_f64() != Some(1.0) {
                refuse!(
                    "{origin}: config.json: `partial_rotary_factor` is {partial}; what can be read is 1"
                );
            }
        }
        let theta = [&settings["rope_theta"], &config["rope_theta"]];
        let theta = theta.into_iter().find(|theta| !theta.is_null());
        let theta = theta.map_or(Some(10_000.0), Value::as_f64);
        let Some(theta) = theta.filter(|theta| theta.is_finite() && *theta > 0.0) else {
            refuse!("{origin}: config.json: `rope_theta` must be a number above 0");
        };
        let scaling = match known {
            [] => None,
            _ => {
                let mut settings = settings.clone();
                let original = "original_max_position_embeddings";
                let given = [&config[original], &settings[original]];
                let given = given.into_iter().find(|value| !value.is_null()).cloned();
                settings[original] =
                    given.unwrap_or_else(|| config["max_position_embeddings"].clone());
                let scaling = serde_json::from_value(settings);
                Some(scaling.map_err(|error| {
                    Error::input(format!("{origin}: config.json: `{key}`: {error}"))
                })?)
            }
        };
        Ok(Self { theta, scaling })
    }
}

/// The rotation frequencies [d_head / 2], in radians a position, with Llama 3's scaling.
pub(crate) fn frequencies(d_head: usize, theta: f64, scaling: Option<&Llama3Scaling>) -> Vec<f64> {
    let plain = (0..d_head / 2).map(|i| theta.powf(-2.0 * i as f64 / d_head as f64));
    let Some(scaling) = scaling else {
        return plain.collect();
    };
    let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
    let scale = |frequency: f64| {
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let turns = scaling.original_max_position_embeddings / wavelength;
        let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        frequency * (smooth + (1.0 - smooth) / scaling.factor)
    };
    plain.map(scale).collect()
}
