//! EAP-IG's graph files (`Graph.to_json` of github.com/hannamw/EAP-IG), which MIB's circuit track takes too:
//! circuits and scores of ours put into that form, and taken out of it.
//!
//! A file is one JSON object: `cfg` has `n_layers`, `n_heads`, `parallel_attn_mlp` and `d_model`; `nodes` has
//! of each node whether it is `in_graph`, `edges` of each edge its `score` and whether it is `in_graph`.
//! Nodes are `input`, `aL.hH`, `mL` and `logits`; edges are `PARENT->CHILD`, into a head
//! `PARENT->aL.hH<q>`, `<k>` and `<v>`.
//!
//! Two things have another grain there. Every head has keys and values of its own: an edge into ones that
//! several heads share is as many edges. An MLP has one reader: edges into gate and up projection are one
//! edge, of their scores' sum. So each of their edges stands for one or two of ours, and ours may stand in
//! several of theirs.

mod file;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::graph::circuit::{Circuit, Edge};
use crate::graph::scores::Scores;
use crate::graph::{Graph, Node, Reader, Writer};
use crate::model::Model;
use crate::results::provenance::Geometry;
use crate::{Result, refuse};
use file::{Config, GraphFile, NodeEntry};
use names::{Theirs, edges, name};

/// Which edges of a model's graph stand for which in their files.
pub struct Correspondence {
    graph: Graph,
    config: Config,
    heads_per_group: usize,
    /// Their edges in the order of their files, each with those of ours that it stands for.
    edges: Vec<Theirs>,
}

/// What came of a conversion.
pub struct Converted<T> {
    pub result: T,
    /// What could not be carried over as it was, a line each.
    pub losses: Vec<String>,
}

impl Correspondence {
    /// The correspondence for a model's whole graph.
    ///
    /// # Errors
    /// If its MLPs are split into heads, which their graphs know nothing of.
    pub fn of(model: &dyn Model) -> Result<Self> {
        let graph = model.graph().clone();
        if let Some(node) =
            graph.writers().iter().find(|n| matches!(n, Node::Mlp { part: Some(_), .. }))
        {
            refuse!(
                "EAP-IG's graphs have one node an MLP, but this model's are split into heads ({node}); load \
                 it without mlp_head_width, and find the circuit so"
            );
        }
        let geometry = Geometry::of(model);
        let first = |node| graph.writer_of(node);
        let attention = first(Node::Head { layer: 0, head: 0 });
        let mlp = graph.readers().iter().position(|r| r.node == Node::Mlp { layer: 0, part: None });
        let parallel =
            attention.zip(mlp).is_some_and(|(head, mlp)| !graph.has_edge(head, Reader(mlp)));
        let config = Config {
            n_layers: geometry.layers,
            n_heads: geometry.heads,
            parallel_attn_mlp: parallel,
            d_model: geometry.d_model,
        };
        let heads_per_group = geometry.heads_per_group();
        let edges = edges(&graph, heads_per_group);
        Ok(Self { graph, config, heads_per_group, edges })
    }

    /// How many edges their graph of this model has.
    pub fn edge_count(&self) -> usize {
        self.edges.len()
    }

    /// How many of their edges a circuit becomes.
    pub fn count(&self, circuit: &Circuit) -> usize {
        let kept = self.ours(circuit);
        self.edges.iter().filter(|edge| edge.ours.iter().any(|own| kept.contains_key(own))).count()
    }

    /// The score of each edge of a circuit.
    fn ours(&self, circuit: &Circuit) -> BTreeMap<(Writer, Reader), f32> {
        let ends = |edge: &Edge| {
            let (writer, reader) =
                (self.graph.writer_of(edge.writer), self.graph.reader_of(edge.reader));
            Some((writer.zip(reader)?, edge.score))
        };
        circuit.edges.iter().filter_map(ends).collect()
    }

