//! A model: an attention-only transformer (Elhage et al., 2021, "A Mathematical Framework for
//! Transformer Circuits"), with learned positions and layer norms. A checkpoint is a folder with
//! config.json, whose `model_type` is the registered name, and model.safetensors.

use std::collections::BTreeMap;
use std::sync::Arc;

use circuit_framework::graph::{Input, Node, Port};
use circuit_framework::ops::attention::Attention;
use circuit_framework::ops::norm::Norm;
use circuit_framework::pass::{Embedding, Reading, Unembedding, Writing};
use circuit_framework::weights::parameters::Param;
use circuit_framework::{
    Architecture, Checkpoint, Error, Graph, Model, Owner, Parameters, Pass, Readout, Result,
    Tensor, refuse, register,
};
use serde::{Deserialize, Serialize};

/// No options.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct AttentionOnly {}

/// config.json.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
}

struct Transformer {
    json: serde_json::Value,
    config: Config,
    graph: Graph,
    parameters: Parameters,
    embedding: Arc<Embedding>,
    /// A layer: how it reads, how it writes.
    layers: Vec<(Arc<Reading>, Arc<Writing>)>,
    unembedding: Arc<Unembedding>,
}

impl Config {
    fn attention(&self) -> Attention {
        let (heads, d_head) = (self.n_head, self.n_embd / self.n_head);
        Attention { heads, kv_heads: heads, d_head, rotary: None }
    }

    /// A layer's inputs in the order of its rows: all queries, all keys, all values.
    fn inputs(&self, layer: usize) -> Vec<Input> {
        let ports = [Port::Query, Port::Key, Port::Value];
        let of_port = |port| self.nodes(layer).into_iter().map(move |node| Input { node, port });
        ports.into_iter().flat_map(of_port).collect()
    }

    fn nodes(&self, layer: usize) -> Vec<Node> {
        (0..self.n_head).map(|head| Node::Head { layer, head }).collect()
    }

    /// The embedding writes, every layer reads and writes, the unembedding reads.
    fn graph(&self) -> Graph {
        let mut sites = vec![(vec![], vec![Node::Embed])];
        sites.extend((0..self.n_layer).map(|layer| (self.inputs(layer), self.nodes(layer))));
        sites.push((vec![Input { node: Node::Logits, port: Port::Input }], vec![]));
        Graph::new(sites)
    }
}

/// Takes the weights out of a checkpoint and says who owns them.
struct Builder {
    checkpoint: Checkpoint,
    parameters: Parameters,
    config: Config,
}

impl Builder {
    fn shared(&mut self, name: &str, shape: &[usize]) -> Result<Param> {
        let tensor = self.checkpoint.take(name, shape)?;
        self.parameters.add_shared(name, tensor)
    }

    fn norm(&mut self, name: &str) -> Result<Norm> {
        let d_model = self.config.n_embd;
        Ok(Norm {
            weight: self.shared(&format!("{name}.weight"), &[d_model])?,
            bias: Some(self.shared(&format!("{name}.bias"), &[d_model])?),
            epsilon: 1e-5,
        })
    }

    fn layer(&mut self, layer: usize) -> Result<(Arc<Reading>, Arc<Writing>)> {
        let d_model = self.config.n_embd;
        let norm = self.norm(&format!("blocks.{layer}.ln"))?;
        // A row of these belongs to the head whose rows it is among.
        let readers: Vec<(Owner, usize)> = (self.config.inputs(layer).into_iter().enumerate())
            .map(|(index, input)| (Owner::Reader(input), index / self.config.n_head))
            .collect();
        let writers: Vec<(Owner, usize)> =
            self.config.nodes(layer).into_iter().map(|node| (Owner::Writer(node), 0)).collect();
        let (qkv, out) = (format!("blocks.{layer}.W_QKV"), format!("blocks.{layer}.W_O"));
        let read = self.checkpoint.take(&qkv, &[3 * d_model, d_model])?;
        let write = self.checkpoint.take(&out, &[d_model, d_model])?;
        let reading = Reading {
            site: 1 + layer,
            norm,
            weight: self.parameters.add(qkv, read, &readers)?,
            bias: None,
        };
        let writing = Writing {
            site: 1 + layer,
            weight: self.parameters.add(out, write, &writers)?,
            bias: None,
            bias_is_written: false,
        };
        Ok((Arc::new(reading), Arc::new(writing)))
    }
}

impl Architecture for AttentionOnly {
    fn build(&self, checkpoint: Checkpoint) -> Result<Box<dyn Model>> {
        let (json, origin) = (checkpoint.config.clone(), checkpoint.origin.clone());
        let config: Config = serde_json::from_value(json.clone())
            .map_err(|error| Error::input(format!("{origin}: config.json: {error}")))?;
        let Config { vocab_size, n_positions, n_embd, n_layer, n_head } = config;
        if n_head == 0 || !n_embd.is_multiple_of(n_head) {
            refuse!("{origin}: config.json: n_embd {n_embd} is no multiple of n_head {n_head}");
        }
        let graph = config.graph();
        let parameters = Parameters::default();
        let mut builder = Builder { checkpoint, parameters, config: config.clone() };
        let embedding = Embedding {
            tokens: builder.shared("W_E", &[vocab_size, n_embd])?,
            positions: Some(builder.shared("W_pos", &[n_positions, n_embd])?),
        };
        let layers = (0..n_layer).map(|layer| builder.layer(layer)).collect::<Result<_>>()?;
        let unembedding = Unembedding {
            site: 1 + n_layer,
            norm: builder.norm("ln_final")?,
            weight: builder.shared("W_U", &[vocab_size, n_embd])?,
        };
        let Builder { checkpoint, parameters, .. } = builder;
        checkpoint.finish(|_| false)?;
        Ok(Box::new(Transformer {
            json,
            config,
            graph,
            parameters,
            embedding: Arc::new(embedding),
            layers,
            unembedding: Arc::new(unembedding),
        }))
    }
}

impl Model for Transformer {
    fn graph(&self) -> &Graph {
        &self.graph
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn forward(&self, pass: &Pass, tokens: &Tensor) -> Result<Readout> {
        let mut x = pass.embed(&self.embedding, tokens)?;
        for (layer, (reading, writing)) in self.layers.iter().enumerate() {
            let qkv = pass.read(reading, &x)?;
            let z = pass.attend(layer, &self.config.attention(), &qkv)?;
            x = pass.write(writing, &x, &z)?;
        }
        pass.finish(&self.unembedding, &x)
    }

    fn vocabulary(&self) -> usize {
        self.config.vocab_size
    }

    fn context(&self) -> usize {
        self.config.n_positions
    }

    fn config(&self) -> &serde_json::Value {
        &self.json
    }

    fn state_dict(&self) -> Result<BTreeMap<String, Tensor>> {
        let named = |name: &str, tensor: &Tensor| -> Result<(String, Tensor)> {
            // A vector is kept as one row.
            let vector = name.contains("ln");
            Ok((name.to_owned(), if vector { tensor.squeeze(0)? } else { tensor.clone() }))
        };
        self.parameters.iter().map(|(_, p)| named(&p.name, &p.tensor)).collect()
    }
}

register!(
    dyn Architecture,
    AttentionOnly,
    "attention_only",
    "attention layers without MLPs, with learned positions"
);

#[cfg(test)]
mod tests {
    use super::*;
    use circuit_framework::plugin::conformance;

    #[test]
    fn it_conforms() {
        let config = serde_json::from_str(include_str!("../config.json")).unwrap();
        conformance::architecture(&AttentionOnly {}, &config, 0).unwrap();
    }
}
