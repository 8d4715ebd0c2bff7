//! A plugin that panics ends as an error that names it and the method, so that a run can save what it has
//! reached. Every plugin the registry builds is wrapped in a guard. From a method that can't return an error (a
//! name, a flag, a graph, examples) the panic goes on under its name; whoever calls plugins catches it.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use crate::Result;
use crate::attribution::{AttributionMethod, Discovered, Needs, Run, Scoring};
use crate::data::example::{Batch, Example};
use crate::evaluation::Evaluation;
use crate::evaluation::metric::{MeasuringMetric, PatchingMetric};
use crate::evaluation::task::{Dataset, Figures, Setting, Split, Task};
use crate::graph::Graph;
use crate::graph::circuit::Circuit;
use crate::lora::Lora;
use crate::model::checkpoint::Checkpoint;
use crate::model::{Architecture, Model};
use crate::panics::{caught, named};
use crate::pass::{Pass, Readout, Rules};
use crate::plugin::registry::Kind;
use crate::tuning::selector::{ParamSelector, Reference};
use crate::weights::parameters::{Parameters, Selection};
use crate::weights::projection::Projection;

/// A plugin with what messages call it.
struct Guarded<T: ?Sized> {
    what: String,
    inner: Box<T>,
}

impl<T: ?Sized> Guarded<T> {
    /// Calls a method that can fail.
    fn call<R>(&self, method: &str, call: impl FnOnce(&T) -> Result<R>) -> Result<R> {
        caught(&of(method, &self.what), || call(&self.inner))
    }

    /// Calls one that can't.
    fn ask<'s, R>(&'s self, method: &str, call: impl FnOnce(&'s T) -> R) -> R {
        named(|| of(method, &self.what), || call(&self.inner))
    }
}

/// A method as messages call it.
fn of(method: &str, what: &str) -> String {
    format!("`{method}` of {what}")
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
        self.ask("default_metric", |it| it.default_metric())
    }

    fn load(&self, split: Split, setting: &Setting) -> Result<Box<dyn Dataset>> {
        let inner = self.call("load", |task| task.load(split, setting))?;
        Ok(Box::new(Guarded { what: self.what.clone(), inner }))
    }

    fn why_no_counterfactual(&self) -> Option<&str> {
        self.ask("why_no_counterfactual", |it| it.why_no_counterfactual())
    }
}

impl Dataset for Guarded<dyn Dataset> {
    fn examples(&self) -> &[Example] {
        self.ask("examples", |it| it.examples())
    }

    fn evaluate(&self, evaluation: &Evaluation) -> Result<Figures> {
        self.call("evaluate", |dataset| dataset.evaluate(evaluation))
    }
}

impl PatchingMetric for Guarded<dyn PatchingMetric> {
    fn sum(&self, readout: &Readout, batch: &Batch) -> Result<Tensor> {
        self.call("sum", |metric| metric.sum(readout, batch))
    }

    fn weight(&self, example: &Example) -> f64 {
        self.ask("weight", |it| it.weight(example))
    }

    fn check(&self, example: &Example) -> Result<()> {
        self.call("check", |metric| metric.check(example))
    }

    fn task(&self) -> Option<&str> {
        self.ask("task", |it| it.task())
    }

    fn is_loss(&self) -> bool {
        self.ask("is_loss", |it| it.is_loss())
    }
}

impl MeasuringMetric for Guarded<dyn MeasuringMetric> {
    fn measure(&self, evaluation: &Evaluation, examples: &[Example]) -> Result<f64> {
        self.call("measure", |metric| metric.measure(evaluation, examples))
    }

    fn check(&self, example: &Example) -> Result<()> {
        self.call("check", |metric| metric.check(example))
    }

    fn needs_untuned(&self) -> bool {
        self.ask("needs_untuned", |it| it.needs_untuned())
    }
}

impl AttributionMethod for Guarded<dyn AttributionMethod> {
    fn needs(&self) -> Needs {
        self.ask("needs", |it| it.needs())
    }

    fn rules(&self) -> Rules {
        self.ask("rules", |it| it.rules())
    }

    fn add(&self, scoring: &mut Scoring, batch: &Batch) -> Result<Option<Run>> {
        self.call("add", |method| method.add(scoring, batch))
    }

    fn finish(&self, scoring: Scoring, batches: &[Vec<&Example>]) -> Result<Discovered> {
        self.call("finish", |method| method.finish(scoring, batches))
    }
}

impl ParamSelector for Guarded<dyn ParamSelector> {
    fn select(&self, circuit: &Circuit, model: &dyn Model, seed: u64) -> Result<Selection> {
        self.call("select", |selector| selector.select(circuit, model, seed))
    }

    fn control(&self, tuned: &Reference, model: &dyn Model, seed: u64) -> Result<Selection> {
        self.call("control", |selector| selector.control(tuned, model, seed))
    }

    fn is_control(&self) -> bool {
        self.ask("is_control", |it| it.is_control())
    }

    fn needs_node_scores(&self) -> bool {
        self.ask("needs_node_scores", |it| it.needs_node_scores())
    }

    fn lora(&self, model: &dyn Model) -> Result<Option<Lora>> {
        self.call("lora", |selector| selector.lora(model))
    }

    fn needs_circuit(&self) -> bool {
        self.ask("needs_circuit", |it| it.needs_circuit())
    }
}

impl Architecture for Guarded<dyn Architecture> {
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        let inner = self.call("build", |architecture| architecture.build(checkpoint))?;
        Ok(Box::new(Guarded { what: self.what.clone(), inner }))
    }

    fn example(&self) -> Option<serde_json::Value> {
        self.ask("example", |it| it.example())
    }
}

impl Model for Guarded<dyn Model> {
    fn graph(&self) -> &Graph {
        self.ask("graph", |it| it.graph())
    }

    fn parameters(&self) -> &Parameters {
        self.ask("parameters", |it| it.parameters())
    }

    fn forward(&self, pass: &Pass, tokens: &Tensor) -> Result<Readout> {
        self.call("forward", |model| model.forward(pass, tokens))
    }

    fn vocabulary(&self) -> usize {
        self.ask("vocabulary", |it| it.vocabulary())
    }

    fn context(&self) -> usize {
        self.ask("context", |it| it.context())
    }

    fn config(&self) -> &serde_json::Value {
        self.ask("config", |it| it.config())
    }

    fn state_dict(&self) -> Result<BTreeMap<String, Tensor>> {
        self.call("state_dict", |model| model.state_dict())
    }

    fn projections(&self) -> Vec<Projection> {
        self.ask("projections", |it| it.projections())
    }

    fn heads_share_a_norm(&self) -> bool {
        self.ask("heads_share_a_norm", |it| it.heads_share_a_norm())
    }

    fn features(&self) -> Vec<&'static str> {
        self.ask("features", |it| it.features())
    }

    fn device(&self) -> Device {
        self.ask("device", |it| it.device())
    }
}
