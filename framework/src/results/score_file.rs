//! The file that scores are kept in: tensors in safetensors' format, the nodes' names and where the scores
//! came from in its metadata.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};

use super::provenance::{self, Provenance};
use crate::attribution::Certainty;
use crate::files::tensors::{self, Piece};
use crate::graph::scores::Scores;
use crate::graph::{Graph, Input, Node};
use crate::model::Model;
use crate::{Error, Result};

impl Scores {
    /// Writes one float32 tensor `scores` [writers, readers]. The metadata has the node names as JSON
    /// lists under `writers` and `readers`, and what the scores are of, where that is known, as JSON under
    /// `provenance`.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn save<'a>(
        &self,
        path: &Path,
        provenance: impl Into<Option<&'a Provenance>>,
    ) -> Result<()> {
        self.save_with(path, provenance, None)
    }

    /// The same, with what a bootstrap said: the tensors `standard_error` and `resample_share`, float32
    /// [writers, readers] too, and in the metadata, as JSON under `bootstrap`, the number of resamples and
    /// the circuit's mean overlap with theirs.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn save_with<'a>(
        &self,
        path: &Path,
        provenance: impl Into<Option<&'a Provenance>>,
        certainty: Option<&Certainty>,
    ) -> Result<()> {
        let mut metadata = metadata(&self.graph, provenance.into());
        let mut matrices = vec![("scores", &self.values)];
        if let Some(Certainty { bootstrap, standard_errors, resample_shares }) = certainty {
            metadata.insert("bootstrap".to_owned(), json!(bootstrap).to_string().into());
            matrices.push(("standard_error", standard_errors));
            matrices.push(("resample_share", resample_shares));
        }
        let shape = [self.graph.writers().len(), self.graph.readers().len()];
        let piece = |(name, values): (&str, &'_ Vec<f32>)| {
            let tensor = Tensor::from_slice(values, &shape[..], &Device::Cpu)?;
            Ok(Piece {
                name: name.to_owned(),
                dtype: DType::F32,
                shape: shape.to_vec(),
                values: Box::new(move || Ok(tensor.clone())),
            })
        };
        let pieces: Vec<Piece> = matrices.into_iter().map(piece).collect::<Result<_>>()?;
        tensors::write(path, metadata, &pieces)
    }

    /// What the scores in a file are of; none in files of former versions.
    ///
    /// # Errors
    /// If the file is not one of scores.
    pub fn provenance(path: &Path) -> Result<Option<Provenance>> {
        Ok(ScoreFile::read(path)?.provenance)
    }

    /// Reads scores of this model's graph, or of that part of it whose nodes the file names. Files of
    /// former versions, which don't say what they are of, are read with a warning.
    ///
    /// # Errors
    /// If the file is not one of scores, or of another model.
    pub fn load(path: &Path, model: &dyn Model) -> Result<Self> {
        let file = ScoreFile::read(path)?;
        provenance::check_model(file.provenance.as_ref(), path, model)?;
        let place = |error: Error| Error::input(format!("{}: {error}", path.display()));
        let whole = model.graph();
        let writers = file.writers.iter().map(|name| Ok(whole.writers()[whole.writer(name)?.0]));
        let writers: Vec<Node> = writers.collect::<Result<_>>().map_err(place)?;
        let readers = file.readers.iter().map(|name| Ok(whole.readers()[whole.reader(name)?.0]));
        let readers: Vec<Input> = readers.collect::<Result<_>>().map_err(place)?;
        let graph =
            whole.filtered(|node| writers.contains(&node), |input| readers.contains(&input));
        let columns = graph.readers().len();
        let mut values = vec![0f32; graph.writers().len() * columns];
        for (row, &node) in writers.iter().enumerate() {
            for (column, &input) in readers.iter().enumerate() {
                if let (Some(writer), Some(reader)) =
                    (graph.writer_of(node), graph.reader_of(input))
                {
                    let score = file.values[row * readers.len() + column];
                    values[writer.0 * columns + reader.0] = score;
                }
            }
        }
        Ok(Self { graph, values })
    }
}

/// The names of a graph's nodes, and what the scores of its edges are of.
pub(super) fn metadata(graph: &Graph, provenance: Option<&Provenance>) -> Map<String, Value> {
    let list = |names: Vec<String>| Value::from(Value::from(names).to_string());
    let writers = graph.writers().iter().map(Node::to_string).collect();
    let readers = graph.readers().iter().map(Input::to_string).collect();
    let mut metadata = Map::from_iter([
        ("writers".to_owned(), list(writers)),
        ("readers".to_owned(), list(readers)),
    ]);
    if let Some(provenance) = provenance {
        metadata.insert("provenance".to_owned(), json!(provenance).to_string().into());
    }
    metadata
}

/// A score file as it stands, in its own order.
struct ScoreFile {
    writers: Vec<String>,
    readers: Vec<String>,
    provenance: Option<Provenance>,
    values: Vec<f32>,
}

impl ScoreFile {
    fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let malformed = |what: &str| {
            let path = path.display();
            Error::input(format!("{path}: {what}; give a file that `discover --scores` wrote"))
        };
        let cut = |_| malformed("this is no whole safetensors file");
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(cut)?;
        let entry = |name: &str| header.metadata().as_ref().and_then(|entries| entries.get(name));
        // Former versions called the axes otherwise.
        let names = |name: &str, former: &str| -> Result<Vec<String>> {
            let list = entry(name).or_else(|| entry(former));
            (list.and_then(|list| serde_json::from_str(list).ok()))
                .ok_or_else(|| malformed(&format!("the metadata has no list `{name}`")))
        };
        let (writers, readers) = (names("writers", "upstream")?, names("readers", "downstream")?);
        let provenance = entry("provenance").map(|text| serde_json::from_str(text)).transpose();
        let provenance = provenance.map_err(|_| malformed("`provenance` can't be read"))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(cut)?;
        let view =
            tensors.tensor("scores").map_err(|_| malformed("there is no tensor `scores`"))?;
        if view.dtype() != Dtype::F32 || view.shape() != [writers.len(), readers.len()] {
            return Err(malformed("`scores` is not float32 [writers, readers]"));
        }
        let (words, _) = view.data().as_chunks::<4>();
        let values = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
        Ok(Self { writers, readers, provenance, values })
    }
}
