//! A plugin that panics ends as an error that names it, so that a run can save what it has reached.
//! Every plugin the registry builds is wrapped in a guard. What can't return an error (a name, a flag,
//! a graph, examples) passes unguarded; whoever calls plugins catches that one step further out.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};

use crate::attribution::{Attribution, AttributionMethod, Discovered, Needs, Run, Scoring};
use crate::data::example::{Batch, Example};
use crate::evaluation::Evaluation;
use crate::evaluation::metric::{MeasuringMetric, PatchingMetric};
use crate::evaluation::task::{Dataset, Figures, Setting, Split, Task};
use crate::graph::Graph;
use crate::graph::circuit::Circuit;
use crate::lora::Lora;
use crate::model::checkpoint::Checkpoint;
use crate::model::{Architecture, Model};
use crate::pass::{Pass, Readout};
use crate::plugin::registry::Kind;
use crate::tuning::selector::{ParamSelector, Reference};
use crate::weights::parameters::{Parameters, Selection};
use crate::weights::projection::Projection;
use crate::{Error, Result};

/// Where the last panic was, "file:line"; noted by [`note_panics`].
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Has every panic from now on noted for [`caught`] instead of printed; with `RUST_BACKTRACE` set it
/// is printed too.
pub fn note_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let location = panic.location().map(|at| format!("{}:{}", at.file(), at.line()));
        *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = location;
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            print(panic);
        }
    }));
}

/// Calls, and turns a panic into an error that says `what` panicked, where and why.
///
/// # Errors
/// As the call, and if it panics.
pub fn caught<R>(what: &str, call: impl FnOnce() -> Result<R>) -> Result<R> {
    // Unwinding leaves weights and logs as the last finished step left them: they are only written
    // to by whole entries, after everything that can fail.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(panicked(what, &*panic)))
}

fn panicked(what: &str, panic: &(dyn Any + Send)) -> Error {
    let message = (panic.downcast_ref::<String>().map(String::as_str))
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    let location = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
    let at = location.map_or(String::new(), |location| format!(" at {location}"));
    Error::Panicked { what: format!("{what} panicked{at}"), message: message.replace('\n', " ") }
}

/// A plugin with what messages call it.
struct Guarded<T: ?Sized> {
    what: String,
    inner: Box<T>,
}

impl<T: ?Sized> Guarded<T> {
    fn call<R>(&self, call: impl FnOnce(&T) -> Result<R>) -> Result<R> {
        caught(&self.what, || call(&self.inner))
    }
}

/// A kind of plugin, and what messages call one.
macro_rules! kind {
    ($kind:ty, $name:literal) => {
        impl Kind for $kind {
            const NAME: &'static str = $name;

            fn guard(name: &str, inner: Box<Self>) -> Box<Self> {
                Box::new(Guarded { what: format!("{} `{name}`", Self::NAME), inner })
            }
        }
    };
}

kind!(dyn Architecture, "model architecture");
kind!(dyn Task, "task");
kind!(dyn PatchingMetric, "metric");
kind!(dyn MeasuringMetric, "measuring metric");
kind!(dyn AttributionMethod, "attribution method");
kind!(dyn ParamSelector, "selector");

impl Task for Guarded<dyn Task> {
    fn default_metric(&self) -> &str {
        self.inner.default_metric()
    }

    fn load(&self, split: Split, setting: &Setting) -> Result<Box<dyn Dataset>> {
        let inner = self.call(|task| task.load(split, setting))?;
        Ok(Box::new(Guarded { what: self.what.clone(), inner }))
    }

    fn why_no_counterfactual(&self) -> Option<&str> {
        self.inner.why_no_counterfactual()
    }
}

impl Dataset for Guarded<dyn Dataset> {
    fn examples(&self) -> &[Example] {
        self.inner.examples()
    }

    fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures> {
        self.call(|dataset| dataset.evaluate(evaluation))
    }
}

