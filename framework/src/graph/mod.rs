//! The model as a graph: which nodes write to the residual stream, which read from it, and the
//! edges between them. Pure structure: weights are in [`crate::weights::parameters`], scores and the chosen
//! edges in [`circuit`].
//!
//! A model is a sequence of *sites*. A site reads the stream through one projection and writes the
//! result back through another: an attention layer or an MLP layer. The embedding is a site that
//! only writes, the unembedding one that only reads. There is an edge from a writer to every
//! reader of a later site, so the graph is acyclic by construction.

pub mod circuit;
pub mod comparison;
pub mod edge_set;
pub mod pruning;
pub mod scores;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

/// A node that writes to or reads from the residual stream, in TransformerLens' terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Node {
    /// Token (and position) embedding.
    Embed,
    /// Attention head `head` of layer `layer`.
    Head { layer: usize, head: usize },
    /// Key/value head `head` of layer `layer`, where a layer has fewer of them than heads: it reads
    /// keys and values for a group of heads, and writes nothing.
    KeyValueHead { layer: usize, head: usize },
    /// The MLP of `layer`; `part` is its index where the MLP is split into heads.
    Mlp { layer: usize, part: Option<usize> },
    /// The unembedding.
    Logits,
}

/// The projection through which a node reads the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Port {
    Query,
    Key,
    Value,
    Gate,
    Up,
    /// The only input of a node that has one: a plain MLP, the unembedding.
    Input,
}

/// A node together with the port it reads through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Input {
    pub node: Node,
    pub port: Port,
}

/// Index of a writer in a [`Graph`], in computation order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Writer(pub usize);

/// Index of a reader in a [`Graph`], in computation order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reader(pub usize);

/// What kind of node: discovery can be limited to some.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Head,
    Mlp,
    Embed,
    Logits,
}

impl Node {
    pub fn kind(self) -> Kind {
        match self {
            Node::Embed => Kind::Embed,
            Node::Head { .. } | Node::KeyValueHead { .. } => Kind::Head,
            Node::Mlp { .. } => Kind::Mlp,
            Node::Logits => Kind::Logits,
        }
    }

    /// The layer a head or MLP is in.
    pub fn layer(self) -> Option<usize> {
        match self {
            Node::Head { layer, .. }
            | Node::KeyValueHead { layer, .. }
            | Node::Mlp { layer, .. } => Some(layer),
            Node::Embed | Node::Logits => None,
        }
    }
}

/// One read-then-write step of the model; see the module's first lines.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Site {
    readers: Range<usize>,
    writers: Range<usize>,
}

/// The nodes of a model in computation order, and through them its edges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    writers: Vec<Node>,
    readers: Vec<Input>,
    sites: Vec<Site>,
    writer_sites: Vec<usize>,
    reader_sites: Vec<usize>,
    writer_index: BTreeMap<Node, Writer>,
    reader_index: BTreeMap<Input, Reader>,
}

impl Graph {
    /// A graph from its sites in computation order, each the inputs it reads through and the nodes
    /// that write its result.
    pub fn new(sites: impl IntoIterator<Item = (Vec<Input>, Vec<Node>)>) -> Self {
        let mut graph = Graph {
            writers: Vec::new(),
            readers: Vec::new(),
            sites: Vec::new(),
            writer_sites: Vec::new(),
            reader_sites: Vec::new(),
            writer_index: BTreeMap::new(),
            reader_index: BTreeMap::new(),
        };
        for (readers, writers) in sites {
            let site = graph.sites.len();
            let first_reader = graph.readers.len();
            let first_writer = graph.writers.len();
            graph.reader_sites.extend(readers.iter().map(|_| site));
            graph.writer_sites.extend(writers.iter().map(|_| site));
            graph.readers.extend(readers);
            graph.writers.extend(writers);
            graph.sites.push(Site {
                readers: first_reader..graph.readers.len(),
                writers: first_writer..graph.writers.len(),
            });
        }
        let writers = graph.writers.iter().enumerate();
        graph.writer_index = writers.map(|(index, &node)| (node, Writer(index))).collect();
        let readers = graph.readers.iter().enumerate();
        graph.reader_index = readers.map(|(index, &input)| (input, Reader(index))).collect();
        graph
    }

    /// A graph with the same sites and only the nodes of these kinds.
    pub fn subset(&self, kinds: &[Kind]) -> Graph {
        let keep = |node: Node| kinds.contains(&node.kind());
        self.filtered(keep, |input| keep(input.node))
    }

    /// A graph with the same sites and only these writers and readers.
    pub fn filtered(&self, writes: impl Fn(Node) -> bool, reads: impl Fn(Input) -> bool) -> Graph {
        Graph::new((0..self.site_count()).map(|site| {
            let readers = self.readers[self.readers_of(site)].iter().copied();
            let writers = self.writers[self.writers_of(site)].iter().copied();
            (
                readers.filter(|&input| reads(input)).collect(),
                writers.filter(|&node| writes(node)).collect(),
            )
        }))
    }

    /// All writers, in computation order.
    pub fn writers(&self) -> &[Node] {
        &self.writers
    }