    /// A circuit in their form, with the scores of all edges, or of its own where none are given. All that
    /// doesn't stand in a circuit file, nodes among it, follows from the edges: as EAP-IG does it, a node is
    /// in the graph that an edge leads into and one out of.
    ///
    /// # Errors
    /// If there are scores and several heads share keys and values: whose part of a score is whose isn't
    /// known.
    pub fn to_eap_ig(
        &self,
        circuit: &Circuit,
        scores: Option<&Scores>,
    ) -> Result<Converted<Value>> {
        let group = self.heads_per_group;
        if scores.is_some() && group > 1 {
            refuse!(
                "EAP-IG scores keys and values head by head, but here {group} heads share them, and each \
                 one's part of a score isn't known; convert the circuit without --scores"
            );
        }
        let kept = self.ours(circuit);
        let all = scores.map(|scores| by_edge(&self.graph, scores));
        let score = |own: &(Writer, Reader)| -> f64 {
            let of = all.as_ref().unwrap_or(&kept);
            let shares = if self.is_shared(own.1) { group } else { 1 };
            of.get(own).map_or(0.0, |&score| f64::from(score) / shares as f64)
        };
        let (mut entries, mut into, mut out_of) = (Map::new(), BTreeSet::new(), BTreeSet::new());
        for edge in &self.edges {
            let in_graph = edge.ours.iter().any(|own| kept.contains_key(own));
            let score: f64 = edge.ours.iter().map(score).sum();
            entries.insert(edge.name.clone(), json!({ "score": score, "in_graph": in_graph }));
            if in_graph {
                into.insert(&edge.child[..]);
                out_of.insert(&edge.parent[..]);
            }
        }
        let nodes = self.nodes().into_iter().map(|name| {
            let receives = name == "input" || into.contains(&name[..]);
            let in_graph = name == "logits" || (receives && out_of.contains(&name[..]));
            (name, json!({ "in_graph": in_graph }))
        });
        let nodes: Map<String, Value> = nodes.collect();
        let losses = self.losses_to(&kept, all.as_ref());
        Ok(Converted {
            result: json!({ "cfg": self.config, "nodes": nodes, "edges": entries }),
            losses,
        })
    }

    /// Their names of all nodes, in their order.
    fn nodes(&self) -> Vec<String> {
        let Config { n_layers, n_heads, .. } = self.config;
        let layer = |layer| {
            let heads = (0..n_heads).map(move |head| Node::Head { layer, head });
            heads.chain([Node::Mlp { layer, part: None }])
        };
        let nodes = std::iter::once(Node::Embed).chain((0..n_layers).flat_map(layer));
        nodes.chain([Node::Logits]).map(name).collect()
    }

    fn is_shared(&self, reader: Reader) -> bool {
        matches!(self.graph.readers()[reader.0].node, Node::KeyValueHead { .. })
    }

    /// What of a circuit, and of scores where there are any, has no place in their files.
    fn losses_to(
        &self,
        kept: &BTreeMap<(Writer, Reader), f32>,
        scores: Option<&BTreeMap<(Writer, Reader), f32>>,
    ) -> Vec<String> {
        let mut losses = vec!["what the circuit is of: task, metric, method, settings".to_owned()];
        match scores {
            None => losses.push(
                "scores of edges outside the circuit are not given: 0 stands there".to_owned(),
            ),
            Some(scores) => {
                let missing = self.graph.edges().filter(|own| !scores.contains_key(own)).count();
                push_counted(&mut losses, missing, "edges have no score: 0 stands there");
            }
        }
        let alone = self.edges.iter().filter(|edge| {
            let count = edge.ours.iter().filter(|own| kept.contains_key(own)).count();
            count > 0 && count < edge.ours.len()
        });
        let what = "edges into a gate or an up projection alone: they are now into the whole MLP";
        push_counted(&mut losses, alone.count(), what);
        let shared = kept.keys().filter(|own| self.is_shared(own.1)).count();
        let what = "edges into keys or values that heads share: each is now one into every head of its \
                    group, its score divided among them";
        push_counted(&mut losses, shared, what);
        losses
    }

    /// The circuit that a file of theirs holds, best first by |score|, and the scores of all edges.
    ///
    /// # Errors
    /// If the file is malformed or of another model, names an edge that is none, or has a score that isn't
    /// a finite number.
    pub fn read(&self, path: &Path) -> Result<Converted<(Circuit, Scores)>> {
        let file = GraphFile::read(path)?;
        self.check(path, &file.cfg)?;
        let known: BTreeMap<&str, &Theirs> =
            self.edges.iter().map(|edge| (&edge.name[..], edge)).collect();
        let columns = self.graph.readers().len();
        let mut values = vec![0f64; self.graph.writers().len() * columns];
        let mut kept = BTreeSet::new();
        for (name, entry) in &file.edges {
            let Some(edge) = known.get(&name[..]) else {
                refuse!(
                    "{}: `{name}` is no edge of this model's graph; edges are named as in EAP-IG, \
                     `input->a0.h0<q>`, `a0.h0->m0`, `m0->logits`",
                    path.display()
                );
            };
            let score = entry.finite_score(path, name)?;
            for own in &edge.ours {
                values[own.0.0 * columns + own.1.0] += score / edge.ours.len() as f64;
                if entry.in_graph {
                    kept.insert(*own);
                }
            }
        }
        let values = values.into_iter().map(|value| value as f32).collect();
        let scores = Scores { graph: self.graph.clone(), values };
        let losses = self.losses_from(&file);
        Ok(Converted { result: (circuit(&scores, kept), scores), losses })
    }

