//! GGUF files whose head says what the file has no room for.

use candle_core::quantized::gguf_file::Value;

use crate::gguf::gguf;
use crate::models::refuses;

/// The place of the embedding's number of dimensions in a file; its dimensions, type and offset are behind it.
fn embedding(bytes: &[u8]) -> usize {
    let name = b"token_embd.weight";
    let place = bytes.windows(name.len()).position(|window| window == name).unwrap();
    place + name.len()
}

#[test]
fn tensors_that_the_file_has_no_room_for_are_refused_by_name() {
    let folder = gguf(|_, _| {});
    let path = folder.path().join("model.gguf");
    let whole = std::fs::read(&path).unwrap();
    let count = embedding(&whole);
    let (inner, outer, offset) = (count + 4, count + 12, count + 24);
    for changes in [
        // Multiplied they are 0, in 64 bits.
        vec![(inner, 1 << 32), (outer, 1 << 32)],
        vec![(inner, u64::MAX), (outer, u64::MAX)],
        vec![(inner, 0), (outer, u64::MAX)],
        vec![(outer, 1 << 40)],
        vec![(offset, whole.len() as u64)],
        vec![(offset, u64::MAX)],
    ] {
        let mut changed = whole.clone();
        for (at, number) in &changes {
            changed[*at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        std::fs::write(&path, changed).unwrap();
        refuses(&path, &["model.gguf: tensor `token_embd.weight` of shape", "fetch it again"]);
    }
}

#[test]
fn an_alignment_of_nothing_is_no_file() {
    let alignment = ("general.alignment".to_owned(), Value::U32(0));
    let folder = gguf(|metadata, _| metadata.push(alignment));
    refuses(&folder.path().join("model.gguf"), &["not a whole GGUF file (its reader panicked"]);
}