    /// All readers, in computation order.
    pub fn readers(&self) -> &[Input] {
        &self.readers
    }

    pub fn site_count(&self) -> usize {
        self.sites.len()
    }

    /// The readers of a site, as a range of reader indices.
    pub fn readers_of(&self, site: usize) -> Range<usize> {
        self.sites[site].readers.clone()
    }

    /// The writers of a site, as a range of writer indices.
    pub fn writers_of(&self, site: usize) -> Range<usize> {
        self.sites[site].writers.clone()
    }

    /// The writers computed before `site` reads: those with an edge to each of its readers.
    pub fn writers_before(&self, site: usize) -> Range<usize> {
        0..self.sites[site].writers.start
    }

    /// Whether `writer` is computed before `reader` reads.
    pub fn has_edge(&self, writer: Writer, reader: Reader) -> bool {
        self.writer_sites[writer.0] < self.reader_sites[reader.0]
    }

    /// All edges, by writer, then reader.
    pub fn edges(&self) -> impl Iterator<Item = (Writer, Reader)> + '_ {
        (0..self.writers.len()).map(Writer).flat_map(move |writer| {
            let first = self.sites[self.writer_sites[writer.0]].readers.end;
            (first..self.readers.len()).map(move |reader| (writer, Reader(reader)))
        })
    }

    pub fn edge_count(&self) -> usize {
        (self.writer_sites.iter())
            .map(|&site| self.readers.len() - self.sites[site].readers.end)
            .sum()
    }

    /// The writer of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn writer(&self, name: &str) -> Result<Writer> {
        let node: Node = name.parse()?;
        (self.writer_index.get(&node).copied())
            .ok_or_else(|| Error::input(format!("the model has no writer `{name}`")))
    }

    /// The reader of this name. `head.L.J.k` and `.v` are read as `head.L.kvJ.k` and `.v` where heads
    /// share keys and values: they were named so once.
    ///
    /// # Errors
    /// If there is none.
    pub fn reader(&self, name: &str) -> Result<Reader> {
        let input: Input = name.parse()?;
        (self.reader_of(input))
            .ok_or_else(|| Error::input(format!("the model has no reader `{name}`")))
    }

    /// The index of a writer.
    pub fn writer_of(&self, node: Node) -> Option<Writer> {
        self.writer_index.get(&node).copied()
    }

    /// The index of a reader, by its former name too.
    pub fn reader_of(&self, input: Input) -> Option<Reader> {
        let former = || match input {
            Input { node: Node::Head { layer, head }, port: port @ (Port::Key | Port::Value) } => {
                let node = Node::KeyValueHead { layer, head };
                self.reader_index.get(&Input { node, port })
            }
            _ => None,
        };
        self.reader_index.get(&input).or_else(former).copied()
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Embed => f.write_str("embed"),
            Node::Head { layer, head } => write!(f, "head.{layer}.{head}"),
            Node::KeyValueHead { layer, head } => write!(f, "head.{layer}.kv{head}"),
            Node::Mlp { layer, part: None } => write!(f, "mlp.{layer}"),
            Node::Mlp { layer, part: Some(part) } => write!(f, "mlp.{layer}.{part}"),
            Node::Logits => f.write_str("logits"),
        }
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = match self.port {
            Port::Query => ".q",
            Port::Key => ".k",
            Port::Value => ".v",
            Port::Gate => ".gate",
            Port::Up => ".up",
            Port::Input => "",
        };
        write!(f, "{}{port}", self.node)
    }
}

impl FromStr for Node {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let index = |text: &str| text.parse::<usize>().ok();
        let parts: Vec<&str> = name.split('.').collect();
        let node = match parts[..] {
            ["embed"] => Some(Node::Embed),
            ["logits"] => Some(Node::Logits),
            ["head", layer, head] => match head.strip_prefix("kv") {
                Some(head) => (index(layer).zip(index(head)))
                    .map(|(layer, head)| Node::KeyValueHead { layer, head }),
                None => {
                    (index(layer).zip(index(head))).map(|(layer, head)| Node::Head { layer, head })
                }
            },
            ["mlp", layer] => index(layer).map(|layer| Node::Mlp { layer, part: None }),
            ["mlp", layer, part] => (index(layer).zip(index(part)))
                .map(|(layer, part)| Node::Mlp { layer, part: Some(part) }),
            _ => None,
        };
        node.ok_or_else(|| {
            Error::input(format!(
                "`{name}` is no node; nodes are embed, head.LAYER.HEAD, head.LAYER.kvHEAD, mlp.LAYER, mlp.LAYER.PART, logits"
            ))
        })
    }
}

impl FromStr for Input {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let (node, port) = match name.rsplit_once('.') {
            Some((node, "q")) => (node, Port::Query),
            Some((node, "k")) => (node, Port::Key),
            Some((node, "v")) => (node, Port::Value),
            Some((node, "gate")) => (node, Port::Gate),
            Some((node, "up")) => (node, Port::Up),
            _ => (name, Port::Input),
        };
        Ok(Input { node: node.parse()?, port })
    }
}

/// Nodes and inputs are their names in every file.
macro_rules! serialize_as_name {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
serialize_as_name!(Node);
serialize_as_name!(Input);