    /// Refuses a file of another model.
    fn check(&self, path: &Path, theirs: &Config) -> Result<()> {
        let own = &self.config;
        let numbers = [
            ("layers", theirs.n_layers, own.n_layers),
            ("heads", theirs.n_heads, own.n_heads),
            ("d_model", theirs.d_model, own.d_model),
        ];
        let numbers = numbers.iter().filter(|(_, theirs, own)| theirs != own);
        let mut differences: Vec<String> =
            numbers.map(|(name, theirs, own)| format!("{theirs} {name} for {own}")).collect();
        if theirs.parallel_attn_mlp != own.parallel_attn_mlp {
            let word = |parallel| if parallel { "parallel" } else { "sequential" };
            let (theirs, own) = (word(theirs.parallel_attn_mlp), word(own.parallel_attn_mlp));
            differences.push(format!("{theirs} attention and MLP for {own}"));
        }
        if !differences.is_empty() {
            refuse!(
                "{}: this is of another model ({}); give the model it was made with",
                path.display(),
                differences.join(", ")
            );
        }
        Ok(())
    }

    /// What of a file of theirs has no place in ours.
    fn losses_from(&self, file: &GraphFile) -> Vec<String> {
        let mut losses = Vec::new();
        let missing = self.edges.iter().filter(|edge| !file.edges.contains_key(&edge.name)).count();
        push_counted(
            &mut losses,
            missing,
            "edges are not in the file: not in the circuit, score 0",
        );
        let unscored = file.edges.values().filter(|entry| entry.score.is_none()).count();
        push_counted(&mut losses, unscored, "edges have no score: 0 stands there");
        let of_nodes = |has: fn(&NodeEntry) -> bool| file.nodes.values().filter(|n| has(n)).count();
        push_counted(&mut losses, of_nodes(|node| node.score.is_some()), "nodes' own scores");
        let neurons = of_nodes(|node| node.neurons.is_some() || node.neurons_scores.is_some());
        push_counted(&mut losses, neurons, "nodes' neurons: whole nodes are read");
        let in_graph =
            |edge: &&Theirs| file.edges.get(&edge.name).is_some_and(|entry| entry.in_graph);
        let halved = self.edges.iter().filter(in_graph).filter(|edge| edge.ours.len() > 1).count();
        let what = "edges into MLPs: each is now one into the gate and one into the up projection, with \
                    half its score";
        push_counted(&mut losses, halved, what);
        let mut heads: BTreeMap<(Writer, Reader), usize> = BTreeMap::new();
        for edge in self.edges.iter().filter(in_graph) {
            edge.ours.iter().for_each(|&own| *heads.entry(own).or_default() += 1);
        }
        let partial = heads
            .iter()
            .filter(|&(own, &count)| self.is_shared(own.1) && count < self.heads_per_group);
        let what = "edges into keys or values of some heads of a group: they are now into what the group \
                    shares";
        push_counted(&mut losses, partial.count(), what);
        losses
    }
}

fn push_counted(losses: &mut Vec<String>, count: usize, what: &str) {
    if count > 0 {
        losses.push(format!("{count} {what}"));
    }
}

/// Scores by the edges of the whole graph, of which they may be of a part.
fn by_edge(whole: &Graph, scores: &Scores) -> BTreeMap<(Writer, Reader), f32> {
    let own = |(writer, reader): (Writer, Reader)| {
        let ends = whole
            .writer_of(scores.graph.writers()[writer.0])
            .zip(whole.reader_of(scores.graph.readers()[reader.0]));
        ends.map(|ends| (ends, scores.of(writer, reader)))
    };
    scores.graph.edges().filter_map(own).collect()
}

/// The edges of a circuit with their scores, best first by |score|.
fn circuit(scores: &Scores, edges: BTreeSet<(Writer, Reader)>) -> Circuit {
    let edge = |(writer, reader): (Writer, Reader)| {
        let ends = (scores.graph.writers()[writer.0], scores.graph.readers()[reader.0]);
        Edge::new(ends.0, ends.1, scores.of(writer, reader))
    };
    let mut edges: Vec<Edge> = edges.into_iter().map(edge).collect();
    // A stable sort: ties go to the lower writer, then the lower reader.
    edges.sort_by(|a, b| b.score.abs().total_cmp(&a.score.abs()));
    Circuit { edges }
}
