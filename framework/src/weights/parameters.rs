//! A model's weights as rows with owners. Every matrix that touches the residual stream is stored
//! row-blocked, [owner blocks × width, d_model]: what a node owns is a range of rows, so selecting,
//! the sparse gradient, the optimizer's state and "unchanged outside the circuit" are all ranges
//! of rows. A bias of a reading projection is [rows, 1] beside it, owned row by row like it; a
//! vector of d_model that one node owns, or that is shared, is one row.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::Tensor;

use super::layout::{FileTensor, Form};
use crate::Result;
use crate::graph::{Input, Node};

/// Index of a parameter in [`Parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub usize);

/// Which node a block of rows belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// Rows of the projection an input reads through.
    Reader(Input),
    /// Rows of the projection a node writes through.
    Writer(Node),
    /// Embeddings, norms, the attention output bias, the unembedding: no node's own.
    Shared,
}

/// A range of rows, the node that owns them, and the projection they are part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub rows: Range<usize>,
    pub owner: Owner,
    /// Which of the parameter's stacked projections the rows lie in: 0 for query, 1 for key, and
    /// so on. What selector `modules` takes whole.
    pub module: usize,
}

/// One weight matrix.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// The Hugging Face name, or for stacked projections the common part of their names.
    pub name: String,
    /// float32 [rows, width]; updated in place, so clones see every update.
    pub tensor: Tensor,
    /// The rows in order, every row in exactly one block.
    pub blocks: Vec<Block>,
    /// How it stands in Hugging Face's files.
    pub files: Vec<FileTensor>,
}

impl Parameter {
    pub fn rows(&self) -> usize {
        self.tensor.dims()[0]
    }

    pub fn width(&self) -> usize {
        self.tensor.dims()[1]
    }
}

/// A handle to a parameter: what a model's layers hold.
#[derive(Clone, Debug)]
pub struct Param {
    pub id: ParamId,
    pub tensor: Tensor,
}

/// All parameters of a model.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    parameters: Vec<Parameter>,
}

impl Parameters {
    /// Adds a parameter whose rows are split evenly among `owners`, `owners[i]` being the owner of
    /// the i-th block and the module it is part of. A vector becomes one row. In files it stands under
    /// its own name as it is given.
    ///
    /// # Errors
    /// If the tensor's storage can't be made contiguous.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        tensor: Tensor,
        owners: &[(Owner, usize)],
    ) -> Result<Param> {
        let name = name.into();
        let (tensor, form) = match tensor.rank() {
            1 => (tensor.unsqueeze(0)?, Form::Vector),
            _ => (tensor, Form::Rows),
        };
        let files = vec![FileTensor::whole(&name, tensor.dims()[0], form)];
        self.add_with_files(name, tensor, owners, files)
    }

    /// Adds a parameter [rows, width] as [`Parameters::add`] does, with how it stands in files.
    ///
    /// # Errors
    /// If the tensor's storage can't be made contiguous.
    pub fn add_with_files(
        &mut self,
        name: impl Into<String>,
        tensor: Tensor,
        owners: &[(Owner, usize)],
        files: Vec<FileTensor>,
    ) -> Result<Param> {
        let tensor = tensor.contiguous()?;
        let height = tensor.dims()[0] / owners.len().max(1);
        let blocks = (owners.iter().enumerate())
            .map(|(index, &(owner, module))| Block {
                rows: index * height..(index + 1) * height,
                owner,
                module,
            })
            .collect();
        let id = ParamId(self.parameters.len());
        self.parameters.push(Parameter {
            name: name.into(),
            tensor: tensor.clone(),
            blocks,
            files,
        });
        Ok(Param { id, tensor })
    }

    /// Adds a parameter that no node owns.
    pub fn add_shared(&mut self, name: impl Into<String>, tensor: Tensor) -> Result<Param> {
        self.add(name, tensor, &[(Owner::Shared, 0)])
    }

    pub fn get(&self, id: ParamId) -> &Parameter {
        &self.parameters[id.0]
    }

    pub fn len(&self) -> usize {
        self.parameters.len()
    }

    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Parameter)> {
        (self.parameters.iter().enumerate()).map(|(index, parameter)| (ParamId(index), parameter))
    }

    /// All parameters as the files' tensors, by name.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn state_dict(&self) -> Result<BTreeMap<String, Tensor>> {
        let files = self.parameters.iter().flat_map(|parameter| {
            parameter.files.iter().map(|file| Ok((file.name.clone(), file.of(&parameter.tensor)?)))
        });
        files.collect()
    }

    /// A copy of all values, for [`Parameters::restore`].
    pub fn snapshot(&self) -> Result<Vec<Tensor>> {
        (self.parameters.iter()).map(|parameter| Ok(parameter.tensor.copy()?)).collect()
    }

    /// Puts all values back in place.
    ///
    /// # Errors
    /// If the snapshot is another model's.
    pub fn restore(&self, snapshot: &[Tensor]) -> Result<()> {
        for (parameter, values) in self.parameters.iter().zip(snapshot) {
            parameter.tensor.slice_set(values, 0, 0)?;
        }
        Ok(())
    }

    /// Keeps a copy of all values, which are back in place when the guard is dropped: at the end of a
    /// block that changes weights for a while, whether it ends in a value, an error or a panic.
    ///
    /// # Errors
    /// If there is no room for the copy.
    pub fn put_back_on_drop(&self) -> Result<PutBack<'_>> {
        Ok(PutBack { parameters: self, values: self.snapshot()? })
    }

    /// The number of entries of all parameters together.
    pub fn count(&self) -> usize {
        (self.parameters.iter()).map(|parameter| parameter.tensor.elem_count()).sum()
    }
}

