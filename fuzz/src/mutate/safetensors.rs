//! Changing safetensors files: the length in front, the JSON header, the numbers behind.

use serde_json::Value;

use super::{Random, bytes, json};

/// Changes a safetensors file. A header that was changed has its new length in front most of the time.
pub fn mutate(random: &mut Random, file: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    let Some((header, data)) = parts(file).filter(|_| !random.one_in(5)) else {
        return bytes(random, file, others);
    };
    let (mut header, mut data) = (header.to_vec(), data.to_vec());
    match random.below(6) {
        0 => data = bytes(random, &data, others),
        1 if !data.is_empty() => {
            // Not a number, or infinite, in whichever of the usual types it is read.
            let (at, pattern) = (random.below(data.len()), [0x00, 0x00, 0xff, 0x7f]);
            let at = at - at % 4;
            data.iter_mut().skip(at).zip(pattern).for_each(|(byte, new)| *byte = new);
        }
        2 => header = json::mutate(random, &header, others),
        _ => {
            if let Ok(mut value) = serde_json::from_slice::<Value>(&header) {
                change(random, &mut value);
                header = value.to_string().into_bytes();
            }
        }
    }
    let length = if random.one_in(8) { random.integer() as u64 } else { header.len() as u64 };
    [&length.to_le_bytes()[..], &header, &data].concat()
}

/// The header and what stands behind it.
fn parts(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

const TYPES: [&str; 14] = [
    "F32", "F64", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U32", "BOOL", "F8_E4M3", "F4",
    "C64",
];

/// Changes one tensor's entry in the header: its type, shape, offsets or name.
fn change(random: &mut Random, header: &mut Value) {
    let Some(map) = header.as_object_mut().filter(|map| !map.is_empty()) else { return };
    let names: Vec<String> = map.keys().cloned().collect();
    let name = random.choose(&names);
    let Some(entry) = map.get_mut(name) else { return };
    match random.below(6) {
        0 => entry["dtype"] = (*random.choose(&TYPES)).into(),
        1 => {
            if let Some(shape) = entry["shape"].as_array_mut() {
                match (random.below(3), shape.len()) {
                    (0, _) => shape.push(random.integer().into()),
                    (_, 0) => {}
                    (1, _) => shape.reverse(),
                    (_, length) => shape[random.below(length)] = random.integer().into(),
                }
            }
        }
        2 => {
            let end = random.below(2);
            if let Some(offset) = entry["data_offsets"].get_mut(end) {
                *offset = random.integer().into();
            }
        }
        3 => drop(map.remove(name)),
        4 => {
            let entry = entry.clone();
            map.insert(random.choose(&names).clone(), entry);
        }
        _ => json::change(random, entry),
    }
}
