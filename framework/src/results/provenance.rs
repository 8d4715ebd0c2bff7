//! What a result is of. Score files, circuits and run folders say which model, task, metric and settings
//! they came from, so that a result of another model is refused instead of being read as this one's.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::attribution::{Ablation, Positions};
use crate::graph::{Kind, Node, Port};
use crate::model::Model;
use crate::weights::parameters::Owner;
use crate::{Result, refuse};

/// A model's identity: its parsed geometry. Checkpoints of one geometry have it in common, tuned ones
/// with the one they were tuned from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    /// config.json's `model_type`.
    pub architecture: String,
    pub layers: usize,
    /// Attention heads a layer.
    pub heads: usize,
    /// Key/value heads a layer; as many as heads where none are shared.
    pub key_value_heads: usize,
    /// The residual stream's width.
    pub d_model: usize,
    /// A head's width.
    pub d_head: usize,
    /// An MLP's neurons.
    pub mlp_width: usize,
    pub vocabulary: usize,
}

impl Geometry {
    /// The geometry of a model's first layer, and how many layers there are.
    pub fn of(model: &dyn Model) -> Self {
        let graph = model.graph();
        let parameters = model.parameters();
        let heads = graph.writers().iter().filter(|n| matches!(n, Node::Head { layer: 0, .. }));
        let keys = graph.readers().iter().filter(|input| input.port == Port::Key);
        let rows_of = |owns: &dyn Fn(Node) -> bool| -> usize {
            let blocks = parameters.iter().flat_map(|(_, p)| p.blocks.iter().map(move |b| (p, b)));
            let written = blocks.filter(|(parameter, block)| {
                // A bias is one row, and no weight is.
                parameter.rows() > 1 && matches!(block.owner, Owner::Writer(node) if owns(node))
            });
            written.map(|(_, block)| block.rows.len()).sum()
        };
        Self {
            architecture: model.config()["model_type"].as_str().unwrap_or_default().to_owned(),
            layers: graph.writers().iter().filter_map(|n| n.layer()).max().map_or(0, |n| n + 1),
            heads: heads.count(),
            key_value_heads: keys.filter(|input| input.node.layer() == Some(0)).count(),
            d_model: parameters.iter().map(|(_, p)| p.width()).max().unwrap_or(0),
            d_head: rows_of(&|node| node == Node::Head { layer: 0, head: 0 }),
            mlp_width: rows_of(&|node| matches!(node, Node::Mlp { layer: 0, .. })),
            vocabulary: model.vocabulary(),
        }
    }

    /// How many heads share a key/value head.
    pub fn heads_per_group(&self) -> usize {
        self.heads / self.key_value_heads.max(1)
    }

    /// Refuses a model of another geometry than this, which is of what the file `path` holds.
    ///
    /// # Errors
    /// Naming what differs.
    pub fn check(&self, path: &Path, model: &dyn Model) -> Result<()> {
        let own = Geometry::of(model);
        if *self == own {
            return Ok(());
        }
        let differences = [
            ("layers", self.layers, own.layers),
            ("heads", self.heads, own.heads),
            ("key/value heads", self.key_value_heads, own.key_value_heads),
            ("d_model", self.d_model, own.d_model),
            ("d_head", self.d_head, own.d_head),
            ("MLP neurons", self.mlp_width, own.mlp_width),
            ("tokens in the vocabulary", self.vocabulary, own.vocabulary),
        ];
        let numbers = (differences.iter().filter(|(_, theirs, own)| theirs != own))
            .map(|(name, theirs, own)| format!("{theirs} {name} for {own}"));
        let kind = (self.architecture != own.architecture)
            .then(|| format!("{} for {}", self.architecture, own.architecture));
        let differences: Vec<String> = kind.into_iter().chain(numbers).collect();
        refuse!(
            "{}: this is of another model ({}); give the model it was made with",
            path.display(),
            differences.join(", ")
        )
    }
}

/// Refuses a file of another model. One that doesn't say which model it is of is let pass with a
/// warning.
///
/// # Errors
/// Naming what differs.
pub(crate) fn check_model(
    provenance: Option<&Provenance>,
    path: &Path,
    model: &dyn Model,
) -> Result<()> {
    match provenance {
        Some(provenance) => provenance.model.check(path, model),
        None => {
            log::warn!(
                "{}: doesn't say which model it is of, as files of former versions; only its nodes' \
                 names are compared",
                path.display()
            );
            Ok(())
        }
    }
}

/// Where scores or a circuit came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    pub model: Geometry,
    /// The model as it was named.
    pub model_path: String,
    /// The token that texts are begun with, if any.
    #[serde(default)]
    pub bos: Option<String>,
    /// The registered names.
    pub task: String,
    pub metric: String,
    pub method: String,
    pub ablation: Ablation,
    pub positions: Positions,
    /// The kinds of nodes in the graph.
    pub nodes: Vec<Kind>,
    pub seed: u64,
    /// How many examples the edges were scored on.
    pub examples: usize,
    /// The program's version.
    pub version: String,
}

impl std::fmt::Display for Provenance {
    /// One line for a drawing: `logit_diff, eap, mean ablation at key positions, 16 examples`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let examples = if self.examples == 1 { "example" } else { "examples" };
        write!(
            f,
            "{}, {}, {} ablation at {} positions, {} {examples}",
            self.metric,
            self.method,
            self.ablation.name(),
            self.positions.name(),
            self.examples
        )
    }
}