/// Puts parameters back to the values they had when it was made; see
/// [`Parameters::put_back_on_drop`].
#[must_use = "the values are put back when this is dropped"]
pub struct PutBack<'a> {
    parameters: &'a Parameters,
    values: Vec<Tensor>,
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        // Copying into tensors of the same shapes fails only where the device does.
        if let Err(error) = self.parameters.restore(&self.values) {
            log::error!("the weights can't be put back: {error}");
        }
    }
}

/// Rows to train, parameter by parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Indexed by [`ParamId`]; ranges sorted, disjoint and not touching.
    ranges: Vec<Vec<Range<usize>>>,
}

impl Selection {
    /// The blocks for which `keep` holds.
    pub fn blocks(parameters: &Parameters, keep: impl Fn(ParamId, &Block) -> bool) -> Self {
        let blocks = |(id, parameter): (ParamId, &Parameter)| {
            let kept = parameter.blocks.iter().filter(|block| keep(id, block));
            joined(kept.map(|block| block.rows.clone()))
        };
        Self { ranges: parameters.iter().map(blocks).collect() }
    }

    /// The rows for which `keep` holds.
    pub fn rows_where(parameters: &Parameters, keep: impl Fn(ParamId, usize) -> bool) -> Self {
        let rows = |(id, parameter): (ParamId, &Parameter)| {
            let kept = (0..parameter.rows()).filter(|&row| keep(id, row));
            joined(kept.map(|row| row..row + 1))
        };
        Self { ranges: parameters.iter().map(rows).collect() }
    }

    /// These rows, which may overlap.
    pub fn of_rows(
        parameters: &Parameters,
        rows: impl IntoIterator<Item = (ParamId, Range<usize>)>,
    ) -> Self {
        let mut chosen: Vec<Vec<bool>> =
            parameters.iter().map(|(_, parameter)| vec![false; parameter.rows()]).collect();
        rows.into_iter().for_each(|(id, rows)| chosen[id.0][rows].fill(true));
        Self::rows_where(parameters, |id, row| chosen[id.0][row])
    }

    /// The selected rows of a parameter: sorted, disjoint, not touching.
    pub fn ranges(&self, id: ParamId) -> &[Range<usize>] {
        self.ranges.get(id.0).map_or(&[], Vec::as_slice)
    }

    /// How many rows of a parameter are selected.
    pub fn rows(&self, id: ParamId) -> usize {
        self.ranges(id).iter().map(Range::len).sum()
    }

    /// Where each of some rows of a parameter lies among the selected ones; none where it isn't one.
    pub(crate) fn places(&self, id: ParamId, rows: &[u32]) -> Vec<Option<usize>> {
        let ranges = self.ranges(id);
        let before: Vec<usize> = ranges
            .iter()
            .scan(0, |before, range| Some(std::mem::replace(before, *before + range.len())))
            .collect();
        let place = |&row: &u32| {
            let row = row as usize;
            let at = ranges.partition_point(|range| range.end <= row);
            let range = ranges.get(at).filter(|range| range.contains(&row))?;
            Some(before[at] + row - range.start)
        };
        rows.iter().map(place).collect()
    }

    pub fn contains(&self, id: ParamId) -> bool {
        !self.ranges(id).is_empty()
    }

    /// The number of entries selected.
    pub fn count(&self, parameters: &Parameters) -> usize {
        (parameters.iter()).map(|(id, parameter)| self.rows(id) * parameter.width()).sum()
    }

    /// Adds what `other` selects.
    pub fn extend(&mut self, other: &Selection) {
        self.ranges.resize(self.ranges.len().max(other.ranges.len()), Vec::new());
        for (mine, theirs) in self.ranges.iter_mut().zip(&other.ranges) {
            mine.extend(theirs.iter().cloned());
            mine.sort_by_key(|range| range.start);
            *mine = joined(mine.drain(..));
        }
    }
}

/// Ranges, sorted by their starts, with those that touch or overlap made one.
fn joined(sorted: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
