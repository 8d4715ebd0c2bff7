//! Run folders held against each other: every byte, but for what a clock says.

use std::path::Path;

use serde_json::Value;

/// The events of an event file without their wall time: in a record's message it is bytes 1 to 9. The message
/// stands behind its length and that one's checksum, its own checksum behind it.
fn without_wall_times(mut file: &[u8]) -> Vec<u8> {
    let mut events = Vec::new();
    while !file.is_empty() {
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        events.extend(&file[12 + 9..12 + length]);
        file = &file[12 + length + 4..];
    }
    events
}

/// Everything a run leaves, by its path; of logs and summary without seconds, of events without wall times, of the
/// page, which is made of the other files, seconds and all, that it is there.
fn left(folder: &Path) -> Vec<(String, Vec<u8>)> {
    fn without_seconds(value: &mut Value) {
        match value {
            Value::Object(table) => {
                table.retain(|key, _| !key.ends_with("seconds"));
                table.values_mut().for_each(without_seconds);
            }
            Value::Array(values) => values.iter_mut().for_each(without_seconds),
            _ => {}
        }
    }
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut content = std::fs::read(&path).unwrap();
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            if name == "report.html" {
                assert!(!content.is_empty());
                content.clear();
            }
            if name.contains("tfevents") {
                content = without_wall_times(&content);
            }
            if name.ends_with("log.jsonl") || name == "summary.json" {
                let text = String::from_utf8(content).unwrap();
                let values = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
                let values = values.map(|value| {
                    let mut value = value.unwrap();
                    without_seconds(&mut value);
                    value.to_string()
                });
                content = values.collect::<Vec<_>>().join("\n").into_bytes();
            }
            files.push((name, content));
        }
    }
    files.sort();
    files
}

/// Holds what two runs left against each other.
pub fn assert_same(expected: &Path, found: &Path) {
    let (expected, found) = (left(expected), left(found));
    let names = |files: &[(String, Vec<u8>)]| -> Vec<String> {
        files.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(&expected), names(&found));
    for ((name, expected), (_, found)) in expected.iter().zip(&found) {
        assert!(expected == found, "{name} differs");
    }
}
