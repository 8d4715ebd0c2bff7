//! Rotary frequencies: the settings in config.json in both of transformers' spellings, `rope_theta`
//! with `rope_scaling` and `rope_parameters`, and the frequencies that come of them.

use serde::Deserialize;
use serde_json::Value;

use crate::model::checkpoint::Checkpoint;
use crate::ops::rotary::Rotary;
use crate::{Error, Result, refuse};

/// The settings of rotary frequencies.
pub struct Rope {
    pub theta: f64,
    pub scaling: Option<Llama3Scaling>,
    /// The share of a head's width that is rotated.
    pub share: f64,
}

/// Llama 3's scaling for long contexts.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: f64,
}

/// Settings of every type.
const COMMON: [&str; 4] = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];

/// Settings of type `llama3`.
const LLAMA3: [&str; 4] =
    ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];

impl Rope {
    /// Reads a configuration as transformers does.
    ///
    /// # Errors
    /// Naming the first setting that can't be read.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let table = Table::find(checkpoint)?;
        let is_llama3 = table.is_llama3()?;
        table.check_names(if is_llama3 { &LLAMA3 } else { &[] })?;
        table.check_partial()?;
        let scaling = is_llama3.then(|| table.llama3()).transpose()?;
        Ok(Self { theta: table.theta("rope_theta")?, scaling, share: 1.0 })
    }

    /// Reads a configuration in which a part of a head may be rotated; `theta` and `share` are former
    /// names of `rope_theta` and `partial_rotary_factor`.
    ///
    /// # Errors
    /// Naming the first setting that can't be read.
    pub fn read_partial(checkpoint: &Checkpoint, theta: &str, share: &str) -> Result<Self> {
        let table = Table::find(checkpoint)?;
        if table.is_llama3()? {
            refuse!("{}: `{}.rope_type` must be \"default\" here", table.place, table.key);
        }
        table.check_names(&[])?;
        Ok(Self { theta: table.theta(theta)?, scaling: None, share: table.share(share)? })
    }

    /// The rotation of heads of width `d_head` at so many positions.
    pub fn rotary(&self, d_head: usize, positions: usize) -> Rotary {
        let width = (d_head as f64 * self.share) as usize;
        Rotary::new(&frequencies(width, self.theta, self.scaling.as_ref()), positions)
    }
}

/// The table of settings in a configuration: an object, or null where there is none.
struct Table<'a> {
    /// `rope_scaling` or `rope_parameters`.
    key: &'static str,
    settings: &'a Value,
    config: &'a Value,
    /// What messages begin with.
    place: String,
}

impl<'a> Table<'a> {
    fn find(checkpoint: &'a Checkpoint) -> Result<Self> {
        let config = &checkpoint.config;
        let place = format!("{}: config.json", checkpoint.origin);
        let (key, settings) = match (&config["rope_scaling"], &config["rope_parameters"]) {
            (old, Value::Null) => ("rope_scaling", old),
            (Value::Null, new) => ("rope_parameters", new),
            (old, new) if old == new => ("rope_parameters", new),
            _ => refuse!(
                "{place}: `rope_scaling` and `rope_parameters` differ; one of them can be read"
            ),
        };
        if !settings.is_null() && !settings.is_object() {
            refuse!("{place}: `{key}` is no table of settings");
        }
        Ok(Self { key, settings, config, place })
    }

    /// The first of two values that is given.
    fn first(values: [&'a Value; 2]) -> Option<&'a Value> {
        values.into_iter().find(|value| !value.is_null())
    }

    /// Whether the frequencies are scaled as Llama 3's; else they are as they are.
    fn is_llama3(&self) -> Result<bool> {
        let kind = Self::first([&self.settings["rope_type"], &self.settings["type"]]);
        match kind.map_or(Some("default"), Value::as_str) {
            Some("default") => Ok(false),
            Some("llama3") => Ok(true),
            _ => refuse!(
                "{}: `{}.rope_type` is {}; what can be read is \"default\" or \"llama3\"",
                self.place,
                self.key,
                kind.unwrap_or(&Value::Null)
            ),
        }
    }

    fn check_names(&self, known: &[&str]) -> Result<()> {
        for (name, value) in self.settings.as_object().into_iter().flatten() {
            let is_known = COMMON.contains(&name.as_str()) || known.contains(&name.as_str());
            if !is_known && !value.is_null() {
                refuse!(
                    "{}: `{}.{name}` is set; with this rope_type it can't be read",
                    self.place,
                    self.key
                );
            }
        }
        Ok(())
    }

    fn check_partial(&self) -> Result<()> {
        for table in [self.config, self.settings] {
            let partial = &table["partial_rotary_factor"];
            if !partial.is_null() && partial.as_f64() != Some(1.0) {
                refuse!(
                    "{}: `partial_rotary_factor` is {partial}; what can be read is 1",
                    self.place
                );
            }
        }
        Ok(())
    }

    fn share(&self, former: &str) -> Result<f64> {
        let key = "partial_rotary_factor";
        let given = [&self.settings[key], &self.config[key], &self.config[former]];
        let share = given.into_iter().find(|value| !value.is_null());
        let share = share.map_or(Some(1.0), Value::as_f64);
        match share.filter(|share| *share > 0.0 && *share <= 1.0) {
            Some(share) => Ok(share),
            None => refuse!("{}: `{former}` must be a number above 0, at most 1", self.place),
        }
    }

    fn theta(&self, former: &str) -> Result<f64> {
        let key = "rope_theta";
        let given = [&self.settings[key], &self.config[key], &self.config[former]];
        let theta = given.into_iter().find(|value| !value.is_null());
        let theta = theta.map_or(Some(10_000.0), Value::as_f64);
        match theta.filter(|theta| theta.is_finite() && *theta > 0.0) {
            Some(theta) => Ok(theta),
            None => refuse!("{}: `rope_theta` must be a number above 0", self.place),
        }
    }

    fn llama3(&self) -> Result<Llama3Scaling> {
        let original = "original_max_position_embeddings";
        let given = Self::first([&self.config[original], &self.settings[original]]);
        let mut settings = self.settings.clone();
        settings[original] = given.unwrap_or(&self.config["max_position_embeddings"]).clone();
        serde_json::from_value(settings)
            .map_err(|error| Error::input(format!("{}: `{}`: {error}", self.place, self.key)))
    }
}

/// The rotation frequencies [d_head / 2], in radians a position, with Llama 3's scaling.
pub fn frequencies(d_head: usize, theta: f64, scaling: Option<&Llama3Scaling>) -> Vec<f64> {
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
