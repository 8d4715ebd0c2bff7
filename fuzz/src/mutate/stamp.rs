//! Changing plugin files: the library, and the stamp behind it with its length.

use super::{Random, bytes, json};

/// How many bytes end a plugin file: the stamp's length and the mark.
const END: usize = 8 + 16;

/// Changes a plugin file. A stamp that was changed has its new length behind it most of the time.
pub fn mutate(random: &mut Random, file: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    let Some((library, stamp, mark)) = parts(file).filter(|_| !random.one_in(4)) else {
        return bytes(random, file, others);
    };
    let (mut library, mut stamp) = (library.to_vec(), stamp.to_vec());
    match random.below(4) {
        0 => library = bytes(random, &library, others),
        _ => stamp = json::mutate(random, &stamp, others),
    }
    let length = if random.one_in(6) { random.integer() as u64 } else { stamp.len() as u64 };
    [&library, &stamp, &length.to_le_bytes()[..], mark].concat()
}

/// The library, its stamp and the mark at the end.
fn parts(file: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (rest, end) = file.split_at_checked(file.len().checked_sub(END)?)?;
    let (length, mark) = end.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (library, stamp) = rest.split_at_checked(rest.len().checked_sub(length)?)?;
    Some((library, stamp, mark))
}
