//! The linear maps that parameters are in Hugging Face's files: what an adapter is put beside.

use std::ops::Range;

use super::layout::Form;
use super::parameters::{Owner, ParamId, Parameters};

/// A linear map of a model, as Hugging Face names and splits them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    /// The module: `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Where its weight is.
    pub parameter: ParamId,
    /// Its rows of that parameter, in the order of the module's own.
    pub rows: Vec<Range<usize>>,
    /// Whether it reads the residual stream, a row an output; else it writes, a row an input.
    pub reads: bool,
    /// Whether Hugging Face keeps its weight [in, out], as GPT-2's `Conv1D` does.
    pub fan_in_fan_out: bool,
}

impl Projection {
    /// The projections that parameters are in Hugging Face's files, in the parameters' order.
    pub fn all(parameters: &Parameters) -> Vec<Self> {
        let of_parameter = parameters.iter().flat_map(|(id, parameter)| {
            let reads = match parameter.blocks.first().map(|block| block.owner) {
                Some(Owner::Reader(_)) => Some(true),
                Some(Owner::Writer(_)) => Some(false),
                _ => None,
            };
            let files = parameter.files.iter().filter(|file| file.form != Form::Vector);
            files.filter_map(move |file| {
                Some(Self {
                    name: file.name.strip_suffix(".weight")?.to_owned(),
                    parameter: id,
                    rows: file.rows.clone(),
                    reads: reads?,
                    fan_in_fan_out: (file.form == Form::Columns) == reads?,
                })
            })
        });
        of_parameter.collect()
    }

    /// Returns the layer whose nodes own its rows.
    pub(crate) fn layer(&self, parameters: &Parameters) -> Option<usize> {
        let first = self.rows.first()?.start;
        let mut blocks = parameters.get(self.parameter).blocks.iter();
        match blocks.find(|block| block.rows.contains(&first))?.owner {
            Owner::Reader(input) => input.node.layer(),
            Owner::Writer(node) => node.layer(),
            Owner::Shared => None,
        }
    }

    /// Whether it has all of these rows of its parameter.
    pub fn contains(&self, rows: &Range<usize>) -> bool {
        self.rows.iter().any(|own| own.start <= rows.start && rows.end <= own.end)
    }

    /// How many rows it has.
    pub fn height(&self) -> usize {
        self.rows.iter().map(Range::len).sum()
    }

    /// Its parts: where each lies in the parameter, and where it begins among the module's own rows.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Range<usize>, usize)> + '_ {
        self.rows.iter().scan(0, |at, rows| {
            *at += rows.len();
            Some((rows.clone(), *at - rows.len()))
        })
    }
}
