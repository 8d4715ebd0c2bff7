//! What a run tells other programs as it goes on: TensorBoard's event file, which W&B and MLflow read too. The
//! file has its name from the start, so that TensorBoard can follow it; a run that goes on cuts off what it
//! will do again, and never writes an event twice.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Runner;
use super::folder::RunFolder;
use crate::evaluation::task::Figures;
use crate::results::events::{Event, HyperParameter, What, records};
use crate::tuning::Step;
use crate::{Error, Result, files};

/// What other programs are told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tracking {
    /// Whether the run folder gets an event file for TensorBoard: what log.jsonl has of each step, figures on
    /// held-out examples, and the settings as hyper-parameters.
    pub tensorboard: bool,
}

/// The name is one that programs look for: they want `tfevents`, a time and a host.
const FILE: &str = "events.out.tfevents.0.circuit-tuning";

/// An event file that grows.
pub(super) struct Events {
    path: PathBuf,
    /// Made with the first event.
    file: Option<File>,
    /// What the events say that are there.
    said: BTreeSet<Vec<u8>>,
}

impl Events {
    /// Goes on with the event file of a folder, or a new one.
    ///
    /// # Errors
    /// If a file can't be read or written.
    fn open(folder: &RunFolder) -> Result<Self> {
        let mut events = Self { path: folder.path(FILE), file: None, said: BTreeSet::new() };
        events.resume(usize::MAX)?;
        events.write(0, What::Version)?;
        Ok(events)
    }

    /// Cuts off the events of later steps, and what was not written to its end. `steps` steps were made.
    ///
    /// # Errors
    /// If a file can't be read or written.
    pub(super) fn resume(&mut self, steps: usize) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let bytes = std::fs::read(&self.path).map_err(Error::io(&self.path))?;
        let mut kept = records(&bytes);
        kept.retain(|record| record.step <= steps as u64);
        let whole: Vec<&[u8]> = kept.iter().map(|record| record.bytes).collect();
        if whole.iter().map(|bytes| bytes.len()).sum::<usize>() < bytes.len() {
            files::write_atomically(&self.path, &whole.concat())?;
        }
        self.said = kept.iter().map(|record| record.said.to_vec()).collect();
        self.file = None;
        Ok(())
    }

    /// Writes an event down, unless it is there.
    fn write(&mut self, step: usize, what: What) -> Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let event = Event { wall_time: now.as_secs_f64(), step: step as u64, what };
        let record = event.record();
        let said = records(&record).iter().map(|record| record.said.to_vec()).collect::<Vec<_>>();
        if said.iter().all(|said| self.said.contains(said)) {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = File::options().append(true).create(true).open(&self.path);
                self.file.insert(file.map_err(Error::io(&self.path))?)
            }
        };
        file.write_all(&record).map_err(Error::io(&self.path))?;
        self.said.extend(said);
        Ok(())
    }

    /// Writes down what a step of tuning did. As for other trainers, the first update is step 1.
    ///
    /// # Errors
    /// If the file can't be written.
    pub(super) fn step(&mut self, step: &Step) -> Result<()> {
        let values = serde_json::to_value(step)
            .map_err(|error| Error::input(format!("{}: {error}", self.path.display())))?;
        let scalar = |(name, value): (&String, &Value)| {
            let is_told = name != "step" && !name.ends_with("seconds");
            let number = value.as_f64().or_else(|| value.as_str()?.parse().ok());
            Some((format!("train/{name}"), number.filter(|_| is_told)?))
        };
        let scalars = values.as_object().into_iter().flatten().filter_map(scalar).collect();
        self.write(step.step + 1, What::Scalars(scalars))
    }

    /// Writes down the figures of an evaluation after `steps` steps.
    ///
    /// # Errors
    /// If the file can't be written.
    pub(super) fn figures(&mut self, steps: usize, figures: &Figures) -> Result<()> {
        let scalar = |(name, value): (&String, &f64)| (format!("held_out/{name}"), *value);
        self.write(steps, What::Scalars(figures.iter().map(scalar).collect()))
    }

    /// Has what was written on the disk.
    ///
    /// # Errors
    /// If it can't be.
    pub(super) fn sync(&self) -> Result<()> {
        match &self.file {
            Some(file) => file.sync_data().map_err(Error::io(&self.path)),
            None => Ok(()),
        }
    }
}

impl Runner<'_> {
    /// Returns the event file of a folder, where one is asked for.
    ///
    /// # Errors
    /// If a file can't be read or written.
    pub(super) fn events(&self, folder: &RunFolder) -> Result<Option<Events>> {
        let wanted = self.experiment.tracking.tensorboard && files::writes();
        wanted.then(|| Events::open(folder)).transpose()
    }

    /// Writes down the settings and the figures before tuning.
    ///
    /// # Errors
    /// If a file can't be read or written.
    pub(super) fn track_start(&self, folder: &RunFolder, before: &Figures) -> Result<()> {
        if let Some(mut events) = self.events(folder)? {
            let config: toml::Table = toml::from_str(&self.experiment.resolved()?)
                .map_err(|error| Error::input(format!("{}: {error}", self.experiment.name)))?;
            let mut settings = Vec::new();
            flatten("", &config, &mut settings);
            events.write(0, What::HyperParameters(settings))?;
            events.figures(0, before)?;
        }
        Ok(())
    }

    /// Writes down the figures after `steps` steps, and that this was all.
    ///
    /// # Errors
    /// If a file can't be read or written.
    pub(super) fn track_end(
        &self,
        folder: &RunFolder,
        steps: usize,
        after: &Figures,
    ) -> Result<()> {
        if let Some(mut events) = self.events(folder)? {
            events.figures(steps, after)?;
            events.write(steps, What::Finished)?;
        }
        Ok(())
    }
}

/// Adds the settings of a table, each by its name with its tables': `tuning.lr`. A list is text.
fn flatten(prefix: &str, table: &toml::Table, settings: &mut Vec<(String, HyperParameter)>) {
    for (key, value) in table {
        let name = format!("{prefix}{key}");
        let value = match value {
            toml::Value::Table(table) => {
                flatten(&format!("{name}."), table, settings);
                continue;
            }
            toml::Value::Integer(number) => HyperParameter::Number(*number as f64),
            toml::Value::Float(number) => HyperParameter::Number(*number),
            toml::Value::Boolean(is_on) => HyperParameter::Bool(*is_on),
            toml::Value::String(text) => HyperParameter::Text(text.clone()),
            other => HyperParameter::Text(other.to_string()),
        };
        settings.push((name, value));
    }
}