impl PatchingMetric for Guarded<dyn PatchingMetric> {
    fn sum(&self, readout: &Readout, batch: &Batch) -> Result<Tensor> {
        self.call(|metric| metric.sum(readout, batch))
    }

    fn weight(&self, example: &Example) -> f64 {
        self.inner.weight(example)
    }

    fn check(&self, example: &Example) -> Result<()> {
        self.call(|metric| metric.check(example))
    }

    fn task(&self) -> Option<&str> {
        self.inner.task()
    }

    fn is_loss(&self) -> bool {
        self.inner.is_loss()
    }
}

impl MeasuringMetric for Guarded<dyn MeasuringMetric> {
    fn measure(&self, evaluation: &Evaluation, examples: &[Example]) -> Result<f64> {
        self.call(|metric| metric.measure(evaluation, examples))
    }

    fn check(&self, example: &Example) -> Result<()> {
        self.call(|metric| metric.check(example))
    }

    fn needs_untuned(&self) -> bool {
        self.inner.needs_untuned()
    }
}

impl AttributionMethod for Guarded<dyn AttributionMethod> {
    fn needs(&self) -> Needs {
        self.inner.needs()
    }

    fn start<'a>(&self, scoring: Scoring<'a>) -> Result<Box<dyn Attribution + 'a>> {
        let inner = self.call(|method| method.start(scoring))?;
        Ok(Box::new(GuardedAttribution { what: self.what.clone(), inner }))
    }
}

/// A scoring under way with what messages call its method.
struct GuardedAttribution<'a> {
    what: String,
    inner: Box<dyn Attribution + 'a>,
}

impl Attribution for GuardedAttribution<'_> {
    fn add(&mut self, batch: &Batch) -> Result<Option<Run>> {
        caught(&self.what, || self.inner.add(batch))
    }

    fn metric(&self) -> f64 {
        self.inner.metric()
    }

    fn finish(self: Box<Self>) -> Result<Discovered> {
        let Self { what, inner } = *self;
        caught(&what, || inner.finish())
    }
}

impl ParamSelector for Guarded<dyn ParamSelector> {
    fn select(&self, circuit: &Circuit, model: &dyn Model, seed: u64) -> Result<Selection> {
        self.call(|selector| selector.select(circuit, model, seed))
    }

    fn control(&self, tuned: &Reference, model: &dyn Model, seed: u64) -> Result<Selection> {
        self.call(|selector| selector.control(tuned, model, seed))
    }

    fn is_control(&self) -> bool {
        self.inner.is_control()
    }

    fn needs_node_scores(&self) -> bool {
        self.inner.needs_node_scores()
    }

    fn lora(&self, model: &dyn Model) -> Result<Option<Lora>> {
        self.call(|selector| selector.lora(model))
    }

    fn needs_circuit(&self) -> bool {
        self.inner.needs_circuit()
    }
}

impl Architecture for Guarded<dyn Architecture> {
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        let inner = self.call(|architecture| architecture.build(checkpoint))?;
        Ok(Box::new(Guarded { what: self.what.clone(), inner }))
    }
}

impl Model for Guarded<dyn Model> {
    fn graph(&self) -> &Graph {
        self.inner.graph()
    }

    fn parameters(&self) -> &Parameters {
        self.inner.parameters()
    }

    fn forward(&self, pass: &Pass, tokens: &Tensor) -> Result<Readout> {
        self.call(|model| model.forward(pass, tokens))
    }

    fn vocabulary(&self) -> usize {
        self.inner.vocabulary()
    }

    fn context(&self) -> usize {
        self.inner.context()
    }

    fn config(&self) -> &serde_json::Value {
        self.inner.config()
    }

    fn state_dict(&self) -> Result<BTreeMap<String, Tensor>> {
        self.call(|model| model.state_dict())
    }

    fn projections(&self) -> Vec<Projection> {
        self.inner.projections()
    }

    fn heads_share_a_norm(&self) -> bool {
        self.inner.heads_share_a_norm()
    }

    fn device(&self) -> Device {
        self.inner.device()
    }
}
