//! What lasts from one step of tuning to the next, and the file that keeps it: a run that was ended goes on
//! from there with the bits that it would have had.
//!
//! The file holds, of each trained parameter, the rows that some step updated: their values, the
//! optimizer's moments and counts; and the circuit, the smoothed scores and how far dropout has drawn. The
//! order of the examples is not in it: it follows from the seed and the step.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::moments::{Moments, Part, gathered, put_back};
use super::{Optimizer, Tuner};
use crate::attribution::Smoother;
use crate::files::tensors::{self, Piece};
use crate::graph::Graph;
use crate::graph::circuit::{Circuit, Edge};
use crate::lora::{Adapters, Training};
use crate::model::Model;
use crate::weights::parameters::{ParamId, Parameter, Parameters, Selection};
use crate::{Error, Result};

/// The state of a run between steps.
pub struct State {
    /// The steps that were made.
    pub(super) step: usize,
    pub(super) circuit: Option<Circuit>,
    pub(super) smoother: Option<Smoother>,
    pub(super) optimizer: Optimizer,
    /// Every row that any step tuned, of the model or of its adapters.
    pub(super) tuned: Selection,
    pub(super) adapters: Option<Training>,
    pub(super) discovery_seconds: f64,
    pub(super) tuning_seconds: f64,
}

/// What of a state isn't tensors: the file's metadata.
#[derive(Serialize, Deserialize)]
struct Plain {
    step: usize,
    edges: Option<Vec<Edge>>,
    /// How many words dropout has drawn, as text: JSON has no such large integers.
    drawn: Option<String>,
    discovery_seconds: f64,
    tuning_seconds: f64,
}

/// Where [`Plain`] stands in the metadata.
const PLAIN: &str = "state";

/// What stands before the names of tensors: a parameter's rows, its rows' counts of updates, the smoothed
/// scores.
const VALUES: &str = "values";
const COUNTS: &str = "counts";
const SMOOTHED: &str = "smoothed";

impl State {
    /// Before the first step.
    ///
    /// # Errors
    /// If the circuit to tune can't be read, or adapters can't be made.
    pub(super) fn new(tuner: &Tuner, graph: &Graph) -> Result<Self> {
        let adapters = tuner.adapters()?;
        let trained =
            adapters.as_ref().map_or(tuner.model.parameters(), |t| t.adapters.parameters());
        Ok(Self {
            step: 0,
            circuit: tuner.tuning.fixed_circuit(tuner.model, graph)?,
            smoother: tuner.tuning.smoothing.map(Smoother::new),
            optimizer: Optimizer::new(tuner.tuning, trained)?,
            tuned: Selection::default(),
            adapters,
            discovery_seconds: 0.0,
            tuning_seconds: 0.0,
        })
    }

    /// The steps that were made.
    pub fn step(&self) -> usize {
        self.step
    }

    /// What is trained: the model's parameters, or those of its adapters.
    pub(super) fn trained<'a>(&'a self, model: &'a dyn Model) -> &'a Parameters {
        match &self.adapters {
            Some(training) => training.adapters.parameters(),
            None => model.parameters(),
        }
    }

