//! How EAP-IG names nodes and edges, and which of ours they stand for.

use crate::graph::{Graph, Input, Node, Port, Reader, Writer};

/// An edge of theirs.
pub(super) struct Theirs {
    pub(super) parent: String,
    pub(super) child: String,
    /// `PARENT->CHILD<q>`
    pub(super) name: String,
    /// The edges of our graph that it stands for.
    pub(super) ours: Vec<(Writer, Reader)>,
}

/// Their name of a node.
pub(super) fn name(node: Node) -> String {
    match node {
        Node::Embed => "input".to_owned(),
        Node::Head { layer, head } | Node::KeyValueHead { layer, head } => {
            format!("a{layer}.h{head}")
        }
        Node::Mlp { layer, .. } => format!("m{layer}"),
        Node::Logits => "logits".to_owned(),
    }
}

/// Their edges in the order of their files: layer by layer, by parent, then by head and by q, k and v.
pub(super) fn edges(graph: &Graph, heads_per_group: usize) -> Vec<Theirs> {
    // By their child; a child's readers of ours, in the order of their names.
    let mut children: Vec<(String, String, Vec<Reader>)> = Vec::new();
    let reader = |node, port| graph.reader_of(Input { node, port });
    let layers =
        graph.writers().iter().filter_map(|node| node.layer()).max().map_or(0, |last| last + 1);
    for layer in 0..layers {
        let heads = graph.writers().iter().filter_map(|node| match node {
            Node::Head { layer: of, head } if *of == layer => Some(*head),
            _ => None,
        });
        for head in heads {
            let own = Node::Head { layer, head };
            let shared = match heads_per_group {
                1 => own,
                group => Node::KeyValueHead { layer, head: head / group },
            };
            for (port, letter, of) in
                [(Port::Query, "q", own), (Port::Key, "k", shared), (Port::Value, "v", shared)]
            {
                children.push((
                    name(own),
                    format!("<{letter}>"),
                    reader(of, port).into_iter().collect(),
                ));
            }
        }
        let mlp = Node::Mlp { layer, part: None };
        let ports = [Port::Input, Port::Gate, Port::Up];
        children.push((
            name(mlp),
            String::new(),
            ports.into_iter().filter_map(|port| reader(mlp, port)).collect(),
        ));
    }
    let logits = reader(Node::Logits, Port::Input).into_iter().collect();
    children.push((name(Node::Logits), String::new(), logits));
    let of_site =
        |child: &&(String, String, Vec<Reader>)| child.0.split('.').next().map(str::to_owned);
    let mut edges = Vec::new();
    for site in children.chunk_by(|a, b| of_site(&a) == of_site(&b)) {
        for (writer, &node) in graph.writers().iter().enumerate().map(|(w, node)| (Writer(w), node))
        {
            for (child, port, readers) in site {
                let ours: Vec<_> = readers.iter().map(|&reader| (writer, reader)).collect();
                if !ours.is_empty()
                    && ours.iter().all(|&(writer, reader)| graph.has_edge(writer, reader))
                {
                    let parent = name(node);
                    let name = format!("{parent}->{child}{port}");
                    edges.push(Theirs { parent, child: child.clone(), name, ours });
                }
            }
        }
    }
    edges
}
