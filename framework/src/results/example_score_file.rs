//! The file of each example's own scores, for those who cluster them: one tensor in safetensors' format,
//! written example by example as they come, so that no more than a batch is in memory.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use candle_core::DType;
use serde_json::Value;

use super::provenance::Provenance;
use super::score_file::metadata;
use crate::attribution::EdgeOrder;
use crate::data::example::Example;
use crate::files::{self, Unfinished, tensors};
use crate::graph::Graph;
use crate::{Error, Result, refuse};

/// The largest file that is written, in bytes.
const MOST: u64 = 64 << 30;

/// A file that is being written.
pub struct ExampleScoreFile {
    path: PathBuf,
    file: Unfinished,
    graph: Graph,
    order: EdgeOrder,
    /// Where the data begins.
    start: u64,
}

impl ExampleScoreFile {
    /// Begins a file of one float32 tensor `scores` [examples, writers, readers], examples in this order. The
    /// metadata is a score file's, and has the examples' origins as a JSON list under `examples`.
    ///
    /// # Errors
    /// If it would be absurdly large, or can't be written.
    pub fn create(
        path: &Path,
        graph: &Graph,
        provenance: &Provenance,
        examples: &[&Example],
    ) -> Result<Self> {
        let shape = [examples.len(), graph.writers().len(), graph.readers().len()];
        let bytes = check_size(path, shape)?;
        files::check_room(files::parent(path), bytes, "each example's scores")?;
        let mut metadata = metadata(graph, Some(provenance));
        let origins: Vec<&str> = examples.iter().map(|example| &example.origin[..]).collect();
        metadata.insert("examples".to_owned(), Value::from(origins).to_string().into());
        let header = tensors::header(metadata, [("scores", DType::F32, &shape[..])].into_iter());
        let file = Unfinished::new(path)?;
        file.file().write_all(&header).map_err(Error::io(path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            graph: graph.clone(),
            order: EdgeOrder::of(graph),
            start: header.len() as u64,
        })
    }

    /// Writes some examples' scores [examples, edges], by [`EdgeOrder`].
    ///
    /// # Errors
    /// If they can't be written.
    pub fn write(&self, examples: &[usize], scores: &[f64]) -> Result<()> {
        let mut file = self.file.file();
        for (&example, scores) in examples.iter().zip(scores.chunks(self.order.edge_count())) {
            let matrix = self.order.matrix(&self.graph, scores);
            let bytes: Vec<u8> = matrix.iter().flat_map(|score| score.to_le_bytes()).collect();
            let place = self.start + example as u64 * bytes.len() as u64;
            file.seek(SeekFrom::Start(place))
                .and_then(|_| file.write_all(&bytes))
                .map_err(Error::io(&self.path))?;
        }
        Ok(())
    }

    /// Gives the file its name, once all examples are written.
    ///
    /// # Errors
    /// If it can't have it.
    pub fn finish(self) -> Result<()> {
        self.file.finish()
    }
}

/// The file's size in bytes; what nobody can want written is refused.
fn check_size(path: &Path, [examples, writers, readers]: [usize; 3]) -> Result<u64> {
    let bytes =
        [examples, writers, readers].iter().fold(4u64, |all, &n| all.saturating_mul(n as u64));
    if bytes > MOST {
        refuse!(
            "{}: {examples} examples' scores of {writers} writers × {readers} readers take {} GiB, and at \
             most {} are written; score on fewer with discovery.examples",
            path.display(),
            bytes >> 30,
            MOST >> 30
        );
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absurd_size_is_refused_with_the_figure() {
        let path = Path::new("each.safetensors");
        // GPT-2 small: 280 kB an example.
        assert!(check_size(path, [10_000, 157, 445]).is_ok());
        let error = check_size(path, [1_000_000, 157, 445]).unwrap_err().to_string();
        assert!(error.contains("1000000 examples") && error.contains("260 GiB"), "{error}");
        assert!(check_size(path, [usize::MAX; 3]).is_err());
    }
}