    /// Writes the state to a file, parameter by parameter, so that it takes little memory beside what it
    /// keeps. With `moments` false the optimizer's are left out: what comes after the last step needs none.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn write(&self, path: &Path, model: &dyn Model, moments: bool) -> Result<()> {
        let mut pieces = Vec::new();
        for (id, parameter) in self.trained(model).iter().filter(|(id, _)| self.tuned.contains(*id))
        {
            pieces.extend(self.pieces(id, parameter, moments));
        }
        if let Some(smoother) = &self.smoother {
            pieces.extend(smoother.averages().map(|(name, values)| Piece {
                name: format!("{SMOOTHED}/{name}"),
                dtype: DType::F32,
                shape: vec![values.len()],
                values: Box::new(move || Ok(Tensor::new(values, &Device::Cpu)?)),
            }));
        }
        let drawn = self.adapters.as_ref().map(|training| {
            let random = training.random.lock().unwrap_or_else(PoisonError::into_inner);
            random.get_word_pos().to_string()
        });
        let plain = Plain {
            step: self.step,
            edges: self.circuit.as_ref().map(|circuit| circuit.edges.clone()),
            drawn,
            discovery_seconds: self.discovery_seconds,
            tuning_seconds: self.tuning_seconds,
        };
        let metadata = [(PLAIN.to_owned(), Value::from(json!(plain).to_string()))];
        tensors::write(path, metadata.into_iter().collect(), &pieces)
    }

    /// What is kept of one parameter.
    fn pieces<'a>(
        &'a self,
        id: ParamId,
        parameter: &'a Parameter,
        moments: bool,
    ) -> impl Iterator<Item = Piece<'a>> {
        let (rows, width) = (self.tuned.ranges(id), parameter.width());
        let (count, kept) = (self.tuned.rows(id), self.optimizer.moments(id));
        let name = move |kind: &str| format!("{kind}/{}", parameter.name);
        let values = Piece {
            name: name(VALUES),
            dtype: parameter.tensor.dtype(),
            shape: vec![count, width],
            values: Box::new(|| gathered(&parameter.tensor, rows)),
        };
        let counts = Piece {
            name: name(COUNTS),
            dtype: DType::U32,
            shape: vec![parameter.rows()],
            values: Box::new(|| Ok(Tensor::new(&kept.counts[..], &Device::Cpu)?)),
        };
        // Without bfloat16 the weight is its own master.
        let is_kept = move |part: &Part| {
            moments && (*part != Part::Master || parameter.tensor.dtype() == DType::BF16)
        };
        let parts = Part::ALL.into_iter().filter(is_kept).filter_map(move |part| {
            Some(Piece {
                name: name(part.name()),
                dtype: kept.dtype(part)?,
                shape: vec![count, width],
                values: Box::new(move || kept.part(part, rows, width)),
            })
        });
        [values, counts].into_iter().chain(parts)
    }

    /// Puts back what [`State::write`] wrote; the model is as it was before the first step.
    ///
    /// # Errors
    /// If the file is no state of this run.
    pub(super) fn read(&mut self, path: &Path, model: &dyn Model) -> Result<()> {
        let misfit = |what: &str| {
            let path = path.display();
            Error::input(format!("{path}: {what}; resume from the folder of the very run"))
        };
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let whole = |_| misfit("is no whole file of a state");
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(whole)?;
        let plain = header.metadata().as_ref().and_then(|entries| entries.get(PLAIN));
        let plain: Plain = plain
            .and_then(|text| serde_json::from_str(text).ok())
            .ok_or_else(|| misfit("holds no state"))?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        let tensor = |kind: &str, name: &str| tensors.get(&format!("{kind}/{name}"));

        let trained = self.trained(model).clone();
        let counts = |parameter: &Parameter| -> Result<Vec<u32>> {
            match tensor(COUNTS, &parameter.name) {
                Some(counts) if counts.dims() == [parameter.rows()] => Ok(counts.to_vec1()?),
                Some(_) => Err(misfit(&format!(
                    "`{}` has another number of rows than in this model",
                    parameter.name
                ))),
                None => Ok(vec![0; parameter.rows()]),
            }
        };
        let all = trained.iter().map(|(_, p)| counts(p)).collect::<Result<Vec<_>>>()?;
        self.tuned = Selection::rows_where(&trained, |id, row| all[id.0][row] > 0);
        for (id, parameter) in trained.iter().filter(|(id, _)| self.tuned.contains(*id)) {
            let shape = [self.tuned.rows(id), parameter.width()];
            match tensor(VALUES, &parameter.name) {
                Some(values)
                    if values.dims() == shape && values.dtype() == parameter.tensor.dtype() =>
                {
                    put_back(&parameter.tensor, values, self.tuned.ranges(id))?;
                }
                _ => {
                    return Err(misfit(&format!(
                        "the rows of `{}` have another shape or type than in this model",
                        parameter.name
                    )));
                }
            }
        }
        let tuned = &self.tuned;
        self.optimizer.put_back(&trained, |id, parameter| match tuned.contains(id) {
            false => Ok(Moments::default()),
            true => Moments::restored(parameter, tuned.ranges(id), &all[id.0], |part| {
                tensor(part.name(), &parameter.name).cloned()
            }),
        })?;
        if let Some(smoother) = &mut self.smoother {
            smoother.restore(|name| tensor(SMOOTHED, name).and_then(|t| t.to_vec1().ok()));
        }
        if let (Some(training), Some(drawn)) = (&self.adapters, &plain.drawn) {
            let drawn = drawn.parse().map_err(|_| misfit("holds no state of dropout"))?;
            let mut random = training.random.lock().unwrap_or_else(PoisonError::into_inner);
            random.set_word_pos(drawn);
        }
        self.step = plain.step;
        self.circuit = plain.edges.map(|edges| Circuit { edges });
        self.discovery_seconds = plain.discovery_seconds;
        self.tuning_seconds = plain.tuning_seconds;
        Ok(())
    }
}

impl Tuner<'_> {
    /// New adapters, where the selector wants them beside what it selects.
    fn adapters(&self) -> Result<Option<Training>> {
        let Some(lora) = self.selector.lora(self.model)? else {
            return Ok(None);
        };
        let selection = self.selector.select(&Circuit::default(), self.model, self.seed)?;
        let adapters = Adapters::new(
            self.model.parameters(),
            self.model.projections(),
            &selection,
            lora,
            self.seed,
        )?;
        let random = ChaCha8Rng::seed_from_u64(self.seed.wrapping_add(1));
        Ok(Some(Training { adapters: Arc::new(adapters), random: Arc::new(Mutex::new(random)) }))
    }
}
