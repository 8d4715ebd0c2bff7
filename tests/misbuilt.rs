//! Models that say something wrong of themselves, as a mistake in an architecture makes them, don't
//! conform: each is a Llama that computes what it should.

use std::collections::BTreeMap;

use circuit_framework::graph::{Input, Node, Port};
use circuit_framework::weights::projection::Projection;
use circuit_framework::{
    Architecture, Checkpoint, Graph, Model, Owner, Parameters, Pass, Readout, Result, Tensor,
    plugin::conformance,
};

use crate::conformance::architecture;
use crate::support::{Family, Geometry};

/// A Llama, altered in what it says of itself.
struct Altered {
    inner: Box<dyn Model>,
    graph: Graph,
    parameters: Parameters,
    alteration: Alteration,
}

type Rename = fn(Input) -> Input;

#[derive(Clone, Copy)]
struct Alteration {
    /// Renames inputs, of rows' owners and, where `in_graph`, of the graph.
    input: Rename,
    in_graph: bool,
    /// What a tensor is saved as.
    saved: fn(String, Tensor) -> (String, Tensor),
    /// What a projection is called.
    projection: fn(&str) -> Option<String>,
}

const NONE: Alteration = Alteration {
    input: |input| input,
    in_graph: false,
    saved: |name, tensor| (name, tensor),
    projection: |name| Some(name.to_owned()),
};

impl Altered {
    fn new(inner: Box<dyn Model>, alteration: Alteration) -> Self {
        let mut parameters = Parameters::default();
        for (_, parameter) in inner.parameters().iter() {
            let owner = |owner: Owner| match owner {
                Owner::Reader(input) => Owner::Reader((alteration.input)(input)),
                other => other,
            };
            let owners: Vec<(Owner, usize)> =
                parameter.blocks.iter().map(|b| (owner(b.owner), b.module)).collect();
            parameters.add(&parameter.name, parameter.tensor.clone(), &owners).unwrap();
        }
        let graph = inner.graph();
        let graph = Graph::new((0..graph.site_count()).map(|site| {
            let readers = graph.readers()[graph.readers_of(site)].iter().copied();
            let renamed = |input| match alteration.in_graph {
                true => (alteration.input)(input),
                false => input,
            };
            let writers = graph.writers()[graph.writers_of(site)].to_vec();
            (readers.map(renamed).collect(), writers)
        }));
        Self { inner, graph, parameters, alteration }
    }
}

impl Model for Altered {
    fn graph(&self) -> &Graph {
        &self.graph
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn forward(&self, pass: &Pass, tokens: &Tensor) -> Result<Readout> {
        self.inner.forward(pass, tokens)
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
        let saved = |(name, tensor)| (self.alteration.saved)(name, tensor);
        Ok(self.inner.state_dict()?.into_iter().map(saved).collect())
    }

    fn projections(&self) -> Vec<Projection> {
        let renamed = |projection: Projection| {
            let name = (self.alteration.projection)(&projection.name)?;
            Some(Projection { name, ..projection })
        };
        self.inner.projections().into_iter().filter_map(renamed).collect()
    }
}

/// Builds Llamas that are altered.
struct Misbuilt(Alteration);

const LLAMA: Geometry = Geometry {
    family: Family::Llama,
    layers: 2,
    heads: 4,
    kv_heads: 4,
    d_head: 4,
    mlp_heads: 2,
    split_mlp: false,
    tied: false,
};

impl Architecture for Misbuilt {
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        Ok(Box::new(Altered::new(architecture(&LLAMA).build(checkpoint)?, self.0)))
    }
}

/// How the suite refuses Llamas that are altered so.
fn refusal(geometry: &Geometry, alteration: Alteration) -> String {
    let outcome = conformance::architecture(&Misbuilt(alteration), &geometry.config(), 3);
    outcome.unwrap_err().to_string()
}

fn swap_gate_and_up(name: &str) -> String {
    match name.contains("gate_proj") {
        true => name.replace("gate_proj", "up_proj"),
        false => name.replace("up_proj", "gate_proj"),
    }
}

