//! Writing safetensors files tensor by tensor. The safetensors crate writes the metadata in random order,
//! and the same content shall be the same file.

use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::View;
use serde_json::{Map, Value, json};

use crate::{Error, Result, files};

/// A tensor of a file, formed when its turn comes.
pub(crate) struct Piece<'a> {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Box<dyn Fn() -> Result<Tensor> + 'a>,
}

/// What stands before the data of tensors of these names, types and shapes.
pub(crate) fn header<'a>(
    metadata: Map<String, Value>,
    tensors: impl Iterator<Item = (&'a str, DType, &'a [usize])>,
) -> Vec<u8> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), metadata.into());
    }
    let mut end = 0;
    for (name, dtype, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.size_in_bytes();
        let dtype: safetensors::Dtype = dtype.into();
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        header.insert(name.to_owned(), entry);
    }
    let mut header = Value::from(header).to_string().into_bytes();
    // The data begins at a multiple of 8 bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes(), &header[..]].concat()
}

/// Writes pieces in their order, behind metadata.
///
/// # Errors
/// If a piece can't be formed, isn't what it was said to be, or the file can't be written.
pub(crate) fn write(path: &Path, metadata: Map<String, Value>, pieces: &[Piece]) -> Result<()> {
    let entries = pieces.iter().map(|piece| (&piece.name[..], piece.dtype, &piece.shape[..]));
    let header = header(metadata, entries);
    files::write_with(path, |file| {
        let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io(path));
        put(&header)?;
        for Piece { name, dtype, shape, values } in pieces {
            let tensor = values()?.to_device(&Device::Cpu)?.contiguous()?;
            if tensor.dtype() != *dtype || tensor.dims() != shape {
                return Err(Error::input(format!(
                    "{}: tensor `{name}` is {:?} {:?}, not {dtype:?} {shape:?}",
                    path.display(),
                    tensor.dtype(),
                    tensor.dims()
                )));
            }
            put(&View::data(&&tensor))?;
        }
        Ok(())
    })
}
