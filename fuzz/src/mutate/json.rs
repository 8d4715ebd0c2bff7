//! Changing JSON, and TOML by way of it, as what it holds: values, keys, nesting. Now and then the text.

use serde_json::{Value, json};

use super::{Random, text};

/// Changes a JSON file.
pub fn mutate(random: &mut Random, file: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    let value = serde_json::from_slice::<Value>(file).ok().filter(|_| !random.one_in(4));
    match value {
        Some(mut value) => {
            change(random, &mut value);
            value.to_string().into_bytes()
        }
        None => text::mutate(random, file, others),
    }
}

/// Changes one line of a file of JSON Lines, or its text.
pub fn mutate_lines(random: &mut Random, file: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    if random.one_in(4) {
        return text::mutate(random, file, others);
    }
    let mut lines: Vec<Vec<u8>> = file.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    let at = random.below(lines.len());
    lines[at] = mutate(random, &lines[at].clone(), others);
    lines.join(&b'\n')
}

/// Changes a TOML file.
pub fn mutate_toml(random: &mut Random, file: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    let table = std::str::from_utf8(file).ok().and_then(|text| text.parse::<toml::Table>().ok());
    let value = table.and_then(|table| serde_json::to_value(table).ok());
    if let Some(mut value) = value.filter(|_| !random.one_in(3)) {
        change(random, &mut value);
        if let Ok(text) = toml::to_string(&value) {
            return text.into_bytes();
        }
    }
    text::mutate(random, file, others)
}

/// Changes what a value holds in one to three places.
pub fn change(random: &mut Random, value: &mut Value) {
    for _ in 0..1 + random.below(3) {
        let at = random.below(count(value));
        let other = nth(value, &mut random.below(count(value))).cloned();
        if let Some(place) = nth_mut(value, &mut { at }) {
            change_here(random, place, other.unwrap_or_default());
        }
    }
}

fn change_here(random: &mut Random, value: &mut Value, other: Value) {
    match (random.below(4), &mut *value) {
        (0 | 1, Value::Object(map)) if !map.is_empty() => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let key = random.choose(&keys);
            match random.below(4) {
                0 => drop(map.remove(key)),
                1 => drop(map.insert(key.clone(), any(random))),
                2 => {
                    let moved = map.remove(key).unwrap_or_default();
                    map.insert(format!("{key}{}", random.below(10)), moved);
                }
                _ => drop(map.insert(random.choose(&keys).clone(), other)),
            }
        }
        (0 | 1, Value::Array(list)) if !list.is_empty() => {
            let at = random.below(list.len());
            match random.below(4) {
                0 => drop(list.remove(at)),
                1 => list.insert(at, list[at].clone()),
                2 => list.push(other),
                _ => list[at] = any(random),
            }
        }
        (0 | 1, Value::String(string)) if !string.is_empty() => {
            let changed = text::mutate(random, string.as_bytes(), &[other.to_string().into()]);
            *string = String::from_utf8_lossy(&changed).into_owned();
        }
        (0 | 1, Value::Number(number)) => {
            let (number, step) = (number.as_f64().unwrap_or(0.0), random.below(5) as f64 - 2.0);
            *value = match number.fract() == 0.0 {
                true => json!((number as i64).saturating_add(step as i64)),
                false => json!(number * step),
            };
        }
        (2, _) => *value = other,
        _ => *value = any(random),
    }
}

/// A value of any kind.
fn any(random: &mut Random) -> Value {
    match random.below(12) {
        0 => Value::Null,
        1 => json!(random.one_in(2)),
        2 => json!(""),
        3 => json!("\u{1b}[31m|\n"),
        4 => json!([]),
        5 => json!({}),
        6 => json!(*random.choose(&[0.5, -0.5, 1e-300, 1e300, -0.0, f64::MAX])),
        7 => (0..random.below(200)).fold(json!(0), |inner, _| json!([inner])),
        8 => json!(u64::MAX),
        _ => json!(random.integer()),
    }
}

/// How many values there are in a value, itself among them.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Object(map) => map.values().map(count).sum(),
        Value::Array(list) => list.iter().map(count).sum(),
        _ => 0,
    }
}

/// The value that stands behind so many others in a value, itself among them.
fn nth<'v>(value: &'v Value, left: &mut usize) -> Option<&'v Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Object(map) => map.values().find_map(|value| nth(value, left)),
        Value::Array(list) => list.iter().find_map(|value| nth(value, left)),
        _ => None,
    }
}

fn nth_mut<'v>(value: &'v mut Value, left: &mut usize) -> Option<&'v mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Object(map) => map.values_mut().find_map(|value| nth_mut(value, left)),
        Value::Array(list) => list.iter_mut().find_map(|value| nth_mut(value, left)),
        _ => None,
    }
}