#[test]
fn an_unaltered_model_conforms() {
    conformance::architecture(&Misbuilt(NONE), &LLAMA.config(), 3).unwrap();
}

/// A square matrix, whose shape tells nothing.
#[test]
fn an_output_projection_saved_untransposed_does_not_conform() {
    let saved = |name: String, tensor: Tensor| match name.ends_with("o_proj.weight") {
        true => (name, tensor.t().unwrap().contiguous().unwrap()),
        false => (name, tensor),
    };
    let altered = Alteration { saved, ..NONE };
    let error = refusal(&LLAMA, altered);
    assert!(
        error.contains("0.self_attn.o_proj.weight` in state_dict is not the projec"),
        "{error}"
    );
    let error = refusal(&LLAMA, Alteration { projection: |_| None, ..altered });
    assert!(error.contains("built again from its own state_dict"), "{error}");
    assert!(error.contains("`model.layers.0.self_attn.o_proj.weight` is the first"), "{error}");
}

#[test]
fn gate_and_up_under_each_others_names_do_not_conform() {
    let saved = |name: String, tensor| (swap_gate_and_up(&name), tensor);
    let error = refusal(&LLAMA, Alteration { saved, ..NONE });
    assert!(error.contains("0.mlp.gate_proj.weight` in state_dict is not the projec"), "{error}");
    let error = refusal(&LLAMA, Alteration { saved, projection: |_| None, ..NONE });
    assert!(error.contains("built again from its own state_dict"), "{error}");
    let projection = |name: &str| Some(swap_gate_and_up(name));
    let error = refusal(&LLAMA, Alteration { projection, ..NONE });
    assert!(error.contains("0.mlp.up_proj.weight` in state_dict is not the projec"), "{error}");
    let projection = |name: &str| Some(format!("{name}s"));
    let error = refusal(&LLAMA, Alteration { projection, ..NONE });
    assert!(error.contains("state_dict has no `model.layers.0.self_attn.q_projs"), "{error}");
}

/// Exchanges two ports.
macro_rules! exchange {
    ($one:path, $other:path) => {
        |input: Input| match input.port {
            $one => Input { port: $other, ..input },
            $other => Input { port: $one, ..input },
            _ => input,
        }
    };
}

/// The rows are those of other ports than they are said to be, in the owners alone or in the graph too.
#[test]
fn rows_of_another_port_do_not_conform() {
    let cases: [(Rename, &str); 4] = [
        (exchange!(Port::Query, Port::Key), "`head.0.0.q`: what it reads at the first token"),
        (exchange!(Port::Query, Port::Value), "`head.0.0.v`: the value before the output proj"),
        (exchange!(Port::Key, Port::Value), "`head.0.0.v`: the value before the output proj"),
        (exchange!(Port::Gate, Port::Up), "`mlp.0.up`: the value before the output projection is"),
    ];
    for (input, part) in cases {
        let error = refusal(&LLAMA, Alteration { input, ..NONE });
        assert!(error.contains("in the graph's order they are those of"), "{error}");
        let error = refusal(&LLAMA, Alteration { input, in_graph: true, ..NONE });
        assert!(error.contains(part), "{error}");
    }
}

/// The rows are those of another head, or of another group's key/value head.
#[test]
fn rows_of_another_head_do_not_conform() {
    let query = |input: Input| match input {
        Input { node: Node::Head { layer, head }, port: Port::Query } => {
            Input { node: Node::Head { layer, head: head ^ 1 }, ..input }
        }
        _ => input,
    };
    let error = refusal(&LLAMA, Alteration { input: query, in_graph: true, ..NONE });
    assert!(error.contains("`head.0.1.q` change the value of `head.0.0`"), "{error}");
    let value = |input: Input| match input {
        Input { node: Node::KeyValueHead { layer, head }, port: Port::Value } => {
            Input { node: Node::KeyValueHead { layer, head: head ^ 1 }, ..input }
        }
        _ => input,
    };
    let grouped = Geometry { kv_heads: 2, ..LLAMA };
    let error = refusal(&grouped, Alteration { input: value, in_graph: true, ..NONE });
    assert!(error.contains("`head.0.kv1.v` change the value of `head.0.0`"), "{error}");
}
