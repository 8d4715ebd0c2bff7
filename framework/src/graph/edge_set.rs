//! Sets of a model's edges: the graph that is looked at, which is the edges between nodes of some kinds,
//! and circuits in it. Edges are those of the model's whole graph, by its indices.

use std::collections::BTreeMap;

use super::{Graph, Kind, Node, Port, Reader, Writer};

/// Some of the edges of a model's whole graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeSet {
    readers: usize,
    /// A bit for each of [writers, readers], row-major.
    bits: Vec<u64>,
}

impl EdgeSet {
    /// No edge of the model's whole `graph`.
    pub fn empty(graph: &Graph) -> Self {
        let readers = graph.readers().len();
        Self { readers, bits: vec![0; (graph.writers().len() * readers).div_ceil(64)] }
    }

    /// These edges of the model's whole `graph`.
    pub fn of(graph: &Graph, edges: impl IntoIterator<Item = (Writer, Reader)>) -> Self {
        let mut set = Self::empty(graph);
        edges.into_iter().for_each(|edge| set.insert(edge));
        set
    }

    /// All edges of the model's whole `graph` between nodes of these kinds.
    pub fn between(graph: &Graph, kinds: &[Kind]) -> Self {
        let is = |node: Node| kinds.contains(&node.kind());
        Self::of(
            graph,
            graph
                .edges()
                .filter(|&(w, r)| is(graph.writers()[w.0]) && is(graph.readers()[r.0].node)),
        )
    }

    fn bit(&self, (writer, reader): (Writer, Reader)) -> (usize, u64) {
        let index = writer.0 * self.readers + reader.0;
        (index / 64, 1 << (index % 64))
    }

    pub fn contains(&self, edge: (Writer, Reader)) -> bool {
        let (word, bit) = self.bit(edge);
        self.bits[word] & bit != 0
    }

    pub fn insert(&mut self, edge: (Writer, Reader)) {
        let (word, bit) = self.bit(edge);
        self.bits[word] |= bit;
    }

    /// How many edges it has.
    pub fn len(&self) -> usize {
        self.bits.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|&word| word == 0)
    }

    /// Its edges, by writer, then reader.
    pub fn iter(&self) -> impl Iterator<Item = (Writer, Reader)> + '_ {
        let all = (0..self.bits.len() * 64).map(|at| (at / self.readers.max(1), at));
        let edges = all.map(|(writer, at)| (Writer(writer), Reader(at - writer * self.readers)));
        edges.filter(|&edge| self.contains(edge))
    }

    /// Its edges for which `keep` holds.
    pub fn filtered(&self, keep: impl Fn((Writer, Reader)) -> bool) -> Self {
        let mut set = Self { readers: self.readers, bits: vec![0; self.bits.len()] };
        self.iter().filter(|&edge| keep(edge)).for_each(|edge| set.insert(edge));
        set
    }

    /// Its edges that are not in `other`.
    pub fn minus(&self, other: &Self) -> Self {
        self.filtered(|edge| !other.contains(edge))
    }

    /// This circuit in the graph `all` without its dead ends: edges are dropped until every node that is
    /// left has an edge in and one out (`embed` needs none in, `logits` none out), and every edge both its
    /// nodes; into a key/value head, one query head of its group. Edges of the model's whole `graph` that
    /// aren't in `all` are never ablated and so count as kept. With ablation `corrupt` that changes no
    /// metric, unless writers share a norm behind their sublayer (Gemma, OLMo 2): there what a dead end
    /// writes still counts in the norm's scale.
    pub fn without_dead_ends(&self, graph: &Graph, all: &Self) -> Self {
        let serves = served(graph);
        let mut kept = self.clone();
        loop {
            let mut enters = vec![false; graph.writers().len()];
            let mut leaves = enters.clone();
            for (index, &node) in graph.writers().iter().enumerate() {
                enters[index] = node == Node::Embed;
            }
            let present = |&edge: &(Writer, Reader)| kept.contains(edge) || !all.contains(edge);
            for (writer, reader) in graph.edges().filter(present) {
                leaves[writer.0] = true;
                serves[reader.0].iter().for_each(|node| enters[node.0] = true);
            }
            let lives = |node: Writer| enters[node.0] && leaves[node.0];
            let before = kept.len();
            kept = kept.filtered(|(writer, reader)| {
                let nodes = &serves[reader.0];
                let is_logits = graph.readers()[reader.0].node == Node::Logits;
                lives(writer) && (is_logits || nodes.iter().any(|&node| lives(node)))
            });
            if kept.len() == before {
                return kept;
            }
        }
    }
}

/// For each reader, the writers that compute from what it reads: its own node, or of a key/value head the
/// query heads of its group; none for `logits`.
pub(crate) fn served(graph: &Graph) -> Vec<Vec<Writer>> {
    let (mut heads, mut shared) = (BTreeMap::new(), BTreeMap::new());
    for node in graph.writers() {
        if let Node::Head { layer, .. } = node {
            *heads.entry(*layer).or_insert(0) += 1;
        }
    }
    for input in graph.readers().iter().filter(|input| input.port == Port::Key) {
        if let Node::KeyValueHead { layer, .. } = input.node {
            *shared.entry(layer).or_insert(0) += 1;
        }
    }
    let of = |node: Node| -> Vec<Writer> {
        let nodes = match node {
            Node::KeyValueHead { layer, head } => {
                let heads: usize = heads.get(&layer).copied().unwrap_or(0);
                let group = heads / shared.get(&layer).copied().unwrap_or(1);
                let of_group = head * group..(head + 1) * group;
                of_group.map(|head| Node::Head { layer, head }).collect()
            }
            node => vec![node],
        };
        nodes.into_iter().filter_map(|node| graph.writer_of(node)).collect()
    };
    graph.readers().iter().map(|input| of(input.node)).collect()
}
