//! What can be set: a struct's fields with their doc comments, values and defaults, as its schema has them;
//! nothing is written down twice.

use serde::Serialize;
use serde_json::Value;

/// A setting of an experiment, or an option of a plugin.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// The field's name; a setting's is dotted: `tuning.lr`.
    pub name: String,
    /// The field's doc comment.
    pub description: String,
    /// The JSON type: `string`, `integer`, `number`, `boolean`, `array` or `object`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The values that are allowed, where they are a few names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<Allowed>,
    /// The value where none is given; null where it is left open.
    pub default: Value,
}

/// One of a setting's few values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Allowed {
    pub name: String,
    /// The variant's doc comment; empty where the name says it all.
    pub description: String,
}

/// The fields of a struct by its schema and its default, in the order they are declared.
pub(crate) fn fields(schema: &schemars::Schema, defaults: &Value) -> Vec<Description> {
    let schema = schema.as_value();
    let describe = |(name, field): (&String, &Value)| describe(name, field, schema, defaults);
    schema["properties"].as_object().into_iter().flatten().map(describe).collect()
}

/// Adds the settings of the struct `schema`, whose names begin with `prefix`; those of structs in it
/// one by one.
pub(crate) fn collect(
    schema: &Value,
    root: &Value,
    prefix: &str,
    defaults: &Value,
    all: &mut Vec<Description>,
) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let setting = describe(name, field, root, defaults);
        let inner = resolve(field, root);
        let name = format!("{prefix}{name}");
        let Some(properties) = inner["properties"].as_object() else {
            all.push(Description { name, ..setting });
            continue;
        };
        let first = all.len();
        collect(inner, root, &format!("{name}."), &setting.default, all);
        // What the table is for: of a plugin's the only thing to say, of a table in a table the first.
        let of_plugin = properties.len() == 1 && properties.contains_key("name");
        for field in &mut all[first..] {
            match of_plugin {
                true => field.description.clone_from(&setting.description),
                false if prefix.is_empty() => {}
                false => {
                    field.description = format!("{} {}", setting.description, field.description);
                }
            }
        }
    }
}

fn describe(name: &str, field: &Value, root: &Value, defaults: &Value) -> Description {
    let inner = resolve(field, root);
    let items = if inner["type"] == "array" { resolve(&inner["items"], root) } else { inner };
    let described = |schema: &Value| text(&schema["description"]);
    Description {
        name: name.to_owned(),
        description: Some(described(field)).filter(|s| !s.is_empty()).unwrap_or(described(inner)),
        kind: match &inner["type"] {
            Value::Array(kinds) => {
                text(kinds.iter().find(|kind| *kind != "null").unwrap_or(&kinds[0]))
            }
            // The alternatives of an enum.
            Value::Null => "string".to_owned(),
            kind => text(kind),
        },
        values: values(items),
        default: defaults[name].clone(),
    }
}

/// What a schema refers to, or its one alternative to null.
fn resolve<'s>(schema: &'s Value, root: &'s Value) -> &'s Value {
    let target = schema["$ref"].as_str().and_then(|path| root.pointer(path.strip_prefix('#')?));
    if let Some(target) = target {
        return resolve(target, root);
    }
    match schema["anyOf"].as_array().map(Vec::as_slice) {
        Some([inner, null]) if null["type"] == "null" => resolve(inner, root),
        _ => schema,
    }
}

/// The names an enum allows. Variants with a doc comment stand alone, the others together.
fn values(schema: &Value) -> Vec<Allowed> {
    let mut all = Vec::new();
    let alternatives =
        schema["oneOf"].as_array().map_or(std::slice::from_ref(schema), Vec::as_slice);
    for alternative in alternatives {
        let names = alternative["enum"].as_array().into_iter().flatten();
        for name in names.chain(alternative.get("const")).filter_map(Value::as_str) {
            let description = match alternative.get("const") {
                Some(_) => text(&alternative["description"]),
                None => String::new(),
            };
            all.push(Allowed { name: name.to_owned(), description });
        }
    }
    all
}

/// A string on one line.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().replace('\n', " ")
}
